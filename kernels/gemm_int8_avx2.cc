// int8 x int8 on AVX2: both are widened to int16, whose pairwise products (vpmaddwd) are exact. vpmaddubsw
// would do twice as many at a time, but saturates.
#include "kernels/simd_avx2.h"
// The vectors first: what follows is written over them.
#include "kernels/int8_panels.h"

namespace genrecall {
namespace {

using Input = int16_t;
constexpr int kPanelTileRows = 6;  // x 2: 12 accumulators, 2 operands, 1 broadcast, 1 product of 16 registers
constexpr int kQuarterOutputs = 4;  // of a panel: 4 outputs x 4 k fill a vector of int16

inline void StoreQuads(Input* to, int64_t stride, Vec x) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), words);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(words, words));
}

// Not the intrinsics: GCC 12 forms all products of a step before it adds the first, and keeps accumulators in
// memory for want of registers.
inline void AddProducts(__m256i& acc, __m256i x, __m256i w) {
  __m256i products;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(x), "x"(w));
}

// Eight of a panel's outputs, from `quarter` on; accumulators hold the sums of even and of odd pairs of k of
// four outputs.
template <int kRows, bool kFetch>
inline void HalfPanel(const Input* x, const int8_t* panel, const int8_t* next, int quarter,
                      const WeightPanels& panels, float* sums) {
  __m256i acc[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  const int64_t quads = panels.quads, next_step = panels.next_step;
  const auto* quad = reinterpret_cast<const __m128i*>(panel) + quarter;
  for (int64_t q = 0; q < quads; ++q, quad += kQuadBytes / sizeof(__m128i), x += kRows * kPanelQuad) {
    if constexpr (kFetch) {
      PrefetchNear(reinterpret_cast<const char*>(quad) + kNearBytes);
      PrefetchFar(next + q * next_step);
    }
    const __m256i w0 = _mm256_cvtepi8_epi16(_mm_load_si128(quad));
    const __m256i w1 = _mm256_cvtepi8_epi16(_mm_load_si128(quad + 1));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int64_t words;
      __builtin_memcpy(&words, x + r * kPanelQuad, sizeof words);
      const __m256i a = _mm256_set1_epi64x(words);
      AddProducts(acc[r][0], a, w0);
      AddProducts(acc[r][1], a, w1);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m256i s = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][0], acc[r][1]), 0xd8);
    Store(sums + r * kPanelSumsStride + quarter * kQuarterOutputs, _mm256_cvtepi32_ps(s));
  }
}

template <int kRows, int kPanels>
void PanelTile(const Input* x, const WeightPanels& panels, float* sums) {
  for (int p = 0; p < kPanels; ++p) {
    HalfPanel<kRows, true>(x, panels.data[p], panels.next[p], 0, panels, sums + p * kPanelOutputs);
    HalfPanel<kRows, false>(x, panels.data[p], nullptr, 2, panels, sums + p * kPanelOutputs);
  }
}

}  // namespace
}  // namespace genrecall

#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kAvx2Int8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1,
                                  /*column_grain=*/2 * kPanelOutputs};

}  // namespace genrecall
