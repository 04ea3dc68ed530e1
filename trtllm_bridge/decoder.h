// The forward pass of a Qwen2 / Qwen3 decoder over the rows of many requests at once. Knows no scheduling
// and no beam search.
#ifndef GENRECALL_TRTLLM_BRIDGE_DECODER_H_
#define GENRECALL_TRTLLM_BRIDGE_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/thread_pool.h"
#include "kernels/transformer_ops.h"
#include "trtllm_bridge/kv_cache.h"
#include "trtllm_bridge/weights.h"

namespace genrecall {

// Some consecutive rows of one request in a step: a chunk of its prompt, or some of its live beams at one
// generated position.
struct RowBlock {
  const int32_t* tokens = nullptr;  // [n]
  int n = 0;
  int unread = 0;            // prompt: nobody asks for the hidden states of the first so many rows
  SequenceKv* kv = nullptr;  // the prompt's pages; for beams also the tails, the current one added already
  int first_row = 0;         // prompt: position of tokens[0]; beams: row of the current tail
  bool prefill = true;
  // Beams: [tails, n], the row of tail j that beam i descends from (BeamSearch::ancestors, these n columns).
  const int32_t* ancestor = nullptr;
};

// The four places of a layer where activations enter gemms.
enum class GemmInput : int { kAttnNorm = 0, kAttnOutput, kFfnNorm, kFfnDown };
inline constexpr int kGemmInputs = 4;

// Sees activations T [n, dim] as they enter layer `layer`'s gemms: how quantisation is calibrated.
using GemmObserver = std::function<void(int layer, GemmInput input, const void* x, int64_t n, int64_t dim)>;

// Memory for a step is allocated once, here; so one Decoder runs one step at a time.
class Decoder {
 public:
  // max_positions: prompt and generated tokens. The ISA's table must outlive the decoder.
  Decoder(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops, int max_rows,
          int max_positions);

  KvShape kv_shape() const;
  // Memory of a step: the buffers below, and what the kernels keep for a gemm's activations.
  int64_t step_bytes() const;

  // Called in every Forward from now on.
  void Observe(GemmObserver observer) { observer_ = std::move(observer); }

  // All layers over all rows (at most max_rows), in the same gemms; keys and values go to each block's kv.
  // The hidden states of the rows that are read stay until the next Forward, numbered in the order of the
  // blocks; of the others the last layer computes keys and values, and nothing that follows from them.
  void Forward(const std::vector<RowBlock>& blocks, ThreadPool* pool);

  // Final-norms `n` rows of the last Forward, which the calls below then number 0..n-1. Returns them as T
  // [n, D].
  const void* SelectRows(const int32_t* rows, int n, ThreadPool* pool);
  // Final-normed hidden state of selected row `row`: [D].
  void HiddenState(int row, float* out) const;
  // y[i] = the head's logits of level `level`'s codes for selected row first + i: [n, C_level].
  void LevelLogits(int level, int first, int n, float* y, ThreadPool* pool);
  // out[i] = log sum exp over the whole vocabulary of logits / temperature[i] for selected row first + i.
  void VocabLogSumExp(int first, int n, const float* temperature, float* out, ThreadPool* pool);
  // y: [n, V].
  void VocabLogits(int first, int n, float* y, ThreadPool* pool);

 private:
  void Embed(const std::vector<RowBlock>& blocks);
  void Attention(int layer, const std::vector<RowBlock>& blocks, ThreadPool* pool);
  void DropUnread(const std::vector<RowBlock>& blocks);
  bool IsLast(int layer) const { return layer == config_.layers - 1; }
  void NormAndRotateHeads(const LayerWeights& layer, int64_t first, int64_t last);
  void AppendKeysValues(int layer, const RowBlock& block, int64_t row);
  void RmsNorm(const float* x, const std::vector<float>& weight, int64_t n, void* y, ThreadPool* pool);
  void Gemm(const WeightMatrix& w, const void* x, int64_t n, float* y, Epilogue epilogue, const float* bias,
            ThreadPool* pool);

  void Show(int layer, GemmInput input, const std::vector<uint8_t>& x, int64_t dim) const {
    if (observer_) observer_(layer, input, x.data(), n_, dim);
  }

  std::shared_ptr<const DecoderWeights> weights_;
  const TransformerOps* ops_;
  const DecoderConfig& config_;
  DType dtype_;
  GemmObserver observer_;
  int max_rows_;
  std::vector<float> cos_sin_;  // [max_positions, head_dim]
  int n_ = 0;  // rows of the last Forward: all, from the last layer's attention on those read
  std::vector<int32_t> position_;  // [max_rows]
  std::vector<float> x_;           // [max_rows, D] residual stream
  std::vector<float> qkv_;         // [max_rows, q_dim + 2 kv_dim]
  std::vector<float> gathered_;    // [max_rows, D] selected rows
  std::vector<float> vocab_;       // [max_rows, kVocabChunk], when somebody normalises over the vocabulary
  std::vector<float> vocab_max_, vocab_sum_;  // [rows], likewise
  // T buffers:
  std::vector<uint8_t> normed_;    // [max_rows, D]
  std::vector<uint8_t> attended_;  // [max_rows, q_dim]
  std::vector<uint8_t> ffn_;       // [max_rows, F]
  std::vector<uint8_t> selected_;  // [max_rows, D]
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_DECODER_H_
