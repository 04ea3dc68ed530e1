// The way of a block of queries through the pages: prefill rows or beams of one KV head. `Block` is
// QueryBlock (query_block_simd.h) or one of its interface.
#ifndef GENRECALL_KERNELS_ATTENTION_SIMD_H_
#define GENRECALL_KERNELS_ATTENTION_SIMD_H_

#include "kernels/attention.h"
#include "kernels/kv_vector.h"

namespace genrecall {
namespace {

// T: of keys and values; Out: of the output.
template <typename Block, typename T, typename Out>
void PrefillOf(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  const int64_t stride = KvStride(static_cast<const T*>(nullptr), dim);
  const int rows = last_row - first_row;
  Block block(rows * group, dim);
  for (int i = 0; i < rows * group; ++i) {
    const int64_t row = first_row + i / group;
    block.SetQuery(i, args.q + row * args.q_stride + (kv_head * group + i % group) * dim, args.scale);
  }
  block.StartPages();
  const int keys = args.first_position + last_row;  // the last row sees them all
  for (int first = 0; first < keys; first += kPageTokens) {
    const int64_t page = first / kPageTokens, offset = kv_head * kPageTokens * stride;
    const int n = keys - first < kPageTokens ? keys - first : kPageTokens;
    block.Page(static_cast<const T*>(args.kv.k[page]) + offset,
               static_cast<const T*>(args.kv.v[page]) + offset, n,
               [&](int i) { return args.first_position + first_row + i / group + 1 - first; });
  }
  block.EndPages();
  for (int i = 0; i < rows * group; ++i) {
    const int64_t row = first_row + i / group;
    block.Finish(i, static_cast<Out*>(args.out) + (row * args.q_heads + kv_head * group + i % group) * dim);
  }
}

template <typename Block, typename T, typename Out>
void BeamsOf(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  const int64_t stride = KvStride(static_cast<const T*>(nullptr), dim);
  const int queries = (last_beam - first_beam) * group;
  Block block(queries, dim);
  for (int i = 0; i < queries; ++i) {
    const int64_t beam = first_beam + i / group;
    block.SetQuery(i, args.q + beam * args.q_stride + (kv_head * group + i % group) * dim, args.scale);
  }
  block.StartPages();
  for (int first = 0; first < args.prompt_tokens; first += kPageTokens) {
    const int64_t page = first / kPageTokens, offset = kv_head * kPageTokens * stride;
    const int n = args.prompt_tokens - first < kPageTokens ? args.prompt_tokens - first : kPageTokens;
    block.Page(static_cast<const T*>(args.prompt.k[page]) + offset,
               static_cast<const T*>(args.prompt.v[page]) + offset, n, [&](int) { return n; });
  }
  block.EndPages();
  for (int i = 0; i < queries; ++i) {
    const int64_t beam = first_beam + i / group;
    const auto tail = [&](const void* const* rows, int j) {
      const int64_t row = args.ancestor[int64_t{j} * args.beams + beam];
      return static_cast<const T*>(rows[j]) + (row * args.kv_heads + kv_head) * stride;
    };
    block.OwnKeys(
        i, args.tail_tokens, [&](int j) { return tail(args.tail_k, j); },
        [&](int j) { return tail(args.tail_v, j); });
    block.Finish(i, static_cast<Out*>(args.out) + (beam * args.q_heads + kv_head * group + i % group) * dim);
  }
}

template <typename Block>
void Prefill(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const bool f32 = args.dtype == DType::kF32;
  const auto run = args.kv_dtype == DType::kI8
                       ? (f32 ? PrefillOf<Block, int8_t, float> : PrefillOf<Block, int8_t, bf16>)
                       : (f32 ? PrefillOf<Block, float, float> : PrefillOf<Block, bf16, bf16>);
  run(args, kv_head, first_row, last_row);
}

template <typename Block>
void Beams(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const bool f32 = args.dtype == DType::kF32;
  const auto run = args.kv_dtype == DType::kI8
                       ? (f32 ? BeamsOf<Block, int8_t, float> : BeamsOf<Block, int8_t, bf16>)
                       : (f32 ? BeamsOf<Block, float, float> : BeamsOf<Block, bf16, bf16>);
  run(args, kv_head, first_beam, last_beam);
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_ATTENTION_SIMD_H_
