// The arguments of the transformer's numeric kernels (transformer_ops.h): plain data, so that files compiled
// for one instruction set may include it.
#ifndef GENRECALL_KERNELS_TRANSFORMER_ARGS_H_
#define GENRECALL_KERNELS_TRANSFORMER_ARGS_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace genrecall {

inline constexpr int kPageTokens = 64;  // tokens of a KV page = keys of an attention block

// A weight matrix [rows, cols]: y = x W^T; row-major, or, with row_sum, in panels (int8_panels.h). `data` is
// 64-byte aligned where it can be, and always with row_sum; cols is any positive number.
struct WeightMatrix {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  int64_t rows = 0;  // output features
  int64_t cols = 0;  // input features
  // kI8: weight (o, k) is data[o, k] * scale[o].
  const float* scale = nullptr;  // [rows]
  // Set: activations are quantised too, each row by its own scale, and products are exact integers (W8A8). It
  // holds the sum over k of data[o, k], by which kernels with an unsigned operand are corrected. Null: int8
  // weights are widened and meet activations as they are (W8A16).
  const int32_t* row_sum = nullptr;  // [rows]
  // Panels only: the rows are so many parts of equal size, each in panels of its own. kSwiGlu takes 2, all
  // others 1.
  int parts = 1;
};

// Columns of an int8 matrix at most: 2^7 2^7 cols stays an int32.
inline constexpr int64_t kMaxInt8Cols = 131071;

// What happens to the accumulator before it is stored.
enum class Epilogue : int {
  kStore = 0,   // y = acc + bias
  kAccumulate,  // y += acc + bias (residual stream)
  kSwiGlu,  // W holds gate rows then up rows (rows = 2 F); out[r, f] = silu(gate) * up, stored as T into y_t
            // [n, F]
};

struct GemmArgs {
  WeightMatrix w;
  DType x_dtype = DType::kF32;  // T, the activations' dtype: that of w, or any when w is kI8
  const void* x = nullptr;      // T [n, cols], row-major, row stride = cols
  int64_t n = 0;
  const float* bias = nullptr;  // [rows] or null
  Epilogue epilogue = Epilogue::kStore;
  float* y = nullptr;  // [n, ldy] (kStore, kAccumulate)
  int64_t ldy = 0;
  void* y_t = nullptr;  // T [n, rows / 2] (kSwiGlu)
};

// The keys and values of one layer of one sequence, in pages of kPageTokens tokens.
// A page's K block: kv_dtype [kv_heads, kPageTokens] vectors of head_dim (kv_vector.h); its V block likewise.
struct KvPages {
  void* const* k = nullptr;
  void* const* v = nullptr;
};

// Causal attention of `n` consecutive prompt rows at positions first_position.. over keys 0..own position
// (already appended).
struct PrefillAttentionArgs {
  DType dtype;                      // T, that of out
  DType kv_dtype;                   // that of dtype, or kI8
  int q_heads, kv_heads, head_dim;  // q_heads % kv_heads == 0
  float scale;
  const float* q;  // [n, q_heads, head_dim], RoPE applied; row stride q_stride floats
  int64_t q_stride;
  int n;
  int first_position;
  KvPages kv;
  void* out;  // T [n, q_heads * head_dim]
};

// Attention of the live beams of one request at generated position `tail_tokens - 1`: every beam reads the
// one shared prompt (prompt_tokens keys in pages) and its own ancestors, merged by log-sum-exp.
struct BeamAttentionArgs {
  DType dtype;     // T, that of out
  DType kv_dtype;  // that of dtype, or kI8
  int q_heads, kv_heads, head_dim;
  float scale;
  const float* q;  // [beams, q_heads, head_dim], row stride q_stride floats
  int64_t q_stride;
  int beams;
  int prompt_tokens;  // >= 1
  KvPages prompt;
  int tail_tokens;  // >= 1: generated positions, the current one included
  // tail_k[j]: kv_dtype [rows_j, kv_heads] vectors of head_dim, the rows written at generated position j.
  const void* const* tail_k;
  const void* const* tail_v;
  const int32_t* ancestor;  // [tail_tokens, beams]: row in tail j that beam b descends from
  void* out;                // T [beams, q_heads * head_dim]
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_TRANSFORMER_ARGS_H_
