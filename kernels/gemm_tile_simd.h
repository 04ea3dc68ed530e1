// The loops of a gemm over the vectors of a simd_*.h, which the including file has included before it: tiles
// of kTileRows activation rows x kTileVecs outputs. What multiplies in them is a Product:
//
//   Weight, Input, Acc   what weights, packed activations and accumulators are made of
//   kDepth               numbers of an activation row that stay in the first-level cache, kTileRows rows at a
//                        time; a multiple of every step
//   Accumulate<kRows>(x, w, cols, ahead, acc)   acc[r][c] += x[r] . w[c] over `cols` numbers
//   Finish(acc, args, row, sums)   the sums of a row's kTileVecs accumulators, of weight rows `row`.., as
//   floats
//
// An output has one accumulator; its lanes are summed once, at the end: the same for every shape of tile.
#ifndef GENRECALL_KERNELS_GEMM_TILE_SIMD_H_
#define GENRECALL_KERNELS_GEMM_TILE_SIMD_H_

#include "kernels/gemm.h"
#include "kernels/gemm_epilogue_simd.h"
#include "kernels/scratch.h"

namespace genrecall {
namespace {

// Activations as the tiles read them. scale [n]: of each row, where rows were quantised, else null.
template <typename Input>
struct Activations {
  const Input* data;
  int64_t stride;
  const float* scale = nullptr;
};

// What is prefetched: from a weight to the one that the next tile reads in its place; near: rows before these
// have brought it into the second-level cache, and it is wanted in the first.
struct Ahead {
  int64_t distance;
  bool near;
};

// Up to kTileRows activation rows; warm: other rows have met the same weights before.
template <typename Input>
struct RowGroup {
  const Input* data;
  int64_t stride;
  bool warm;
};

// sums[r][c] = x[r] . w[row + c] for kRows rows and c in [0, count); writes up to kTileVecs - 1 more columns.
// Where rows are long, `depth` < cols keeps the activations in the first-level cache: all columns take one
// stretch of k, then the next, and accumulators wait in between.
template <int kRows, typename Product>
void DotRows(const GemmArgs& args, const RowGroup<typename Product::Input>& x, int64_t row, int64_t depth,
             int count, float* sums, int sums_stride) {
  using Weight = typename Product::Weight;
  using Acc = typename Product::Acc;
  constexpr int kTile = kRows * kTileVecs;
  const int64_t cols = args.w.cols;
  const Weight* w = static_cast<const Weight*>(args.w.data) + row * cols;
  const Ahead ahead = {kTileVecs * cols, x.warm};
  Acc* waiting = nullptr;
  if (depth < cols) {
    const int64_t tiles = (count + kTileVecs - 1) / kTileVecs;
    waiting = static_cast<Acc*>(ThreadScratch(ScratchArea::kTask, tiles * kTile * int64_t{sizeof(Acc)}));
  }
  for (int64_t k = 0; k < cols; k += depth) {
    const bool last = k + depth >= cols;
    for (int c = 0; c < count; c += kTileVecs) {
      const Weight* rows[kTileVecs];
      for (int i = 0; i < kTileVecs; ++i) rows[i] = w + (c + i < count ? c + i : c) * cols + k;
      Acc acc[kRows][kTileVecs];
      Acc* parked = waiting + int64_t{c} * kRows;
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kTileVecs; ++i) acc[r][i] = k == 0 ? Acc{} : parked[r * kTileVecs + i];
      }
      Product::template Accumulate<kRows>(x.data + k, x.stride, rows, last ? cols - k : depth, ahead, acc);
      for (int r = 0; r < kRows; ++r) {
        if (last) {
          Product::Finish(acc[r], args.w, row + c, sums + r * sums_stride + c);
        } else {
          for (int i = 0; i < kTileVecs; ++i) parked[r * kTileVecs + i] = acc[r][i];
        }
      }
    }
  }
}

template <typename Product>
void DotRows(const GemmArgs& args, int rows, const RowGroup<typename Product::Input>& x, int64_t row,
             int64_t depth, int count, float* sums, int sums_stride) {
  using Fn =
      void (*)(const GemmArgs&, const RowGroup<typename Product::Input>&, int64_t, int64_t, int, float*, int);
  static constexpr Fn kByRows[kTileRows] = {DotRows<1, Product>, DotRows<2, Product>, DotRows<3, Product>,
                                            DotRows<4, Product>, DotRows<5, Product>, DotRows<6, Product>};
  kByRows[rows - 1](args, x, row, depth, count, sums, sums_stride);
}

// Columns [first, last) of all rows.
template <typename Product>
void ColumnsOf(const GemmArgs& args, Activations<typename Product::Input> x, int64_t first, int64_t last) {
  constexpr int kStride = kGemmBlock + kTileVecs;
  float sums[kTileRows * kStride], up[kTileRows * kStride];
  const int count = static_cast<int>(last - first);
  // One tile of rows: weights are read once, in order.
  const int64_t depth = args.n <= kTileRows ? args.w.cols : Product::kDepth;
  for (int64_t r = 0; r < args.n; r += kTileRows) {
    const int rows = static_cast<int>(args.n - r < kTileRows ? args.n - r : kTileRows);
    const RowGroup<typename Product::Input> group = {x.data + r * x.stride, x.stride, /*warm=*/r > 0};
    DotRows<Product>(args, rows, group, first, depth, count, sums, kStride);
    if (args.epilogue == Epilogue::kSwiGlu) {
      DotRows<Product>(args, rows, group, args.w.rows / 2 + first, depth, count, up, kStride);
    }
    for (int i = 0; i < rows; ++i) {
      const float scale = x.scale == nullptr ? 1.0f : x.scale[r + i];
      Finish(args, r + i, scale, first, count, sums + i * kStride, up + i * kStride);
    }
  }
}

inline int64_t RoundUpTo(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_TILE_SIMD_H_
