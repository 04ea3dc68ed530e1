// int8 x int8 on AVX-512 VNNI. vpdpbusd multiplies unsigned by signed bytes, so activations are stored 128
// higher, and sums start 128 times the sum of the weights lower: exact, also where they wrap in between.
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/int8_panels.h"

namespace genrecall {
namespace {

using Input = uint8_t;
constexpr int kPanelTileRows = 12;  // x 2 panels: 24 accumulators, 2 operands, 1 broadcast of 32 registers

inline void StoreQuads(Input* to, int64_t stride, Vec x) {
  const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)), _mm_set1_epi8(-128));
  _mm_storeu_si32(to, bytes);
  _mm_storeu_si32(to + stride, _mm_shuffle_epi32(bytes, 1));
  _mm_storeu_si32(to + 2 * stride, _mm_shuffle_epi32(bytes, 2));
  _mm_storeu_si32(to + 3 * stride, _mm_shuffle_epi32(bytes, 3));
}

// Not the intrinsic: GCC 12 takes it for a call that may read memory, and stores all accumulators before
// each.
inline __m512i DotStep(__m512i acc, __m512i x, __m512i w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
  return acc;
}

template <int kRows, int kPanels>
void PanelTile(const Input* x, const WeightPanels& panels, float* sums) {
  __m512i acc[kRows][kPanels];
#pragma GCC unroll 2
  for (int p = 0; p < kPanels; ++p) {
    const __m512i row_sum = _mm512_maskz_loadu_epi32(FirstLanes(panels.count[p]), panels.row_sum[p]);
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(row_sum, 7));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) acc[r][p] = start;
  }
  const int8_t *data[kPanels], *next[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    data[p] = panels.data[p];
    next[p] = panels.next[p];
  }
  const int64_t next_step = panels.next_step;
  for (int64_t q = 0; q < panels.quads; ++q) {
    __m512i w[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      w[p] = _mm512_load_si512(data[p] + q * kQuadBytes);
      PrefetchNear(data[p] + q * kQuadBytes + kNearBytes);
      PrefetchFar(next[p] + q * next_step);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      __builtin_memcpy(&quad, x + (q * kRows + r) * kPanelQuad, sizeof quad);
      const __m512i a = _mm512_set1_epi32(quad);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) acc[r][p] = DotStep(acc[r][p], a, w[p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      Store(sums + r * kPanelSumsStride + p * kPanelOutputs, _mm512_cvtepi32_ps(acc[r][p]));
    }
  }
}

}  // namespace
}  // namespace genrecall

#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kVnniInt8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1,
                                  /*column_grain=*/2 * kPanelOutputs};

}  // namespace genrecall
