// What a gemm does with its sums, over the vectors of a simd_*.h, which the including file has included
// before it.
#ifndef GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_
#define GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_

#include "kernels/transformer_args.h"

namespace genrecall {
namespace {

inline Vec Silu(Vec x) { return Div(x, Add(Set1(1.0f), Exp(Sub(Zero(), x)))); }

// The epilogue of one row's columns [first, first + count); `up` is its second half of sums (kSwiGlu).
template <typename T>
void Finish(const GemmArgs& args, int64_t row, int64_t first, int count, const float* sums, const float* up) {
  const int64_t half = args.w.rows / 2;
  const auto with_bias = [&](const float* s, int64_t column, int i, int lanes) {
    const Vec sum = LoadPartial(s + i, lanes);
    return args.bias == nullptr ? sum : Add(sum, LoadPartial(args.bias + column + i, lanes));
  };
  for (int i = 0; i < count; i += kLanes) {
    const int lanes = count - i < kLanes ? count - i : kLanes;
    const Vec sum = with_bias(sums, first, i, lanes);
    if (args.epilogue == Epilogue::kSwiGlu) {
      T* y = static_cast<T*>(args.y_t) + row * half + first + i;
      StorePartial(y, Mul(Silu(sum), with_bias(up, half + first, i, lanes)), lanes);
    } else {
      float* y = args.y + row * args.ldy + first + i;
      StorePartial(y, args.epilogue == Epilogue::kStore ? sum : Add(LoadPartial(y, lanes), sum), lanes);
    }
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_
