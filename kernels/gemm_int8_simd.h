// The gemm that multiplies int8 by int8 exactly, over the vectors of a simd_*.h and what an instruction set
// has for integers, both of which the including file has defined before it:
//
//   Input                packed activations are made of it; storing a Vec to Input* rounds
//   IntVec, kIntStep     int32 accumulators, and the products of one step
//   DotStep(acc, x, w)   acc plus the products of kIntStep activations and weights
//   LoadWeights, LoadWeightsPartial, LoadInputs
//   SumTile(acc, ...)    the exact sums of kTileVecs accumulators, as floats
#ifndef GENRECALL_KERNELS_GEMM_INT8_SIMD_H_
#define GENRECALL_KERNELS_GEMM_INT8_SIMD_H_

#include "kernels/gemm_tile_simd.h"
#include "kernels/quantize_simd.h"

namespace genrecall {
namespace {

template <int kRows>
inline void DotSteps(const Input* x, int64_t stride, const IntVec (&w)[kTileVecs],
                     IntVec (&acc)[kRows][kTileVecs]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const IntVec a = LoadInputs(x + r * stride);
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) acc[r][c] = DotStep(acc[r][c], a, w[c]);
  }
}

struct Int8Product {
  using Weight = int8_t;
  using Input = ::genrecall::Input;
  using Acc = IntVec;
  static constexpr int64_t kDepth = 2048 / int64_t{sizeof(Input)};

  template <int kRows, Ahead kAhead>
  static inline void Accumulate(const Input* x, int64_t stride, const WeightTile<int8_t>& w, int64_t cols,
                                IntVec (&acc)[kRows][kTileVecs]) {
    IntVec b[kTileVecs];
    int64_t k = 0;
    for (; k + kIntStep <= cols; k += kIntStep) {
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) {
        b[c] = LoadWeights(w.data + c * w.stride + k);
        Prefetch<kAhead>(w.next + c * w.stride + k);
      }
      DotSteps<kRows>(x + k, stride, b, acc);
    }
    if (k == cols) return;
    // Weights past the end are 0, whatever the packed activations hold there.
    for (int c = 0; c < kTileVecs; ++c) {
      b[c] = LoadWeightsPartial(w.data + c * w.stride + k, static_cast<int>(cols - k));
    }
    DotSteps<kRows>(x + k, stride, b, acc);
  }

  static void Finish(const IntVec (&acc)[kTileVecs], const WeightMatrix& w, int64_t row, float* sums) {
    SumTile(acc, w, row, sums);
  }
};

int64_t PackedStride(const GemmArgs& args) { return RoundUpTo(args.w.cols, kIntStep); }

// The rows, then their scales.
int64_t PackedRowBytes(const GemmArgs& args) { return args.n * PackedStride(args) * int64_t{sizeof(Input)}; }
int64_t PackedBytes(const GemmArgs& args) { return PackedRowBytes(args) + args.n * int64_t{sizeof(float)}; }

template <typename T>
void PackOf(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols, stride = PackedStride(args);
  float* scale = reinterpret_cast<float*>(static_cast<char*>(packed) + PackedRowBytes(args));
  for (int64_t r = first; r < last; ++r) {
    Input* to = static_cast<Input*>(packed) + r * stride;
    scale[r] = QuantizeRow(static_cast<const T*>(args.x) + r * cols, cols, stride,
                           [to](int64_t k, Vec v) { StoreInputs(to + k, v); });
  }
}

void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const auto pack = args.x_dtype == DType::kF32 ? PackOf<float> : PackOf<bf16>;
  pack(args, first, last, packed);
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const auto* scale = reinterpret_cast<const float*>(static_cast<const char*>(packed) + PackedRowBytes(args));
  ColumnsOf<Int8Product>(args, {static_cast<const Input*>(packed), PackedStride(args), scale}, first, last);
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_INT8_SIMD_H_
