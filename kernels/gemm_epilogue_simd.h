// What a gemm does with its sums, over the vectors of a simd_*.h, which the including file has included
// before it.
#ifndef GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_
#define GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_

#include "kernels/bf16_math_simd.h"
#include "kernels/transformer_args.h"
#include "kernels/vector_loop_simd.h"

namespace genrecall {
namespace {

inline Vec Silu(Vec x) { return Div(x, Add(Set1(1.0f), Exp(Sub(Zero(), x)))); }

// The epilogue of one row's columns [first, first + count); `up` is its second half of sums (kSwiGlu).
// x_scale: that of the row, where it was quantised, else 1.
inline void Finish(const GemmArgs& args, int64_t row, float x_scale, int64_t first, int count,
                   const float* sums, const float* up) {
  const int64_t half = args.w.rows / 2;
  const auto output = [&](const float* s, int64_t column, int64_t i, int lanes) {
    Vec sum = LoadPartial(s + i, lanes);
    if (args.w.scale != nullptr) {
      sum = Mul(Mul(sum, LoadPartial(args.w.scale + column + i, lanes)), Set1(x_scale));
    }
    return args.bias == nullptr ? sum : Add(sum, LoadPartial(args.bias + column + i, lanes));
  };
  ForVectors(count, [&](int64_t i, int lanes) {
    const Vec sum = output(sums, first, i, lanes);
    if (args.epilogue == Epilogue::kSwiGlu) {
      const Vec factor = output(up, half + first, i, lanes);
      const int64_t at = row * half + first + i;
      if (args.x_dtype == DType::kF32) {
        StorePartial(static_cast<float*>(args.y_t) + at, Mul(Silu(sum), factor), lanes);
      } else {
        StorePartial(static_cast<bf16*>(args.y_t) + at, Mul(SiluForBf16(sum), factor), lanes);
      }
    } else {
      float* y = args.y + row * args.ldy + first + i;
      StorePartial(y, args.epilogue == Epilogue::kStore ? sum : Add(LoadPartial(y, lanes), sum), lanes);
    }
  });
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_EPILOGUE_SIMD_H_
