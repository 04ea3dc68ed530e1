// The gemms that multiply floats, over the vectors of a simd_*.h, which the including file has included
// before it: float32 weights, bf16 weights, and int8 weights that are widened.
//
// Order of accumulation: step by step along k an output's accumulator takes one fused multiply-add per kLanes
// products. float32 and int8 weights meet float activations in order. bf16 takes 2 kLanes numbers a step, the
// even ones, then the odd ones; activations are widened and split alike once per gemm (Pack), so that the
// inner loop converts nothing but weights.
#ifndef GENRECALL_KERNELS_GEMM_SIMD_H_
#define GENRECALL_KERNELS_GEMM_SIMD_H_

#include "kernels/gemm_tile_simd.h"

namespace genrecall {
namespace {

template <int kRows>
inline void MultiplyAdd(const float* x, int64_t stride, const Vec (&w)[kTileVecs],
                        Vec (&acc)[kRows][kTileVecs]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Vec a = Load(x + r * stride);
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) AddProduct(acc[r][c], a, w[c]);
  }
}

// The same pointer, of which the compiler does not know so: what was loaded by it before is loaded again, and
// no register held for it meanwhile.
inline const bf16* Again(const bf16* p) {
  __asm__("" : "+r"(p));
  return p;
}

struct FloatProduct {
  using Input = float;
  using Acc = Vec;
  static constexpr int64_t kDepth = 896;  // leaves a cache of 32 KiB room for weights
  static void Finish(const Vec (&acc)[kTileVecs], float* sums) { SumTile(acc, sums); }
};

// Weights float or int8_t, in order.
template <typename W>
struct InOrder : FloatProduct {
  using Weight = W;

  template <int kRows, Ahead kAhead>
  static inline void Accumulate(const float* x, int64_t stride, const WeightTile<W>& w, int64_t cols,
                                Vec (&acc)[kRows][kTileVecs]) {
    Vec b[kTileVecs];
    int64_t k = 0;
    for (; k + kLanes <= cols; k += kLanes) {
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) {
        b[c] = Load(w.data + c * w.stride + k);
        Prefetch<kAhead>(w.next + c * w.stride + k);
      }
      MultiplyAdd<kRows>(x + k, stride, b, acc);
    }
    const int left = static_cast<int>(cols - k);
    if (left == 0) return;
    // Unrolled like all that touches accumulators: an index that is not a constant keeps them in memory.
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) b[c] = LoadPartial(w.data + c * w.stride + k, left);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec a = LoadPartial(x + r * stride + k, left);
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) AddProduct(acc[r][c], a, b[c]);
    }
  }
};

struct Bf16Pairs : FloatProduct {
  using Weight = bf16;

  template <int kRows, Ahead kAhead>
  static inline void Accumulate(const float* x, int64_t stride, const WeightTile<bf16>& w, int64_t cols,
                                Vec (&acc)[kRows][kTileVecs]) {
    int64_t k = 0;
    for (; k + 2 * kLanes <= cols; k += 2 * kLanes) {
      Vec b[kTileVecs];
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) {
        b[c] = LoadEven(w.data + c * w.stride + k);
        Prefetch<kAhead>(w.next + c * w.stride + k);
      }
      MultiplyAdd<kRows>(x + k, stride, b, acc);
      const bf16* again = Again(w.data + k);
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) b[c] = LoadOdd(again + c * w.stride);
      MultiplyAdd<kRows>(x + k + kLanes, stride, b, acc);
    }
    const int left = static_cast<int>(cols - k);
    if (left == 0) return;
    Vec even[kTileVecs], odd[kTileVecs];
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) {
      LoadPairsPartial(w.data + c * w.stride + k, left, &even[c], &odd[c]);
    }
    MultiplyAdd<kRows>(x + k, stride, even, acc);  // packed activations are 0 past the end
    MultiplyAdd<kRows>(x + k + kLanes, stride, odd, acc);
  }
};

int64_t PackedStride(const GemmArgs& args) {
  if (args.x_dtype == DType::kF32) return 0;  // read where they are
  return RoundUpTo(args.w.cols, 2 * kLanes);
}

int64_t PackedBytes(const GemmArgs& args) { return args.n * PackedStride(args) * int64_t{sizeof(float)}; }

// bf16 activations as floats: in order for int8 weights, else split into even and odd k, step by step.
void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols, stride = PackedStride(args);
  const bool in_order = args.w.dtype == DType::kI8;
  for (int64_t r = first; r < last; ++r) {
    const bf16* x = static_cast<const bf16*>(args.x) + r * cols;
    float* to = static_cast<float*>(packed) + r * stride;
    for (int64_t k = 0; k < cols; k += 2 * kLanes) {
      const int left = static_cast<int>(cols - k < 2 * kLanes ? cols - k : 2 * kLanes);
      Vec low, high;
      if (in_order) {
        low = LoadPartial(x + k, left < kLanes ? left : kLanes);
        high = LoadPartial(x + k + kLanes, left < kLanes ? 0 : left - kLanes);
      } else if (left == 2 * kLanes) {
        low = LoadEven(x + k);
        high = LoadOdd(x + k);
      } else {
        LoadPairsPartial(x + k, left, &low, &high);
      }
      Store(to + k, low);
      Store(to + k + kLanes, high);
    }
  }
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const Activations<float> x =
      args.x_dtype == DType::kF32 ? Activations<float>{static_cast<const float*>(args.x), args.w.cols}
                                  : Activations<float>{static_cast<const float*>(packed), PackedStride(args)};
  switch (args.w.dtype) {
    case DType::kF32:
      return ColumnsOf<InOrder<float>>(args, x, first, last);
    case DType::kBF16:
      return ColumnsOf<Bf16Pairs>(args, x, first, last);
    case DType::kI8:
      return ColumnsOf<InOrder<int8_t>>(args, x, first, last);
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_SIMD_H_
