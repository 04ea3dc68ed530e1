#include "trtllm_bridge/weights.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <set>

#include "kernels/huge_pages.h"
#include "kernels/int8_panels.h"
#include "kernels/quantize.h"

namespace genrecall {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

const char* TypeName(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return "F32";
    case GgufType::kF16:
      return "F16";
    case GgufType::kBF16:
      return "BF16";
    case GgufType::kI8:
      return "I8";
    default:
      return "an integer type";
  }
}

// "blk.0.attn_q.weight" -> "blk.0.attn_q.scale"
std::string ScaleName(const std::string& name) { return name.substr(0, name.rfind('.')) + ".scale"; }

bool SideBySide(const std::vector<const GgufTensor*>& tensors) {
  for (size_t i = 1; i < tensors.size(); ++i) {
    const GgufTensor &before = *tensors[i - 1], &tensor = *tensors[i];
    if (static_cast<const uint8_t*>(before.data) + before.bytes != tensor.data) return false;
  }
  return true;
}

}  // namespace

std::string WeightsDigest(const GgufFile& file) {
  if (file.Has("genrecall.weights_digest")) {
    Result<std::string> digest = file.String("genrecall.weights_digest");
    if (digest.ok() && !digest.value().empty()) return digest.value();
  }
  return Cat("crc32c:", file.checksum());
}

