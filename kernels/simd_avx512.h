// 16-lane vectors for the kernels written once in *_simd.h. Included only by *_avx512.cc, *_avx512bf16.cc,
// *_vnni.cc and *_amx.cc; everything has internal linkage, so no AVX-512 copy of a function can be linked
// into code for older CPUs. simd_avx2.h is its twin.
#ifndef GENRECALL_KERNELS_SIMD_AVX512_H_
#define GENRECALL_KERNELS_SIMD_AVX512_H_

#include <immintrin.h>

#include "kernels/dtype.h"
#include "kernels/exp_constants.h"

// GCC 12's own AVX-512 headers start "undefined" vectors from themselves (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace genrecall {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kTileRows = 6, kTileVecs = 4;  // 24 accumulators, 4 operands, 1 broadcast of 32 registers

[[maybe_unused]] inline Vec Zero() { return _mm512_setzero_ps(); }
[[maybe_unused]] inline Vec Set1(float x) { return _mm512_set1_ps(x); }
[[maybe_unused]] inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
[[maybe_unused]] inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
[[maybe_unused]] inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
[[maybe_unused]] inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
[[maybe_unused]] inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b when either is NaN
[[maybe_unused]] inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }      // a b + c
[[maybe_unused]] inline Vec NegFma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
// acc += a b on registers alone, as tiles sum. Left to itself, GCC 12 reads operands from memory once more
// for each product, and keeps accumulators there.
[[maybe_unused]] inline void AddProduct(Vec& acc, Vec a, Vec b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

inline __mmask16 FirstLanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

// --- memory; "Partial" touches the first `count` lanes, 0..kLanes, and reads the others as 0 ---

[[maybe_unused]] inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
[[maybe_unused]] inline Vec LoadPartial(const float* p, int count) {
  return _mm512_maskz_loadu_ps(FirstLanes(count), p);
}
[[maybe_unused]] inline void Store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
[[maybe_unused]] inline void StorePartial(float* p, Vec x, int count) {
  _mm512_mask_storeu_ps(p, FirstLanes(count), x);
}

inline Vec Widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// The nearest bf16 numbers in the upper halves, the lower ones 0. Ties to even; NaN stays NaN, as ToBf16.
inline __m512i RoundToBf16(Vec x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
inline __m256i Narrow(Vec x) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(x);  // a quarter of the operations; subnormals become 0
#else
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(RoundToBf16(x), 16));
#endif
}

[[maybe_unused]] inline Vec Load(const bf16* p) {
  return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
[[maybe_unused]] inline Vec LoadPartial(const bf16* p, int count) {
  return Widen(_mm256_maskz_loadu_epi16(FirstLanes(count), p));
}
[[maybe_unused]] inline void Store(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Narrow(x));
}
[[maybe_unused]] inline void StorePartial(bf16* p, Vec x, int count) {
  _mm256_mask_storeu_epi16(p, FirstLanes(count), Narrow(x));
}

// Integers as floats, exactly.
inline Vec WidenInt8(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }
[[maybe_unused]] inline Vec Load(const int8_t* p) {
  return WidenInt8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[maybe_unused]] inline Vec LoadPartial(const int8_t* p, int count) {
  return WidenInt8(_mm_maskz_loadu_epi8(FirstLanes(count), p));
}
// The nearest integers, ties to even; |x| < 127.5.
[[maybe_unused]] inline void Store(int8_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
[[maybe_unused]] inline void StorePartial(int8_t* p, Vec x, int count) {
  _mm512_mask_cvtepi32_storeu_epi8(p, FirstLanes(count), _mm512_cvtps_epi32(x));
}

// Lane by lane the larger of a (>= 0 or NaN) and |b|; NaN counts as larger than everything.
[[maybe_unused]] inline Vec MaxMagnitude(Vec a, Vec b) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(0x7fffffff));
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), magnitude));
}
// Across lanes >= 0 or NaN.
[[maybe_unused]] inline float LargestMagnitude(Vec a) {
  const int bits = _mm512_reduce_max_epi32(_mm512_castps_si512(a));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
}

// 2 kLanes bf16 numbers as two vectors, those of even and those of odd index: one operation each, where
// widening in order takes two.
inline Vec Even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Vec Odd(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
constexpr __mmask32 kOddWords = 0xaaaaaaaau;
[[maybe_unused]] inline Vec LoadEven(const bf16* p) { return Even(_mm512_loadu_si512(p)); }
[[maybe_unused]] inline Vec LoadOdd(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(kOddWords, p));
}
[[maybe_unused]] inline void LoadPairsPartial(const bf16* p, int count, Vec* even, Vec* odd) {  // count < 32
  const __mmask32 first = (1u << count) - 1u;
  *even = Even(_mm512_maskz_loadu_epi16(first, p));
  *odd = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first & kOddWords, p));
}

