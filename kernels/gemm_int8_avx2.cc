// int8 x int8 on AVX2: both are widened to int16, whose pairwise products (vpmaddwd) are exact. vpmaddubsw
// would do twice as many at a time, but saturates.
#include "kernels/simd_avx2.h"
// The vectors first: what follows is written over them.
#include "kernels/transformer_args.h"

namespace genrecall {
namespace {

using Input = int16_t;
using IntVec = __m256i;
constexpr int64_t kIntStep = 16;

inline void StoreInputs(Input* p, Vec x) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}
inline IntVec LoadInputs(const Input* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline IntVec LoadWeights(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline IntVec LoadWeightsPartial(const int8_t* p, int count) {
  int8_t copy[kIntStep] = {};
  for (int i = 0; i < count; ++i) copy[i] = p[i];
  return LoadWeights(copy);
}
inline IntVec DotStep(IntVec acc, IntVec x, IntVec w) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
}

inline void SumTile(const IntVec (&v)[kTileVecs], const WeightMatrix&, int64_t, float* sums) {
  const __m256i pairs = _mm256_hadd_epi32(v[0], v[1]);
  const __m256i quads = _mm256_hadd_epi32(pairs, pairs);
  const __m128i s = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
  _mm_storel_pi(reinterpret_cast<__m64*>(sums), _mm_cvtepi32_ps(s));
}

}  // namespace
}  // namespace genrecall

#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kAvx2Int8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1, /*column_grain=*/kTileVecs};

}  // namespace genrecall