// Collects the tensors by name, then lays the matrices out; keeps the first failure.
class WeightsLoader {
 public:
  explicit WeightsLoader(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {}

  Result<std::shared_ptr<const DecoderWeights>> Load() {
    Result<DecoderConfig> config = ReadDecoderConfig(*file_);
    if (!config.ok()) return config.status();
    w_.reset(new DecoderWeights());
    w_->config_ = config.value();
    Result<SidTokens> tokens = ReadSidTokens(*file_, w_->config_.vocab);
    if (!tokens.ok()) return tokens.status();
    w_->sid_tokens_ = tokens.value();
    used_.insert("genrecall.sid_token_ids");
    w_->digest_ = WeightsDigest(*file_);
    Result<Quantization> quantization = ReadQuantization(*file_);
    if (!quantization.ok()) return quantization.status();
    w_->quantization_ = quantization.value();
    Result<bool> int8_kv = ReadInt8Kv(*file_);
    if (!int8_kv.ok()) return int8_kv.status();
    w_->int8_kv_ = int8_kv.value();

    Collect();
    if (status_.ok()) CheckNothingIsLeft();
    if (!status_.ok()) return status_;
    LayOut();
    GatherLevelHeads();
    return std::shared_ptr<const DecoderWeights>(std::move(w_));
  }

 private:
  // A matrix to be, made of tensors that share their columns.
  struct Pending {
    WeightMatrix* out;
    std::vector<const GgufTensor*> tensors;
    std::vector<float> scale;  // I8: of each row
  };

  void Collect() {
    const DecoderConfig& c = w_->config_;
    Table("token_embd.weight", &w_->embedding_);
    w_->final_norm_ = Vector("output_norm.weight", c.hidden);
    tied_ = file_->tensors().count("output.weight") == 0;
    if (!tied_) Table("output.weight", &w_->head_);
    const bool bias = file_->tensors().count("blk.0.attn_q.bias") > 0;
    w_->layers_.resize(c.layers);
    for (int i = 0; i < c.layers && status_.ok(); ++i) {
      const std::string blk = Cat("blk.", i, ".");
      LayerWeights& layer = w_->layers_[i];
      layer.attn_norm = Vector(blk + "attn_norm.weight", c.hidden);
      Fused({blk + "attn_q.weight", blk + "attn_k.weight", blk + "attn_v.weight"},
            {c.q_dim(), c.kv_dim(), c.kv_dim()}, c.hidden, &layer.qkv);
      if (bias) {
        layer.qkv_bias = Vector(blk + "attn_q.bias", c.q_dim());
        Append(Vector(blk + "attn_k.bias", c.kv_dim()), &layer.qkv_bias);
        Append(Vector(blk + "attn_v.bias", c.kv_dim()), &layer.qkv_bias);
      }
      if (c.qk_norm) {
        layer.q_norm = Vector(blk + "attn_q_norm.weight", c.head_dim);
        layer.k_norm = Vector(blk + "attn_k_norm.weight", c.head_dim);
      }
      Fused({blk + "attn_output.weight"}, {c.hidden}, c.q_dim(), &layer.attn_out);
      layer.ffn_norm = Vector(blk + "ffn_norm.weight", c.hidden);
      Fused({blk + "ffn_gate.weight", blk + "ffn_up.weight"}, {c.ffn, c.ffn}, c.hidden, &layer.gate_up);
      layer.gate_up.parts = 2;
      Fused({blk + "ffn_down.weight"}, {c.hidden}, c.ffn, &layer.down);
    }
  }

  // A tensor nobody asked for means that the file holds another model than the one that would run.
  void CheckNothingIsLeft() {
    for (const auto& [name, tensor] : file_->tensors()) {
      if (used_.count(name) == 0) {
        status_ = Status(Code::kUnimplemented, Cat(file_->path(), ": unexpected tensor '", name,
                                                   "' for architecture ", w_->config_.architecture));
        return;
      }
    }
  }

  const GgufTensor* Find(const std::string& name, const std::vector<int64_t>& shape) {
    const auto it = file_->tensors().find(name);
    if (it == file_->tensors().end()) {
      Fail(Status(Code::kDataLoss, Cat(file_->path(), ": tensor '", name, "' is missing")));
      return nullptr;
    }
    used_.insert(name);
    if (it->second.shape != shape) {
      Fail(InvalidArgument(file_->path(), ": tensor '", name, "' has shape ", ShapeText(it->second.shape),
                           ": expected ", ShapeText(shape)));
      return nullptr;
    }
    return &it->second;
  }

  std::vector<float> Vector(const std::string& name, int64_t size) {
    std::vector<float> out(size);
    const GgufTensor* tensor = Find(name, {size});
    if (tensor == nullptr) return out;
    if (tensor->type == GgufType::kF32) {
      std::memcpy(out.data(), tensor->data, size * sizeof(float));
    } else if (tensor->type == GgufType::kBF16) {
      const bf16* values = static_cast<const bf16*>(tensor->data);
      for (int64_t i = 0; i < size; ++i) out[i] = ToFloat(values[i]);
    } else {
      Fail(Status(Code::kUnimplemented, Cat(file_->path(), ": tensor '", name, "' is ",
                                            TypeName(tensor->type), ": expected F32 or BF16")));
    }
    return out;
  }

  static void Append(const std::vector<float>& from, std::vector<float>* to) {
    to->insert(to->end(), from.begin(), from.end());
  }

  // The embedding, or the head: [V, D], never I8, since few of its rows are read.
  void Table(const std::string& name, WeightMatrix* out) {
    const DecoderConfig& c = w_->config_;
    const GgufTensor* tensor = Find(name, {c.vocab, c.hidden});
    if (tensor == nullptr || !CheckFloat(name, *tensor)) return;
    *out = {dtype_, nullptr, c.vocab, c.hidden};
    pending_.push_back({out, {tensor}, {}});
  }

  // A layer's matrix, made of the tensors of these names and numbers of rows.
  void Fused(const std::vector<std::string>& names, const std::vector<int64_t>& rows, int64_t cols,
             WeightMatrix* out) {
    Pending pending{out, {}, {}};
    for (size_t i = 0; i < names.size(); ++i) {
      const GgufTensor* tensor = Find(names[i], {rows[i], cols});
      if (tensor == nullptr) return;
      const bool int8 = tensor->type == GgufType::kI8 && w_->quantization_ != Quantization::kNone;
      if (!int8 && !CheckFloat(names[i], *tensor)) return;
      pending.tensors.push_back(tensor);
      if (tensor->type != pending.tensors[0]->type) {
        return Fail(InvalidArgument(file_->path(), ": tensor '", names[i], "' is ", TypeName(tensor->type),
                                    ": expected the type of '", names[0], "', with which it is read"));
      }
      if (int8 && !TakeScale(names[i], rows[i], cols, &pending.scale)) return;
      out->rows += rows[i];
    }
    out->cols = cols;
    out->dtype = pending.scale.empty() ? dtype_ : DType::kI8;
    pending_.push_back(std::move(pending));
  }

  bool TakeScale(const std::string& name, int64_t rows, int64_t cols, std::vector<float>* scale) {
    if (cols > kMaxInt8Cols) {
      Fail(InvalidArgument(file_->path(), ": tensor '", name, "' is I8 and has ", cols,
                           " columns: expected <= ", kMaxInt8Cols));
      return false;
    }
    const std::string scale_name = ScaleName(name);
    const std::vector<float> values = Vector(scale_name, rows);
    for (int64_t i = 0; i < rows && status_.ok(); ++i) {
      if (std::isfinite(values[i]) && values[i] >= 0) continue;
      Fail(Status(Code::kDataLoss, Cat(file_->path(), ": tensor '", scale_name, "'[", i, "] = ", values[i],
                                       ": expected a finite number >= 0")));
    }
    Append(values, scale);
    return status_.ok();
  }

  // The first table (the embedding) gives the dtype, all that is not int8 must have it.
  bool CheckFloat(const std::string& name, const GgufTensor& tensor) {
    if (tensor.type != GgufType::kF32 && tensor.type != GgufType::kBF16) {
      Fail(Status(Code::kUnimplemented, Cat(file_->path(), ": tensor '", name, "' is ", TypeName(tensor.type),
                                            ": expected F32 or BF16")));
      return false;
    }
    const DType dtype = tensor.type == GgufType::kF32 ? DType::kF32 : DType::kBF16;
    if (pending_.empty()) dtype_ = dtype;
    if (dtype != dtype_) {
      Fail(InvalidArgument(file_->path(), ": tensor '", name, "' is ", TypeName(tensor.type),
                           ": expected the dtype of token_embd.weight, as all matrices"));
      return false;
    }
    return true;
  }

  void LayOut() {
    bool in_place = true;
    for (const Pending& p : pending_) in_place = in_place && (InPanels(p) || SideBySide(p.tensors));
    for (const Pending& p : pending_) {
      if (!p.scale.empty()) p.out->scale = CopyOf(p.scale);
      if (InPanels(p)) {
        Pack(p);
      } else if (in_place) {
        p.out->data = p.tensors[0]->data;
        for (const GgufTensor* tensor : p.tensors) w_->bytes_ += tensor->bytes;
      } else {
        Copy(p);
      }
    }
    if (in_place) w_->file_ = file_;
    if (tied_) w_->head_ = w_->embedding_;
  }

  bool InPanels(const Pending& p) const {
    return w_->quantization_ == Quantization::kW8A8 && !p.scale.empty();
  }

  const float* CopyOf(const std::vector<float>& values) {
    float* to = reinterpret_cast<float*>(Allocate(static_cast<int64_t>(values.size() * sizeof(float))));
    std::copy(values.begin(), values.end(), to);
    return to;
  }

  void Pack(const Pending& p) {
    WeightMatrix* w = p.out;
    std::vector<const int8_t*> rows;
    for (const GgufTensor* tensor : p.tensors) {
      const int8_t* data = static_cast<const int8_t*>(tensor->data);
      for (int64_t o = 0; o < tensor->shape[0]; ++o) rows.push_back(data + o * w->cols);
    }
    uint8_t* panels = Allocate(w->parts * Int8PartBytes(w->rows, w->cols, w->parts));
    int32_t* row_sum = reinterpret_cast<int32_t*>(Allocate(w->rows * int64_t{sizeof(int32_t)}));
    PackInt8Panels(rows, w->cols, w->parts, reinterpret_cast<int8_t*>(panels), row_sum);
    w->data = panels;
    w->row_sum = row_sum;
    for (const GgufTensor* tensor : p.tensors) file_->Discard(*tensor);
  }

  void Copy(const Pending& p) {
    int64_t bytes = 0;
    for (const GgufTensor* tensor : p.tensors) bytes += tensor->bytes;
    uint8_t* to = Allocate(bytes);
    p.out->data = to;
    for (const GgufTensor* tensor : p.tensors) {
      std::memcpy(to, tensor->data, tensor->bytes);
      to += tensor->bytes;
      file_->Discard(*tensor);
    }
  }

  void GatherLevelHeads() {
    const int64_t row_bytes = w_->config_.hidden * DTypeSize(dtype_);
    for (const std::vector<int32_t>& tokens : w_->sid_tokens_.token) {
      const int64_t bytes = static_cast<int64_t>(tokens.size()) * row_bytes;
      uint8_t* to = Allocate(bytes);
      w_->level_head_.push_back(
          WeightMatrix{dtype_, to, static_cast<int64_t>(tokens.size()), w_->config_.hidden});
      for (const int32_t token : tokens) {
        std::memcpy(to, static_cast<const uint8_t*>(w_->head_.data) + token * row_bytes, row_bytes);
        to += row_bytes;
      }
    }
  }

  uint8_t* Allocate(int64_t bytes) {
    uint8_t* memory = AllocateOnHugePages(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    w_->buffers_.emplace_back(memory, &std::free);
    w_->bytes_ += bytes;
    return memory;
  }

  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

  std::shared_ptr<const GgufFile> file_;
  std::unique_ptr<DecoderWeights> w_;
  std::vector<Pending> pending_;
  std::set<std::string> used_;
  DType dtype_ = DType::kF32;
  bool tied_ = false;
  Status status_;
};

Result<std::shared_ptr<const DecoderWeights>> DecoderWeights::Load(std::shared_ptr<const GgufFile> file) {
  return WeightsLoader(std::move(file)).Load();
}

}  // namespace genrecall
