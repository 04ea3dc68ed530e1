// The transformer's numeric kernels, one table per ISA. Knows no model, no index, no request.
//
// Invariance. Every output row depends only on its own input row (and the KV it reads), computed in an order
// that depends on neither the number of rows in the call, nor the row's place, nor the number of threads:
// within one ISA and dtype a row's result is bit-identical whatever else is in the batch. gemm: one
// accumulator chain over k per output. Attention: keys in blocks at absolute multiples of kPageTokens, so
// chunking a prefill changes nothing.
//
// dtype is that of activations entering a gemm, and, where these are not int8, of weights and KV;
// accumulation and everything between is float32. "T" below is float or bf16 as `dtype` says. A gemm that
// multiplies int8 by int8 (WeightMatrix::row_sum) quantises its activations row by row (quantize.h) and sums
// exactly, so that all ISAs agree bit for bit but for SwiGLU. Non-finite values in a row give
// non-finite values in that row, and nowhere else but, through its keys and values, in rows of the same
// sequence.
#ifndef GENRECALL_KERNELS_TRANSFORMER_OPS_H_
#define GENRECALL_KERNELS_TRANSFORMER_OPS_H_

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/thread_pool.h"
#include "kernels/transformer_args.h"

namespace genrecall {

// One table of functions per ISA. All are thread-safe; those that take a pool use it.
struct TransformerOps {
  CpuIsa isa;
  void (*gemm)(const GemmArgs& args, ThreadPool* pool);
  // y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; x float [n, dim], y T [n, dim]. float y may be x.
  void (*rms_norm)(DType dtype, const float* x, const float* weight, float eps, int64_t n, int64_t dim,
                   void* y);
  // In place on `heads` heads of each row (row stride `stride` floats), half-split layout (Qwen2, GPT-NeoX):
  // pairs (i, i + head_dim/2), angle position[r] * inv_freq[i]. cos_sin: [max_position, head_dim]
  // precomputed: cos for i < head_dim/2, then sin.
  void (*rope)(float* x, int64_t stride, int64_t n, int heads, int head_dim, const int32_t* position,
               const float* cos_sin);
  // Writes key and value rows [n, kv_heads, head_dim] floats (row stride `stride`) as vectors of that dtype
  // (kv_vector.h) into pages at positions first_position.. .
  void (*kv_append)(DType dtype, const float* k, const float* v, int64_t stride, int n, int kv_heads,
                    int head_dim, int first_position, KvPages pages);
  // n floats -> a vector of that dtype; for kI8 n numbers, then their scale (kv_vector.h).
  void (*convert)(DType dtype, const float* x, int64_t n, void* y);
  void (*prefill_attention)(const PrefillAttentionArgs& args, ThreadPool* pool);
  void (*beam_attention)(const BeamAttentionArgs& args, ThreadPool* pool);
  // m[r] = max_j x[r, j], s[r] = sum_j exp(x[r, j] - m[r]) (float accumulation, fixed order).
  void (*max_sum_exp)(const float* x, int64_t n, int64_t cols, int64_t stride, float* m, float* s);
  // y[i] = e^x[i] within 2 ulp: the exp of softmax and SiLU; results stored as bf16 may come of a coarser one
  // (bf16_math_simd.h). Below -87.3365 (-inf too): 0; capped above 88.37626; NaN stays NaN.
  void (*exp)(const float* x, int64_t n, float* y);
};

// Tables of ISAs this build has; null when it was not compiled in. The machine must support it to call it.
const TransformerOps* TransformerOpsFor(CpuIsa isa);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_TRANSFORMER_OPS_H_
