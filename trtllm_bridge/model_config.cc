#include "trtllm_bridge/model_config.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace genrecall {
namespace {

// Reads bounded integers and floats of one architecture, remembering the first failure: the reader then looks
// like the table of keys that it is.
class KeyReader {
 public:
  KeyReader(const GgufFile& file, const std::string& architecture)
      : file_(file), prefix_(architecture + ".") {}

  int Int(const std::string& key, int64_t min, int64_t max) {
    return Bounded(key, file_.Int(prefix_ + key), min, max);
  }
  int IntOr(const std::string& key, int64_t otherwise, int64_t min, int64_t max) {
    if (!file_.Has(prefix_ + key)) return static_cast<int>(otherwise);
    return Int(key, min, max);
  }
  float Float(const std::string& key, double min, double max) {
    Result<double> value = file_.Float(prefix_ + key);
    if (!value.ok()) {
      Fail(value.status());
      return 0;
    }
    if (!(value.value() >= min && value.value() <= max)) {
      Fail(InvalidArgument(file_.path(), ": ", prefix_, key, " = ", value.value(), ": expected ", min, "..",
                           max));
    }
    return static_cast<float>(value.value());
  }
  // An optional feature that must be off: absent, 0, false, "" or "none".
  void Off(const std::string& key, const char* what) {
    const auto it = file_.metadata().find(prefix_ + key);
    if (it == file_.metadata().end()) return;
    const GgufValue& value = it->second;
    bool off = false;
    if (const bool* b = std::get_if<bool>(&value)) off = !*b;
    if (const int64_t* i = std::get_if<int64_t>(&value)) off = *i == 0;
    if (const double* d = std::get_if<double>(&value)) off = *d == 0;
    if (const std::string* s = std::get_if<std::string>(&value)) off = s->empty() || *s == "none";
    if (!off) {
      Fail(Status(Code::kUnimplemented,
                  Cat(file_.path(), ": ", prefix_, key, " is set: ", what, " is not supported")));
    }
  }
  void On(const std::string& key, const char* otherwise) {
    const auto it = file_.metadata().find(prefix_ + key);
    if (it == file_.metadata().end()) return;
    const bool* on = std::get_if<bool>(&it->second);
    if (on == nullptr || !*on) {
      Fail(Status(Code::kUnimplemented,
                  Cat(file_.path(), ": ", prefix_, key, " is off: ", otherwise, " is not supported")));
    }
  }
  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const Status& status() const { return status_; }

 private:
  int Bounded(const std::string& key, const Result<int64_t>& value, int64_t min, int64_t max) {
    if (!value.ok()) {
      Fail(value.status());
      return 0;
    }
    if (value.value() < min || value.value() > max) {
      Fail(InvalidArgument(file_.path(), ": ", prefix_, key, " = ", value.value(), ": expected ", min, "..",
                           max));
      return 0;
    }
    return static_cast<int>(value.value());
  }

  const GgufFile& file_;
  std::string prefix_;
  Status status_;
};

}  // namespace

Result<DecoderConfig> ReadDecoderConfig(const GgufFile& file) {
  Result<std::string> architecture = file.String("general.architecture");
  if (!architecture.ok()) return architecture.status();
  DecoderConfig config;
  config.architecture = architecture.value();
  if (config.architecture != "qwen2" && config.architecture != "qwen3") {
    return Status(Code::kUnimplemented, Cat(file.path(), ": general.architecture = '", config.architecture,
                                            "': expected qwen2 | qwen3"));
  }
  config.qk_norm = config.architecture == "qwen3";

  KeyReader keys(file, config.architecture);
  config.layers = keys.Int("block_count", 1, 1024);
  config.hidden = keys.Int("embedding_length", 1, 1 << 16);
  config.ffn = keys.Int("feed_forward_length", 1, 1 << 20);
  config.q_heads = keys.Int("attention.head_count", 1, 1024);
  config.kv_heads = keys.IntOr("attention.head_count_kv", config.q_heads, 1, 1024);
  config.context_length = keys.Int("context_length", 1, int64_t{1} << 30);
  config.rms_eps = keys.Float("attention.layer_norm_rms_epsilon", 0, 1);
  config.rope_base = keys.Float("rope.freq_base", 1, 1e12);
  const int default_head_dim = config.q_heads > 0 ? config.hidden / config.q_heads : 0;
  config.head_dim = keys.IntOr("attention.key_length", default_head_dim, 2, 1024);
  const int value_dim = keys.IntOr("attention.value_length", config.head_dim, 2, 1024);
  const int rope_dim = keys.IntOr("rope.dimension_count", config.head_dim, 0, 1024);
  keys.Off("rope.scaling.type", "rope scaling");
  keys.Off("attention.sliding_window", "sliding-window attention");
  keys.Off("expert_count", "a mixture of experts");
  keys.On("attention.causal", "attention that is not causal");
  if (!keys.status().ok()) return keys.status();

  if (config.q_heads % config.kv_heads != 0) {
    return InvalidArgument(file.path(), ": attention.head_count_kv = ", config.kv_heads,
                           ": expected a divisor of attention.head_count = ", config.q_heads);
  }
  if (config.head_dim % 2 != 0) {
    return InvalidArgument(file.path(), ": attention.key_length = ", config.head_dim,
                           ": expected an even number");
  }
  if (value_dim != config.head_dim || rope_dim != config.head_dim) {
    return Status(Code::kUnimplemented, Cat(file.path(), ": attention.value_length = ", value_dim,
                                            ", rope.dimension_count = ", rope_dim,
                                            ": expected attention.key_length = ", config.head_dim));
  }
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end()) {
    return Status(Code::kDataLoss, Cat(file.path(), ": tensor 'token_embd.weight' is missing"));
  }
  const std::vector<int64_t>& shape = embedding->second.shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > (1 << 28)) {
    return InvalidArgument(file.path(), ": tensor 'token_embd.weight': expected shape [vocabulary, ",
                           config.hidden, "]");
  }
  config.vocab = static_cast<int>(shape[0]);
  return config;
}

