// Softmax attention over paged keys and values: how it is split over threads, and what an ISA provides for
// it.
#ifndef GENRECALL_KERNELS_ATTENTION_H_
#define GENRECALL_KERNELS_ATTENTION_H_

#include <cstdint>

#include "kernels/transformer_args.h"

namespace genrecall {

class ThreadPool;

// An ISA's attention, for one KV head and its group of q_heads / kv_heads query heads. For every (row, query
// head) the keys come in blocks of one page, ascending; a running maximum, sum and output are rescaled after
// each block.
struct AttentionKernel {
  void (*prefill)(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row);
  // After the prompt's pages, the beam's own tail is one more block of tail_tokens keys.
  void (*beams)(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam);
};

extern const AttentionKernel kScalarAttention, kAvx2Attention, kAvx512Attention, kAmxAttention;

void RunPrefillAttention(const AttentionKernel& kernel, const PrefillAttentionArgs& args, ThreadPool* pool);
void RunBeamAttention(const AttentionKernel& kernel, const BeamAttentionArgs& args, ThreadPool* pool);

// Writes vectors by RowKernels::convert. Contract in transformer_ops.h.
using ConvertVector = void (*)(DType dtype, const float* x, int64_t n, void* y);
void KvAppend(ConvertVector convert, DType dtype, const float* k, const float* v, int64_t stride, int n,
              int kv_heads, int head_dim, int first_position, KvPages pages);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_ATTENTION_H_
