// The transformer's numeric kernels, one table per ISA. Knows no model, no index, no request.
//
// Invariance. Every output row depends only on its own input row (and the KV it reads), computed in an order that depends on
// neither the number of rows in the call, nor the row's place, nor the number of threads: within one ISA and dtype a row's result
// is bit-identical whatever else is in the batch. gemm: one accumulator chain over k per output. Attention: keys in blocks at
// absolute multiples of kPageTokens, so chunking a prefill changes nothing.
//
// dtype is that of weights, activations entering a gemm, and KV; accumulation and everything between is float32.
// "T" below is float or bf16 as `dtype` says.
#ifndef GENRECALL_KERNELS_TRANSFORMER_OPS_H_
#define GENRECALL_KERNELS_TRANSFORMER_OPS_H_

#include <cstdint>

#include "kernels/cpu_isa.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace genrecall {

inline constexpr int kPageTokens = 64;  // tokens of a KV page = keys of an attention block

// A row-major weight matrix [rows, cols]: y = x W^T. `data` is 64-byte aligned where it can be; cols is any positive number.
struct WeightMatrix {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  int64_t rows = 0;  // output features
  int64_t cols = 0;  // input features
};

// What happens to the accumulator before it is stored.
enum class Epilogue : int {
  kStore = 0,     // y = acc + bias
  kAccumulate,    // y += acc + bias (residual stream)
  kSwiGlu,        // W holds gate rows then up rows (rows = 2 F); out[r, f] = silu(gate) * up, stored as T into y_t [n, F]
};

struct GemmArgs {
  WeightMatrix w;
  const void* x = nullptr;      // T [n, cols], row-major, row stride = cols
  int64_t n = 0;
  const float* bias = nullptr;  // [rows] or null
  Epilogue epilogue = Epilogue::kStore;
  float* y = nullptr;           // [n, ldy] (kStore, kAccumulate)
  int64_t ldy = 0;
  void* y_t = nullptr;          // T [n, rows / 2] (kSwiGlu)
};

// The keys and values of one layer of one sequence, in pages of kPageTokens tokens.
// A page's K block: T [kv_heads, kPageTokens, head_dim]; its V block likewise.
struct KvPages {
  void* const* k = nullptr;
  void* const* v = nullptr;
};

// Causal attention of `n` consecutive prompt rows at positions first_position.. over keys 0..own position (already appended).
struct PrefillAttentionArgs {
  DType dtype;
  int q_heads, kv_heads, head_dim;  // q_heads % kv_heads == 0
  float scale;
  const float* q;  // [n, q_heads, head_dim], RoPE applied; row stride q_stride floats
  int64_t q_stride;
  int n;
  int first_position;
  KvPages kv;
  void* out;       // T [n, q_heads * head_dim]
};

// Attention of the live beams of one request at generated position `tail_tokens - 1`: every beam reads the one shared prompt
// (prompt_tokens keys in pages) and its own ancestors, merged by log-sum-exp.
struct BeamAttentionArgs {
  DType dtype;
  int q_heads, kv_heads, head_dim;
  float scale;
  const float* q;  // [beams, q_heads, head_dim], row stride q_stride floats
  int64_t q_stride;
  int beams;
  int prompt_tokens;  // >= 1
  KvPages prompt;
  int tail_tokens;    // >= 1: generated positions, the current one included
  // tail_k[j]: T [rows_j, kv_heads, head_dim], the rows written at generated position j.
  const void* const* tail_k;
  const void* const* tail_v;
  const int32_t* ancestor;  // [tail_tokens, beams]: row in tail j that beam b descends from
  void* out;          // T [beams, q_heads * head_dim]
};

// One table of functions per ISA. All are thread-safe; those that take a pool use it.
struct TransformerOps {
  CpuIsa isa;
  void (*gemm)(const GemmArgs& args, ThreadPool* pool);
  // y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; x float [n, dim], y T [n, dim].
  void (*rms_norm)(DType dtype, const float* x, const float* weight, float eps, int64_t n, int64_t dim, void* y);
  // In place on `heads` heads of each row (row stride `stride` floats), half-split layout (Qwen2, GPT-NeoX): pairs
  // (i, i + head_dim/2), angle position[r] * inv_freq[i].
  // cos_sin: [max_position, head_dim] precomputed: cos for i < head_dim/2, then sin.
  void (*rope)(float* x, int64_t stride, int64_t n, int heads, int head_dim, const int32_t* position,
               const float* cos_sin);
  // Writes key rows [n, kv_heads, head_dim] floats (row stride `stride`) as T into pages at positions first_position.. .
  void (*kv_append)(DType dtype, const float* k, const float* v, int64_t stride, int n, int kv_heads, int head_dim,
                    int first_position, KvPages pages);
  // float -> T
  void (*convert)(DType dtype, const float* x, int64_t n, void* y);
  void (*prefill_attention)(const PrefillAttentionArgs& args, ThreadPool* pool);
  void (*beam_attention)(const BeamAttentionArgs& args, ThreadPool* pool);
  // m[r] = max_j x[r, j], s[r] = sum_j exp(x[r, j] - m[r]) (float accumulation, fixed order).
  void (*max_sum_exp)(const float* x, int64_t n, int64_t cols, int64_t stride, float* m, float* s);
};

// Tables of ISAs this build has; null when it was not compiled in. The machine must support it to call it.
const TransformerOps* TransformerOpsFor(CpuIsa isa);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_TRANSFORMER_OPS_H_
