// A decoder's weights as the forward pass reads them. Knows no request and no kernel.
#ifndef GENRECALL_TRTLLM_BRIDGE_WEIGHTS_H_
#define GENRECALL_TRTLLM_BRIDGE_WEIGHTS_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/gguf.h"
#include "kernels/status.h"
#include "kernels/transformer_ops.h"
#include "trtllm_bridge/model_config.h"

namespace genrecall {

// Norm weights and biases are float32 whatever the dtype of the matrices.
struct LayerWeights {
  std::vector<float> attn_norm;  // [D]
  WeightMatrix qkv;              // [q_dim + 2 kv_dim, D]: query rows, key rows, value rows
  std::vector<float> qkv_bias;   // [q_dim + 2 kv_dim] or empty
  std::vector<float> q_norm;     // [head_dim] or empty
  std::vector<float> k_norm;
  WeightMatrix attn_out;        // [D, q_dim]
  std::vector<float> ffn_norm;  // [D]
  WeightMatrix gate_up;         // [2 F, D]: gate rows, then up rows
  WeightMatrix down;            // [D, F]
};

// Immutable once loaded; shared by every request.
class DecoderWeights {
 public:
  // Errors name the file and the tensor: missing, unexpected, of another shape or dtype than its
  // neighbours. Matrices that lie side by side in the file (checkpoint.convert writes q, k, v and gate,
  // up so) are read where they are and the file's bytes are kept; else all are copied, and the file is let
  // go tensor by tensor: weights are held once either way, also while they are loaded. In a quantised file a
  // layer's matrices may be I8, each with a vector NAME.scale (for NAME.weight) of a finite scale >= 0 for
  // every row; those of a W8A8 file are always copied, into panels (int8_panels.h).
  static Result<std::shared_ptr<const DecoderWeights>> Load(std::shared_ptr<const GgufFile> file);

  DecoderWeights(const DecoderWeights&) = delete;
  DecoderWeights& operator=(const DecoderWeights&) = delete;

  const DecoderConfig& config() const { return config_; }
  const SidTokens& sid_tokens() const { return sid_tokens_; }
  DType dtype() const { return embedding_.dtype; }  // of all that is not int8
  Quantization quantization() const { return quantization_; }
  DType kv_dtype() const { return int8_kv_ ? DType::kI8 : dtype(); }
  const std::string& digest() const {
    return digest_;
  }  // names the weights: genrecall.weights_digest, else the checksum
  int64_t bytes() const { return bytes_; }

  const WeightMatrix& embedding() const { return embedding_; }  // [V, D]
  const WeightMatrix& head() const { return head_; }            // [V, D]; the embedding when tied
  const WeightMatrix& level_head(int l) const {
    return level_head_[l];
  }  // [C_l, D]: the head's rows of level l's codes
  const LayerWeights& layer(int i) const { return layers_[i]; }
  const std::vector<float>& final_norm() const { return final_norm_; }  // [D]

 private:
  friend class WeightsLoader;
  DecoderWeights() = default;

  DecoderConfig config_;
  SidTokens sid_tokens_;
  Quantization quantization_ = Quantization::kNone;
  bool int8_kv_ = false;
  std::string digest_;
  int64_t bytes_ = 0;
  WeightMatrix embedding_, head_;
  std::vector<WeightMatrix> level_head_;
  std::vector<LayerWeights> layers_;
  std::vector<float> final_norm_;
  std::shared_ptr<const GgufFile> file_;                            // when matrices are read in place
  std::vector<std::unique_ptr<uint8_t, void (*)(void*)>> buffers_;  // 64-byte aligned copies
};

// genrecall.weights_digest, or the file's checksum in words when a user's own file has none.
std::string WeightsDigest(const GgufFile& file);

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_WEIGHTS_H_
