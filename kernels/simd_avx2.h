// 8-lane vectors for the kernels written once in *_simd.h. Included only by *_avx2.cc and *_avxvnni.cc;
// internal linkage throughout, see simd_avx512.h, whose twin this is: the same names, and the same meanings.
#ifndef GENRECALL_KERNELS_SIMD_AVX2_H_
#define GENRECALL_KERNELS_SIMD_AVX2_H_

#include <immintrin.h>

#include "kernels/dtype.h"
#include "kernels/exp_constants.h"

namespace genrecall {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kTileRows = 6, kTileVecs = 2;  // 12 accumulators, 2 operands, 1 broadcast of 16 registers

[[maybe_unused]] inline Vec Zero() { return _mm256_setzero_ps(); }
[[maybe_unused]] inline Vec Set1(float x) { return _mm256_set1_ps(x); }
[[maybe_unused]] inline Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
[[maybe_unused]] inline Vec Sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
[[maybe_unused]] inline Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
[[maybe_unused]] inline Vec Div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
[[maybe_unused]] inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
[[maybe_unused]] inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
[[maybe_unused]] inline Vec NegFma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
[[maybe_unused]] inline void AddProduct(Vec& acc, Vec a, Vec b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
}

inline __m256i FirstLanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

[[maybe_unused]] inline Vec Load(const float* p) { return _mm256_loadu_ps(p); }
[[maybe_unused]] inline Vec LoadPartial(const float* p, int count) {
  if (count == kLanes) return Load(p);
  return _mm256_maskload_ps(p, FirstLanes(count));
}
[[maybe_unused]] inline void Store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
[[maybe_unused]] inline void StorePartial(float* p, Vec x, int count) {
  if (count == kLanes) return Store(p, x);  // a masked store takes AMD's Zen 4 eleven times as long
  _mm256_maskstore_ps(p, FirstLanes(count), x);
}

inline Vec Widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }

inline __m128i Narrow(Vec x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i bits = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
  return _mm256_castsi256_si128(packed);
}

[[maybe_unused]] inline Vec Load(const bf16* p) {
  return Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[maybe_unused]] inline Vec LoadPartial(const bf16* p, int count) {
  if (count == kLanes) return Load(p);
  bf16 copy[kLanes] = {};
  for (int i = 0; i < count; ++i) copy[i] = p[i];
  return Load(copy);
}
[[maybe_unused]] inline void Store(bf16* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Narrow(x));
}
[[maybe_unused]] inline void StorePartial(bf16* p, Vec x, int count) {
  if (count == kLanes) return Store(p, x);
  bf16 copy[kLanes];
  Store(copy, x);
  for (int i = 0; i < count; ++i) p[i] = copy[i];
}

inline Vec WidenInt8(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)); }
[[maybe_unused]] inline Vec Load(const int8_t* p) {
  return WidenInt8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
[[maybe_unused]] inline Vec LoadPartial(const int8_t* p, int count) {
  if (count == kLanes) return Load(p);
  int8_t copy[kLanes] = {};
  for (int i = 0; i < count; ++i) copy[i] = p[i];
  return Load(copy);
}
[[maybe_unused]] inline void Store(int8_t* p, Vec x) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
[[maybe_unused]] inline void StorePartial(int8_t* p, Vec x, int count) {
  if (count == kLanes) return Store(p, x);
  int8_t copy[kLanes];
  Store(copy, x);
  for (int i = 0; i < count; ++i) p[i] = copy[i];
}

[[maybe_unused]] inline Vec MaxMagnitude(Vec a, Vec b) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(0x7fffffff));
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), magnitude));
}
[[maybe_unused]] inline float LargestMagnitude(Vec a) {
  const __m256i v = _mm256_castps_si256(a);
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

[[maybe_unused]] inline float LargestMagnitude(const bf16* x, int64_t n) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  __m256i largest = _mm256_setzero_si256();
  const auto add = [&](const bf16* from) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    largest = _mm256_max_epu16(largest, _mm256_and_si256(words, magnitude));
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) add(x + i);
  bf16 rest[2 * kLanes] = {};
  for (int64_t j = 0; i + j < n; ++j) rest[j] = x[i + j];
  add(rest);
  const __m256i odd = _mm256_and_si256(largest, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return LargestMagnitude(
      MaxMagnitude(_mm256_castsi256_ps(_mm256_slli_epi32(largest, 16)), _mm256_castsi256_ps(odd)));
}

[[maybe_unused]] inline Vec LoadEven(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16));
}
[[maybe_unused]] inline Vec LoadOdd(const bf16* p) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), upper));
}
[[maybe_unused]] inline void LoadPairsPartial(const bf16* p, int count, Vec* even, Vec* odd) {  // count < 16
  bf16 copy[2 * kLanes] = {};
  for (int i = 0; i < count; ++i) copy[i] = p[i];
  *even = LoadEven(copy);
  *odd = LoadOdd(copy);
}

// Into the first-level cache, and into the second.
[[maybe_unused]] inline void PrefetchNear(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
[[maybe_unused]] inline void PrefetchFar(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

[[maybe_unused]] inline void SumTile(const Vec (&v)[kTileVecs], float* sums) {
  const __m256 pairs = _mm256_hadd_ps(v[0], v[1]);
  const __m256 quads = _mm256_hadd_ps(pairs, pairs);
  const __m128 s = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
  _mm_storel_pi(reinterpret_cast<__m64*>(sums), s);
}

[[maybe_unused]] inline float Sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
[[maybe_unused]] inline float MaxLane(Vec v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

[[maybe_unused]] inline Vec FillFrom(Vec v, int count, Vec fill) {
  if (count >= kLanes) return v;
  return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(FirstLanes(count)));
}

[[maybe_unused]] inline void Transpose(Vec (&v)[kLanes]) {
  Vec t[kLanes], u[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int q = 0; q < kLanes; q += 4) {
    u[q] = _mm256_shuffle_ps(t[q], t[q + 2], 0x44);
    u[q + 1] = _mm256_shuffle_ps(t[q], t[q + 2], 0xee);
    u[q + 2] = _mm256_shuffle_ps(t[q + 1], t[q + 3], 0x44);
    u[q + 3] = _mm256_shuffle_ps(t[q + 1], t[q + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    v[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    v[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}

[[maybe_unused]] inline Vec ClampMagnitude(Vec x, Vec limit) {
  return _mm256_max_ps(_mm256_min_ps(x, limit), Sub(Zero(), limit));
}
[[maybe_unused]] inline Vec ShiftToExponent(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
}
[[maybe_unused]] inline Vec BitsLess(int bits, Vec x) {
  return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(bits), _mm256_castps_si256(x)));
}

[[maybe_unused]] inline Vec Exp(Vec x) {
  const Vec tiny = _mm256_cmp_ps(x, Set1(kExpLow), _CMP_LT_OQ);
  x = _mm256_min_ps(Set1(kExpHigh), x);
  const Vec n = _mm256_round_ps(Mul(x, Set1(kLog2e)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = NegFma(n, Set1(kLn2High), x);
  r = NegFma(n, Set1(kLn2Low), r);
  Vec p = Set1(kExpPoly[0]);
  for (int i = 1; i < 6; ++i) p = Fma(p, r, Set1(kExpPoly[i]));
  const Vec y = Add(Fma(Mul(p, r), r, r), Set1(1.0f));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(tiny, Mul(y, _mm256_castsi256_ps(exponent)));
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_SIMD_AVX2_H_
