// The loops of a gemm over the vectors of a simd_*.h, which the including file has included before it: tiles
// of kTileRows activation rows x kTileVecs outputs. What multiplies in them is a Product:
//
//   Weight, Input, Acc   what weights, packed activations and accumulators are made of
//   kDepth               about as many numbers of a row as stay in the first-level cache, kTileRows rows at a
//                        time
//   Accumulate<kRows, kAhead>(x, stride, w, cols, acc)   acc[r][c] += x[r] . w[c] over `cols` numbers
//   Finish(acc, sums)    the sums of a row's kTileVecs accumulators
//
// An output has one accumulator; its lanes are summed once, at the end: the same for every shape of tile.
#ifndef GENRECALL_KERNELS_GEMM_TILE_SIMD_H_
#define GENRECALL_KERNELS_GEMM_TILE_SIMD_H_

#include "kernels/gemm.h"
#include "kernels/gemm_epilogue_simd.h"
#include "kernels/row_groups.h"
#include "kernels/scratch.h"

namespace genrecall {
namespace {

// Activations as the tiles read them.
template <typename Input>
struct Activations {
  const Input* data;
  int64_t stride;
};

// What a tile prefetches of the next tile's weights: kNear, what earlier rows have brought into the
// second-level cache, from there; kFar, into that cache, from memory.
enum class Ahead { kFar, kNear };

template <Ahead kAhead>
inline void Prefetch(const void* p) {
  if constexpr (kAhead == Ahead::kNear) PrefetchNear(p);
  if constexpr (kAhead == Ahead::kFar) PrefetchFar(p);
}

// A tile's kTileVecs rows of weights, `stride` apart; next: what the next tile reads in their place.
template <typename Weight>
struct WeightTile {
  const Weight* data;
  const Weight* next;
  int64_t stride;
};

// A tile of kRows activation rows `x` and columns [row, row + tile_cols) over [k, k + cols) of their numbers;
// `parked` holds its accumulators between stretches of k.
template <int kRows, Ahead kAhead, typename Product>
void DotTile(const GemmArgs& args, const typename Product::Input* x, int64_t x_stride, int64_t row,
             int tile_cols, int64_t k, int64_t cols, typename Product::Acc* parked, float* sums,
             int sums_stride) {
  const int64_t all = args.w.cols;
  const auto* w = static_cast<const typename Product::Weight*>(args.w.data) + row * all + k;
  // Fewer columns than a tile has: the first again in place of the others, whose sums nobody reads.
  const int64_t stride = tile_cols == kTileVecs ? all : 0;
  typename Product::Acc acc[kRows][kTileVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kTileVecs; ++i) {
      acc[r][i] = k == 0 ? typename Product::Acc{} : parked[r * kTileVecs + i];
    }
  }
  Product::template Accumulate<kRows, kAhead>(x + k, x_stride, {w, w + kTileVecs * all, stride}, cols, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (k + cols == all) {
      Product::Finish(acc[r], sums + r * sums_stride);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kTileVecs; ++i) parked[r * kTileVecs + i] = acc[r][i];
    }
  }
}

// sums[r][c] = x[r] . w[row + c] for kRows rows and c in [0, count); writes up to kTileVecs - 1 more columns.
// Where rows are long, `depth` < cols keeps the activations in the first-level cache: all columns take one
// stretch of k, then the next, and accumulators wait in between.
template <int kRows, Ahead kAhead, typename Product>
void DotRows(const GemmArgs& args, const typename Product::Input* x, int64_t x_stride, int64_t row,
             int64_t depth, int count, float* sums, int sums_stride) {
  using Acc = typename Product::Acc;
  constexpr int kTile = kRows * kTileVecs;
  const int64_t cols = args.w.cols;
  const int whole = count / kTileVecs * kTileVecs;
  Acc* waiting = nullptr;
  if (depth < cols) {
    const int64_t tiles = whole / kTileVecs + count - whole;
    waiting = static_cast<Acc*>(ThreadScratch(ScratchArea::kTask, tiles * kTile * int64_t{sizeof(Acc)}));
  }
  for (int64_t k = 0; k < cols; k += depth) {
    const int64_t stretch = k + depth < cols ? depth : cols - k;
    Acc* parked = waiting;
    for (int c = 0; c < count; parked += kTile) {
      const int tile_cols = c < whole ? kTileVecs : 1;
      DotTile<kRows, kAhead, Product>(args, x, x_stride, row + c, tile_cols, k, stretch, parked, sums + c,
                                      sums_stride);
      c += tile_cols;
    }
  }
}

template <Ahead kAhead, typename Product>
void DotRows(const GemmArgs& args, int rows, const typename Product::Input* x, int64_t x_stride, int64_t row,
             int64_t depth, int count, float* sums, int sums_stride) {
  using Fn =
      void (*)(const GemmArgs&, const typename Product::Input*, int64_t, int64_t, int64_t, int, float*, int);
  static constexpr Fn kByRows[kTileRows] = {DotRows<1, kAhead, Product>, DotRows<2, kAhead, Product>,
                                            DotRows<3, kAhead, Product>, DotRows<4, kAhead, Product>,
                                            DotRows<5, kAhead, Product>, DotRows<6, kAhead, Product>};
  kByRows[rows - 1](args, x, x_stride, row, depth, count, sums, sums_stride);
}

inline int64_t RoundUpTo(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Stretches of k as even as can be, of about `most` numbers; a multiple of every product's step.
inline int64_t StretchDepth(int64_t cols, int64_t most) {
  const int64_t stretches = (cols + most - 1) / most;
  return RoundUpTo((cols + stretches - 1) / stretches, 4 * kLanes);
}

// Columns [first, last) of all rows.
template <typename Product>
void ColumnsOf(const GemmArgs& args, Activations<typename Product::Input> x, int64_t first, int64_t last) {
  constexpr int kStride = kGemmBlock + kTileVecs;
  float sums[kTileRows * kStride], up[kTileRows * kStride];
  const int count = static_cast<int>(last - first);
  const RowGroups groups(args.n, kTileRows);
  // One tile of rows reads weights once, in order.
  const int64_t depth = StretchDepth(args.w.cols, groups.count == 1 ? args.w.cols : Product::kDepth);
  for (int64_t g = 0; g < groups.count; ++g) {
    const int64_t r = groups.First(g);
    const int rows = static_cast<int>(groups.First(g + 1) - r);
    const auto dot = r == 0 ? DotRows<Ahead::kFar, Product> : DotRows<Ahead::kNear, Product>;
    const auto* group = x.data + r * x.stride;
    dot(args, rows, group, x.stride, first, depth, count, sums, kStride);
    if (args.epilogue == Epilogue::kSwiGlu) {
      dot(args, rows, group, x.stride, args.w.rows / 2 + first, depth, count, up, kStride);
    }
    for (int i = 0; i < rows; ++i) {
      Finish(args, r + i, 1.0f, first, count, sums + i * kStride, up + i * kStride);
    }
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_TILE_SIMD_H_
