// The gemm over the vectors of a simd_*.h, which the including file has included before it.
//
// Order of accumulation, the same for every shape of tile: an output has one vector accumulator; step by step
// along k it takes one fused multiply-add per kLanes products, and its lanes are summed once at the end.
// float32 reads activations as they are. bf16 takes 2 kLanes numbers a step, the even ones, then the odd
// ones; activations are widened and split alike once per gemm (Pack), so that the inner loop converts nothing
// but weights.
#ifndef GENRECALL_KERNELS_GEMM_SIMD_H_
#define GENRECALL_KERNELS_GEMM_SIMD_H_

#include "kernels/gemm.h"
#include "kernels/gemm_epilogue_simd.h"
#include "kernels/scratch.h"

namespace genrecall {
namespace {

// Numbers of an activation row that stay in the first-level cache, kTileRows at a time; a multiple of every
// step.
constexpr int64_t kDepth = 1024;

// Activations as the tiles read them: rows of floats.
struct Activations {
  const float* data;
  int64_t stride;
};

template <int kRows>
using Accumulators = Vec[kRows][kTileVecs];

template <int kRows>
inline void MultiplyAdd(const float* x, int64_t stride, const Vec (&w)[kTileVecs], Accumulators<kRows>& acc) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Vec a = Load(x + r * stride);
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) acc[r][c] = Fma(a, w[c], acc[r][c]);
  }
}

// acc[r][c] += x[r] . w[c] over `cols` numbers; w_ahead: from a weight to the one the next tile reads in its
// place.
template <int kRows>
inline void Accumulate(Activations x, const float* const (&w)[kTileVecs], int64_t cols, int64_t w_ahead,
                       Accumulators<kRows>& acc) {
  Vec b[kTileVecs];
  int64_t k = 0;
  for (; k + kLanes <= cols; k += kLanes) {
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) {
      b[c] = Load(w[c] + k);
      Prefetch(w[c] + w_ahead + k);
    }
    MultiplyAdd<kRows>(x.data + k, x.stride, b, acc);
  }
  const int left = static_cast<int>(cols - k);
  if (left == 0) return;
  for (int c = 0; c < kTileVecs; ++c) b[c] = LoadPartial(w[c] + k, left);
  for (int r = 0; r < kRows; ++r) {
    const Vec a = LoadPartial(x.data + r * x.stride + k, left);
    for (int c = 0; c < kTileVecs; ++c) acc[r][c] = Fma(a, b[c], acc[r][c]);
  }
}

template <int kRows>
inline void Accumulate(Activations x, const bf16* const (&w)[kTileVecs], int64_t cols, int64_t w_ahead,
                       Accumulators<kRows>& acc) {
  Vec even[kTileVecs], odd[kTileVecs];
  int64_t k = 0;
  for (; k + 2 * kLanes <= cols; k += 2 * kLanes) {
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) {
      LoadPairs(w[c] + k, &even[c], &odd[c]);
      Prefetch(w[c] + w_ahead + k);
    }
    MultiplyAdd<kRows>(x.data + k, x.stride, even, acc);
    MultiplyAdd<kRows>(x.data + k + kLanes, x.stride, odd, acc);
  }
  const int left = static_cast<int>(cols - k);
  if (left == 0) return;
  for (int c = 0; c < kTileVecs; ++c) LoadPairsPartial(w[c] + k, left, &even[c], &odd[c]);
  MultiplyAdd<kRows>(x.data + k, x.stride, even, acc);  // packed activations are 0 past the end
  MultiplyAdd<kRows>(x.data + k + kLanes, x.stride, odd, acc);
}

