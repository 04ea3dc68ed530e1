// Tiles of int8 panels by instructions that multiply unsigned by signed bytes (VNNI), for gemm_int8_simd.h,
// over what the including file has defined before it:
//
//   IntVec            a vector of int32 sums, or of the bytes of as many outputs; kPanelVecs make a panel
//   kPanelTileRows    rows of a tile at most; kTilePanels: panels of a tile at most
//   LoadBytes, BroadcastQuad, DotStep(acc, x, w)   acc + x . w, four products an output
//   LoadSums(p, count)   the first `count` of p[0..], others 0; NegatedBy128; StoreSums(to, acc) as floats
//
// Activations are stored 128 higher, so that they are unsigned, and sums start 128 times the sum of the
// weights lower: exact, also where they wrap in between.
#ifndef GENRECALL_KERNELS_GEMM_INT8_BYTES_SIMD_H_
#define GENRECALL_KERNELS_GEMM_INT8_BYTES_SIMD_H_

#include "kernels/int8_panels.h"

namespace genrecall {
namespace {

using Input = uint8_t;
constexpr int kVecOutputs = static_cast<int>(kPanelOutputs) / kPanelVecs;

// Panels [first, first + kPanels) of `panels`.
template <int kRows, int kPanels>
inline void ByteTile(const Input* x, const WeightPanels& panels, int first, float* sums) {
  constexpr int kVecs = kPanels * kPanelVecs;
  IntVec acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    const int p = first + v / kPanelVecs, from = v % kPanelVecs * kVecOutputs;
    const IntVec start = NegatedBy128(LoadSums(panels.row_sum[p] + from, panels.count[p] - from));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) acc[r][v] = start;
  }
  const int8_t *data[kPanels], *next[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    data[p] = panels.data[first + p];
    next[p] = panels.next[first + p];
  }
  const int64_t next_step = panels.next_step;
  for (int64_t q = 0; q < panels.quads; ++q) {
    IntVec w[kVecs];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      PrefetchNear(data[p] + q * kQuadBytes + kNearBytes);
      PrefetchFar(next[p] + q * next_step);
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVecs; ++v) {
        w[p * kPanelVecs + v] = LoadBytes(data[p] + q * kQuadBytes + v * sizeof(IntVec));
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      __builtin_memcpy(&quad, x + (q * kRows + r) * kPanelQuad, sizeof quad);
      const IntVec a = BroadcastQuad(quad);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = DotStep(acc[r][v], a, w[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      StoreSums(sums + r * kPanelSumsStride + first * kPanelOutputs + v * kVecOutputs, acc[r][v]);
    }
  }
}

template <int kRows, int kPanels>
void PanelTile(const Input* x, const WeightPanels& panels, float* sums) {
  if constexpr (kPanels <= kTilePanels) {
    ByteTile<kRows, kPanels>(x, panels, 0, sums);
  } else {
    for (int p = 0; p < kPanels; ++p) ByteTile<kRows, 1>(x, panels, p, sums);
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_INT8_BYTES_SIMD_H_
