// The hyper-parameters of a decoder, read from a GGUF file's metadata and checked. Knows no tensor and no
// request.
#ifndef GENRECALL_TRTLLM_BRIDGE_MODEL_CONFIG_H_
#define GENRECALL_TRTLLM_BRIDGE_MODEL_CONFIG_H_

#include <string>
#include <vector>

#include "kernels/gguf.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

// A Qwen2 / Qwen3 decoder: RMSNorm, RoPE (half-split), grouped-query attention, SwiGLU.
struct DecoderConfig {
  std::string architecture;  // "qwen2" | "qwen3"
  int layers = 0;
  int hidden = 0;  // D
  int ffn = 0;     // F
  int q_heads = 0;
  int kv_heads = 0;  // divides q_heads
  int head_dim = 0;  // even
  int vocab = 0;     // V: rows of the embedding, padding included
  int context_length = 0;
  float rms_eps = 0;
  float rope_base = 0;
  bool qk_norm = false;  // Qwen3: RMSNorm of every query and key head

  int q_dim() const { return q_heads * head_dim; }
  int kv_dim() const { return kv_heads * head_dim; }
  int qkv_dim() const { return q_dim() + 2 * kv_dim(); }
};

// Metadata as llama.cpp names it ("qwen2.block_count"); vocab is the embedding's first dimension. Errors:
// UNIMPLEMENTED for another architecture, rope scaling, sliding window, mixture of experts, non-causal
// attention; DATA_LOSS for a missing key; INVALID_ARGUMENT for a value out of bounds. All name the file
// and the key.
Result<DecoderConfig> ReadDecoderConfig(const GgufFile& file);

// How the layers' matrices are held and multiplied.
enum class Quantization {
  kNone = 0,
  kW8,    // int8 weights, widened to meet the activations as they are
  kW8A8,  // int8 weights and, quantised row by row, activations
};

// "none", "w8" or "w8a8".
const char* QuantizationName(Quantization quantization);

// Key genrecall.quantization; absent: kNone. INVALID_ARGUMENT for another word.
Result<Quantization> ReadQuantization(const GgufFile& file);

// Whether keys and values are kept as int8, each head's vector with a scale: key genrecall.kv_dtype = "int8".
// Absent: no. INVALID_ARGUMENT for another word.
Result<bool> ReadInt8Kv(const GgufFile& file);

// The stored table (level, code) -> token id of a SID space.
struct SidTokens {
  SidSpace space;
  std::vector<std::vector<int32_t>> token;  // [L][C_l], each in 0..V-1, distinct within a level
};

// Keys genrecall.level_sizes, genrecall.sid_space_digest and tensor genrecall.sid_token_ids (I32, level
// after level).
Result<SidTokens> ReadSidTokens(const GgufFile& file, int vocab);

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_MODEL_CONFIG_H_
