// The row-wise kernels of TransformerOps, one set per ISA; contracts in transformer_ops.h.
#ifndef GENRECALL_KERNELS_ROW_KERNELS_H_
#define GENRECALL_KERNELS_ROW_KERNELS_H_

#include <cstdint>

#include "kernels/transformer_args.h"

namespace genrecall {

struct RowKernels {
  void (*rms_norm)(DType dtype, const float* x, const float* weight, float eps, int64_t n, int64_t dim,
                   void* y);
  void (*rope)(float* x, int64_t stride, int64_t n, int heads, int head_dim, const int32_t* position,
               const float* cos_sin);
  void (*convert)(DType dtype, const float* x, int64_t n, void* y);
  void (*max_sum_exp)(const float* x, int64_t n, int64_t cols, int64_t stride, float* m, float* s);
  void (*exp)(const float* x, int64_t n, float* y);
};

extern const RowKernels kScalarRowKernels, kAvx2RowKernels, kAvx512RowKernels;

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_ROW_KERNELS_H_