// Of n numbers, which are compared as they lie, 2 kLanes at a time.
[[maybe_unused]] inline float LargestMagnitude(const bf16* x, int64_t n) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i largest = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
  }
  const __m512i rest = _mm512_maskz_loadu_epi16((1u << (n - i)) - 1u, x + i);
  largest = _mm512_max_epu16(largest, _mm512_and_si512(rest, magnitude));
  return LargestMagnitude(MaxMagnitude(Even(largest), Odd(largest)));
}

// Into the first-level cache, and into the second.
[[maybe_unused]] inline void PrefetchNear(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
[[maybe_unused]] inline void PrefetchFar(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

// --- across lanes, each in one fixed order ---

// The sums of kTileVecs vectors.
[[maybe_unused]] inline void SumTile(const Vec (&v)[kTileVecs], float* sums) {
  __m256 half[kTileVecs];
  for (int i = 0; i < kTileVecs; ++i) {
    half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
  }
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

[[maybe_unused]] inline float Sum(Vec v) { return _mm512_reduce_add_ps(v); }
[[maybe_unused]] inline float MaxLane(Vec v) { return _mm512_reduce_max_ps(v); }

// Lanes from `count` on (<= 0: all; >= kLanes: none) become `fill`.
[[maybe_unused]] inline Vec FillFrom(Vec v, int count, Vec fill) {
  if (count >= kLanes) return v;
  return _mm512_mask_blend_ps(FirstLanes(count < 0 ? 0 : count), fill, v);
}

// v[4 q + c] becomes, in its 128-bit lane p, lane 4 p + c of the old v[4 q .. 4 q + 3].
template <int kVecs>
inline void TransposeFours(Vec (&v)[kVecs]) {
  const auto low = [](Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  for (int q = 0; q < kVecs; q += 4) {
    const Vec a = _mm512_unpacklo_ps(v[q], v[q + 1]), b = _mm512_unpackhi_ps(v[q], v[q + 1]);
    const Vec c = _mm512_unpacklo_ps(v[q + 2], v[q + 3]), d = _mm512_unpackhi_ps(v[q + 2], v[q + 3]);
    v[q] = low(a, c);
    v[q + 1] = high(a, c);
    v[q + 2] = low(b, d);
    v[q + 3] = high(b, d);
  }
}

// v[i] lane j becomes v[j] lane i.
[[maybe_unused]] inline void Transpose(Vec (&v)[kLanes]) {
  TransposeFours(v);
  for (int c = 0; c < 4; ++c) {
    const Vec a = _mm512_shuffle_f32x4(v[c], v[4 + c], 0x88), b = _mm512_shuffle_f32x4(v[c], v[4 + c], 0xdd);
    const Vec d = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0x88),
              e = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0xdd);
    v[c] = _mm512_shuffle_f32x4(a, d, 0x88);
    v[8 + c] = _mm512_shuffle_f32x4(a, d, 0xdd);
    v[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
    v[12 + c] = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
}

// x, at most `limit` > 0 in magnitude.
[[maybe_unused]] inline Vec ClampMagnitude(Vec x, Vec limit) {
  constexpr int kSmallerMagnitude = 2;  // and x's sign
  return _mm512_range_ps(x, limit, kSmallerMagnitude);
}
// The bits of x as integers: shifted left by 23, and taken from `bits`.
[[maybe_unused]] inline Vec ShiftToExponent(Vec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
}
[[maybe_unused]] inline Vec BitsLess(int bits, Vec x) {
  return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(bits), _mm512_castps_si512(x)));
}

// The scalar Exp of scalar_math.h, with fused multiply-adds.
[[maybe_unused]] inline Vec Exp(Vec x) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, Set1(kExpLow), _CMP_LT_OQ);
  x = _mm512_min_ps(Set1(kExpHigh), x);  // this order keeps NaN
  const Vec n = _mm512_roundscale_ps(Mul(x, Set1(kLog2e)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = NegFma(n, Set1(kLn2High), x);
  r = NegFma(n, Set1(kLn2Low), r);
  Vec p = Set1(kExpPoly[0]);
  for (int i = 1; i < 6; ++i) p = Fma(p, r, Set1(kExpPoly[i]));
  const Vec y = Add(Fma(Mul(p, r), r, r), Set1(1.0f));
  const __m512i exponent =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mask_mov_ps(Mul(y, _mm512_castsi512_ps(exponent)), tiny, Zero());
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_SIMD_AVX512_H_