const char* QuantizationName(Quantization quantization) {
  switch (quantization) {
    case Quantization::kNone:
      return "none";
    case Quantization::kW8:
      return "w8";
    case Quantization::kW8A8:
      return "w8a8";
  }
  return "unknown";
}

Result<Quantization> ReadQuantization(const GgufFile& file) {
  constexpr char kKey[] = "genrecall.quantization";
  if (!file.Has(kKey)) return Quantization::kNone;
  Result<std::string> word = file.String(kKey);
  if (!word.ok()) return word.status();
  for (Quantization q : {Quantization::kW8, Quantization::kW8A8}) {
    if (word.value() == QuantizationName(q)) return q;
  }
  return InvalidArgument(file.path(), ": ", kKey, " = '", word.value(), "': expected w8|w8a8");
}

Result<bool> ReadInt8Kv(const GgufFile& file) {
  constexpr char kKey[] = "genrecall.kv_dtype";
  if (!file.Has(kKey)) return false;
  Result<std::string> word = file.String(kKey);
  if (!word.ok()) return word.status();
  if (word.value() == "int8") return true;
  return InvalidArgument(file.path(), ": ", kKey, " = '", word.value(), "': expected int8");
}

Result<SidTokens> ReadSidTokens(const GgufFile& file, int vocab) {
  if (!file.Has("genrecall.level_sizes")) {
    return Status(Code::kFailedPrecondition,
                  Cat(file.path(),
                      ": no genrecall.level_sizes: the file carries no SID space; write it with "
                      "genrecall.trtllm_bridge.checkpoint.convert"));
  }
  Result<std::vector<int64_t>> sizes = file.Ints("genrecall.level_sizes");
  if (!sizes.ok()) return sizes.status();
  Result<std::string> digest = file.String("genrecall.sid_space_digest");
  if (!digest.ok()) return digest.status();
  Result<GgufTensor> table = file.Tensor("genrecall.sid_token_ids", GgufType::kI32);
  if (!table.ok()) return table.status();

  SidTokens out;
  out.space.digest = digest.value();
  const size_t levels = sizes.value().size();
  if (levels < 1 || levels > kMaxLevels) {
    return InvalidArgument(file.path(), ": genrecall.level_sizes has ", levels, " levels: expected 1..",
                           kMaxLevels);
  }
  int64_t total = 0;
  for (size_t l = 0; l < levels; ++l) {
    const int64_t size = sizes.value()[l];
    if (size < 1 || size > kMaxLevelSize) {
      return InvalidArgument(file.path(), ": genrecall.level_sizes[", l, "] = ", size, ": expected 1..",
                             kMaxLevelSize);
    }
    out.space.level_sizes.push_back(static_cast<int32_t>(size));
    total += size;
  }
  if (table.value().shape != std::vector<int64_t>{total}) {
    return InvalidArgument(file.path(), ": tensor 'genrecall.sid_token_ids': expected shape [", total,
                           "], the sum of genrecall.level_sizes");
  }
  const auto* ids = static_cast<const uint8_t*>(table.value().data);
  for (size_t l = 0; l < levels; ++l) {
    std::vector<int32_t> tokens(out.space.level_sizes[l]);
    std::memcpy(tokens.data(), ids, tokens.size() * sizeof(int32_t));
    ids += tokens.size() * sizeof(int32_t);
    std::set<int32_t> seen;
    for (size_t c = 0; c < tokens.size(); ++c) {
      if (tokens[c] < 0 || tokens[c] >= vocab) {
        return InvalidArgument(file.path(), ": genrecall.sid_token_ids of level ", l, ", code ", c, " = ",
                               tokens[c], ": expected 0..V-1 = ", vocab - 1);
      }
      if (!seen.insert(tokens[c]).second) {
        return InvalidArgument(file.path(), ": genrecall.sid_token_ids of level ", l, ", code ", c, " = ",
                               tokens[c], ": another code of the level has the same token");
      }
    }
    out.token.push_back(std::move(tokens));
  }
  return out;
}

}  // namespace genrecall
