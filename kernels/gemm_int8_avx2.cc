// int8 x int8 on AVX2: both are widened to int16, whose pairwise products (vpmaddwd) are exact. vpmaddubsw
// would do twice as many at a time, but saturates.
#include "kernels/simd_avx2.h"
// The vectors first: what follows is written over them.
#include "kernels/int8_panels.h"

namespace genrecall {
namespace {

using Input = int16_t;
constexpr int kPanelTileRows =
    3;  // x 4 quarters of a panel: 12 accumulators, 1 operand, 3 broadcasts of 16 registers
constexpr int kQuarters = 4;  // of a panel: 4 outputs x 4 k fill a vector of int16

inline void StoreQuads(Input* to, int64_t stride, Vec x) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), words);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(words, words));
}

// One panel; accumulators hold the sums of even and of odd pairs of k of four outputs.
template <int kRows>
inline void OnePanel(const Input* x, const int8_t* panel, const int8_t* next, const WeightPanels& panels,
                     float* sums) {
  __m256i acc[kRows][kQuarters];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) acc[r][i] = _mm256_setzero_si256();
  }
  for (int64_t q = 0; q < panels.quads; ++q) {
    const int8_t* quad = panel + q * kQuadBytes;
    PrefetchNear(quad + kNearBytes);
    PrefetchFar(next + q * panels.next_step);
    __m256i a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      int64_t words;
      __builtin_memcpy(&words, x + (q * kRows + r) * kPanelQuad, sizeof words);
      a[r] = _mm256_set1_epi64x(words);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) {
      const __m256i w = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(quad) + i));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(a[r], w));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < kQuarters; i += 2) {
      const __m256i s = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][i], acc[r][i + 1]), 0xd8);
      Store(sums + r * kPanelSumsStride + i * 4, _mm256_cvtepi32_ps(s));
    }
  }
}

template <int kRows, int kPanels>
void PanelTile(const Input* x, const WeightPanels& panels, float* sums) {
  for (int p = 0; p < kPanels; ++p) {
    OnePanel<kRows>(x, panels.data[p], panels.next[p], panels, sums + p * kPanelOutputs);
  }
}

}  // namespace
}  // namespace genrecall

#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kAvx2Int8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1,
                                  /*column_grain=*/2 * kPanelOutputs};

}  // namespace genrecall
