// int8 x int8 on AVX-512 VNNI. vpdpbusd multiplies unsigned by signed bytes, so activations are stored 128
// higher, and 128 times the sum of the weights is taken off in the end: exact, also where the sums wrap in
// between.
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/transformer_args.h"

namespace genrecall {
namespace {

using Input = uint8_t;
using IntVec = __m512i;
constexpr int64_t kIntStep = 64;

inline void StoreInputs(Input* p, Vec x) {
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
}
inline IntVec LoadInputs(const Input* p) { return _mm512_loadu_si512(p); }
inline IntVec LoadWeights(const int8_t* p) { return _mm512_loadu_si512(p); }
inline IntVec LoadWeightsPartial(const int8_t* p, int count) {
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, p);
}
// Not the intrinsic: GCC 12 takes it for a call that may read memory, and stores all accumulators before
// each.
inline IntVec DotStep(IntVec acc, IntVec x, IntVec w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
  return acc;
}

inline void SumTile(const IntVec (&v)[kTileVecs], const WeightMatrix& w, int64_t row, float* sums) {
  const auto pairs = [](IntVec a, IntVec b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const IntVec ab = pairs(v[0], v[1]), cd = pairs(v[2], v[3]);
  const IntVec quads = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(quads), _mm512_extracti64x4_epi64(quads, 1));
  const __m128i s = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  const int64_t left = w.rows - row;
  const __mmask8 mask = static_cast<__mmask8>(left < kTileVecs ? (1 << left) - 1 : 15);
  const __m128i offset = _mm_slli_epi32(_mm_maskz_loadu_epi32(mask, w.row_sum + row), 7);
  _mm_storeu_ps(sums, _mm_cvtepi32_ps(_mm_sub_epi32(s, offset)));
}

}  // namespace
}  // namespace genrecall

#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kVnniInt8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1, /*column_grain=*/kTileVecs};

}  // namespace genrecall
