// y = epilogue(x W^T + bias): how a gemm is split over threads, and what an ISA provides for it.
#ifndef GENRECALL_KERNELS_GEMM_H_
#define GENRECALL_KERNELS_GEMM_H_

#include <cstdint>

#include "kernels/transformer_args.h"

namespace genrecall {

class ThreadPool;

inline constexpr int kGemmBlock = 256;  // columns a call of GemmKernel::columns computes at most

// An ISA's gemm. A "column" is an output feature: [0, w.rows), or [0, w.rows / 2) for kSwiGlu.
// Each output is one accumulation over k in an order that depends only on the ISA, the dtype and w.cols.
struct GemmKernel {
  // Bytes of scratch that hold the activations in the layout `columns` reads; 0: it reads args.x.
  int64_t (*packed_bytes)(const GemmArgs& args);
  // Packs rows [first, last); `first` is a multiple of pack_grain.
  void (*pack)(const GemmArgs& args, int64_t first, int64_t last, void* packed);
  // Computes columns [first, last) of all rows: at most kGemmBlock; `first` is a multiple of column_grain.
  void (*columns)(const GemmArgs& args, const void* packed, int64_t first, int64_t last);
  int64_t pack_grain;
  int64_t column_grain;
  // `columns` reads weights once, however many the rows, and fetches them ahead. So its blocks need not fit a
  // cache, and are better long.
  bool streams_weights = false;
};

extern const GemmKernel kScalarGemm, kAvx2Gemm, kAvx512Gemm, kAvx512Bf16Gemm, kAmxGemm;
// For int8 weights with row_sum, whose products with quantised activations are exact: `pack` quantises them.
extern const GemmKernel kScalarInt8Gemm, kAvx2Int8Gemm, kAvxVnniInt8Gemm, kVnniInt8Gemm, kAmxInt8Gemm;

// Threads share out the columns, so no output is summed by two of them.
void RunGemm(const GemmKernel& kernel, const GemmArgs& args, ThreadPool* pool);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_H_