// sums[r][c] = x[r] . w[c] for kRows rows and c in [0, count); writes up to kTileVecs - 1 more columns. Where
// rows are long, `depth` < cols keeps the activations in the first-level cache: all columns take one stretch
// of k, then the next, and accumulators wait in between.
template <int kRows, typename T>
void DotRows(Activations x, const T* w, int64_t cols, int64_t depth, int count, float* sums,
             int sums_stride) {
  constexpr int kTile = kRows * kTileVecs;
  Vec* waiting = nullptr;
  if (depth < cols) {
    const int64_t tiles = (count + kTileVecs - 1) / kTileVecs;
    waiting = static_cast<Vec*>(ThreadScratch(ScratchArea::kTask, tiles * kTile * int64_t{sizeof(Vec)}));
  }
  for (int64_t k = 0; k < cols; k += depth) {
    const bool last = k + depth >= cols;
    for (int c = 0; c < count; c += kTileVecs) {
      const T* rows[kTileVecs];
      for (int i = 0; i < kTileVecs; ++i) rows[i] = w + (c + i < count ? c + i : c) * cols + k;
      Accumulators<kRows> acc;
      Vec* parked = waiting + int64_t{c} * kRows;
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kTileVecs; ++i) acc[r][i] = k == 0 ? Zero() : parked[r * kTileVecs + i];
      }
      Accumulate<kRows>({x.data + k, x.stride}, rows, last ? cols - k : depth, kTileVecs * cols, acc);
      for (int r = 0; r < kRows; ++r) {
        if (last) {
          SumTile(acc[r], sums + r * sums_stride + c);
        } else {
          for (int i = 0; i < kTileVecs; ++i) parked[r * kTileVecs + i] = acc[r][i];
        }
      }
    }
  }
}

template <typename T>
void DotRows(Activations x, int rows, const T* w, int64_t cols, int64_t depth, int count, float* sums,
             int sums_stride) {
  using Fn = void (*)(Activations, const T*, int64_t, int64_t, int, float*, int);
  static constexpr Fn kByRows[kTileRows] = {DotRows<1, T>, DotRows<2, T>, DotRows<3, T>,
                                            DotRows<4, T>, DotRows<5, T>, DotRows<6, T>};
  kByRows[rows - 1](x, w, cols, depth, count, sums, sums_stride);
}

template <typename T>
void ColumnsOf(const GemmArgs& args, Activations x, int64_t first, int count) {
  constexpr int kStride = kGemmBlock + kTileVecs;
  float sums[kTileRows * kStride], up[kTileRows * kStride];
  const int64_t cols = args.w.cols;
  const T* w = static_cast<const T*>(args.w.data) + first * cols;
  const int64_t depth =
      args.n <= kTileRows ? cols : kDepth;  // one tile of rows: weights are read once, in order
  for (int64_t r = 0; r < args.n; r += kTileRows) {
    const int rows = static_cast<int>(args.n - r < kTileRows ? args.n - r : kTileRows);
    const Activations xr = {x.data + r * x.stride, x.stride};
    DotRows(xr, rows, w, cols, depth, count, sums, kStride);
    if (args.epilogue == Epilogue::kSwiGlu) {
      DotRows(xr, rows, w + args.w.rows / 2 * cols, cols, depth, count, up, kStride);
    }
    for (int i = 0; i < rows; ++i) Finish<T>(args, r + i, first, count, sums + i * kStride, up + i * kStride);
  }
}

int64_t PackedStride(int64_t cols) { return (cols + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes); }

int64_t PackedBytes(const GemmArgs& args) {
  return args.w.dtype == DType::kF32 ? 0 : args.n * PackedStride(args.w.cols) * int64_t{sizeof(float)};
}

void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols, stride = PackedStride(cols);
  for (int64_t r = first; r < last; ++r) {
    const bf16* x = static_cast<const bf16*>(args.x) + r * cols;
    float* to = static_cast<float*>(packed) + r * stride;
    for (int64_t k = 0; k < cols; k += 2 * kLanes) {
      Vec even, odd;
      if (cols - k >= 2 * kLanes) {
        LoadPairs(x + k, &even, &odd);
      } else {
        LoadPairsPartial(x + k, static_cast<int>(cols - k), &even, &odd);
      }
      Store(to + k, even);
      Store(to + k + kLanes, odd);
    }
  }
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  if (args.w.dtype == DType::kF32) {
    ColumnsOf<float>(args, {static_cast<const float*>(args.x), args.w.cols}, first,
                     static_cast<int>(last - first));
  } else {
    ColumnsOf<bf16>(args, {static_cast<const float*>(packed), PackedStride(args.w.cols)}, first,
                    static_cast<int>(last - first));
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_SIMD_H_
