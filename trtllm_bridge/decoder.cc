#include "trtllm_bridge/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace genrecall {
namespace {

constexpr int kVocabChunk = 2048;  // vocabulary rows per gemm when only their log-sum-exp is wanted
constexpr int kRowGrain = 8;       // rows per task of the row-wise kernels

// cos and sin of position * base^(-2i / head_dim), in float32 as Hugging Face computes them.
std::vector<float> RopeTable(float base, int head_dim, int positions) {
  const int half = head_dim / 2;
  std::vector<float> inv_freq(half), table(static_cast<size_t>(positions) * head_dim);
  for (int i = 0; i < half; ++i) {
    inv_freq[i] = 1.0f / static_cast<float>(std::pow(static_cast<double>(base), 2.0 * i / head_dim));
  }
  for (int p = 0; p < positions; ++p) {
    float* row = table.data() + static_cast<size_t>(p) * head_dim;
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * inv_freq[i];
      row[i] = std::cos(angle);
      row[half + i] = std::sin(angle);
    }
  }
  return table;
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops, int max_rows,
                 int max_positions)
    : weights_(std::move(weights)),
      ops_(ops),
      config_(weights_->config()),
      dtype_(weights_->dtype()),
      max_rows_(max_rows),
      cos_sin_(RopeTable(config_.rope_base, config_.head_dim, max_positions)),
      position_(max_rows),
      x_(static_cast<size_t>(max_rows) * config_.hidden),
      qkv_(static_cast<size_t>(max_rows) * config_.qkv_dim()),
      gathered_(x_.size()) {
  const size_t element = DTypeSize(dtype_), rows = max_rows;
  normed_.resize(rows * config_.hidden * element);
  attended_.resize(rows * config_.q_dim() * element);
  ffn_.resize(rows * config_.ffn * element);
  selected_.resize(rows * config_.hidden * element);
}

KvShape Decoder::kv_shape() const {
  return {weights_->kv_dtype(), config_.layers, config_.kv_heads, config_.head_dim};
}

int64_t Decoder::step_bytes() const {
  const int64_t floats = cos_sin_.size() + position_.size() + x_.size() + qkv_.size() + gathered_.size();
  const int64_t bytes = normed_.size() + attended_.size() + ffn_.size() + selected_.size();
  const int64_t widest = std::max({config_.hidden, config_.q_dim(), config_.ffn});
  return (floats + max_rows_ * widest) * int64_t{sizeof(float)} + bytes;
}

void Decoder::Forward(const std::vector<RowBlock>& blocks, ThreadPool* pool) {
  Embed(blocks);
  for (int l = 0; l < config_.layers; ++l) {
    const LayerWeights& layer = weights_->layer(l);
    RmsNorm(x_.data(), layer.attn_norm, n_, normed_.data(), pool);
    Show(l, GemmInput::kAttnNorm, normed_, config_.hidden);
    Gemm(layer.qkv, normed_.data(), n_, qkv_.data(), Epilogue::kStore,
         layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data(), pool);
    pool->ParallelFor(n_, kRowGrain,
                      [&](int64_t first, int64_t last) { NormAndRotateHeads(layer, first, last); });
    Attention(l, blocks, pool);
    if (IsLast(l)) DropUnread(blocks);
    Show(l, GemmInput::kAttnOutput, attended_, config_.q_dim());
    Gemm(layer.attn_out, attended_.data(), n_, x_.data(), Epilogue::kAccumulate, nullptr, pool);

    RmsNorm(x_.data(), layer.ffn_norm, n_, normed_.data(), pool);
    Show(l, GemmInput::kFfnNorm, normed_, config_.hidden);
    Gemm(layer.gate_up, normed_.data(), n_, nullptr, Epilogue::kSwiGlu, nullptr, pool);
    Show(l, GemmInput::kFfnDown, ffn_, config_.ffn);
    Gemm(layer.down, ffn_.data(), n_, x_.data(), Epilogue::kAccumulate, nullptr, pool);
  }
}

void Decoder::Embed(const std::vector<RowBlock>& blocks) {
  n_ = 0;
  const int64_t dim = config_.hidden;
  for (const RowBlock& block : blocks) {
    for (int i = 0; i < block.n; ++i, ++n_) {
      position_[n_] = block.prefill ? block.first_row + i : block.kv->prompt_tokens() + block.kv->tails() - 1;
      float* x = x_.data() + n_ * dim;
      if (dtype_ == DType::kF32) {
        const float* row = static_cast<const float*>(weights_->embedding().data) + block.tokens[i] * dim;
        std::copy(row, row + dim, x);
      } else {
        const bf16* row = static_cast<const bf16*>(weights_->embedding().data) + block.tokens[i] * dim;
        for (int64_t d = 0; d < dim; ++d) x[d] = ToFloat(row[d]);
      }
    }
  }
}

// QK norm (Qwen3) and RoPE, in place on rows [first, last) of qkv.
void Decoder::NormAndRotateHeads(const LayerWeights& layer, int64_t first, int64_t last) {
  const int64_t stride = config_.qkv_dim();
  const int head_dim = config_.head_dim;
  for (int64_t r = first; config_.qk_norm && r < last; ++r) {
    float* q = qkv_.data() + r * stride;
    float* k = q + config_.q_dim();
    ops_->rms_norm(DType::kF32, q, layer.q_norm.data(), config_.rms_eps, config_.q_heads, head_dim, q);
    ops_->rms_norm(DType::kF32, k, layer.k_norm.data(), config_.rms_eps, config_.kv_heads, head_dim, k);
  }
  // Query and key heads lie side by side, so one call rotates both.
  ops_->rope(qkv_.data() + first * stride, stride, last - first, config_.q_heads + config_.kv_heads, head_dim,
             position_.data() + first, cos_sin_.data());
}

void Decoder::AppendKeysValues(int layer, const RowBlock& block, int64_t row) {
  const DType dtype = weights_->kv_dtype();
  const int64_t stride = config_.qkv_dim();
  const float* k = qkv_.data() + row * stride + config_.q_dim();
  const float* v = k + config_.kv_dim();
  if (block.prefill) {
    ops_->kv_append(dtype, k, v, stride, block.n, config_.kv_heads, config_.head_dim, block.first_row,
                    block.kv->pages(layer));
    return;
  }
  const int tail = block.kv->tails() - 1;
  const int64_t vector = KvVectorBytes(dtype, config_.head_dim), row_bytes = config_.kv_heads * vector;
  uint8_t* to_k = static_cast<uint8_t*>(block.kv->tail_k(layer)[tail]) + block.first_row * row_bytes;
  uint8_t* to_v = static_cast<uint8_t*>(block.kv->tail_v(layer)[tail]) + block.first_row * row_bytes;
  for (int i = 0; i < block.n; ++i) {
    for (int h = 0; h < config_.kv_heads; ++h) {
      const int64_t from = i * stride + h * config_.head_dim, to = i * row_bytes + h * vector;
      ops_->convert(dtype, k + from, config_.head_dim, to_k + to);
      ops_->convert(dtype, v + from, config_.head_dim, to_v + to);
    }
  }
}

// Output rows of the last layer are those read, side by side.
void Decoder::Attention(int layer, const std::vector<RowBlock>& blocks, ThreadPool* pool) {
  const int64_t stride = config_.qkv_dim();
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  int64_t row = 0, out_row = 0;
  for (const RowBlock& block : blocks) {
    AppendKeysValues(layer, block, row);
    const int unread = IsLast(layer) ? block.unread : 0;
    const float* q = qkv_.data() + (row + unread) * stride;
    void* out = attended_.data() + out_row * config_.q_dim() * DTypeSize(dtype_);
    if (block.prefill) {
      PrefillAttentionArgs args{};
      args.dtype = dtype_;
      args.kv_dtype = weights_->kv_dtype();
      args.q_heads = config_.q_heads;
      args.kv_heads = config_.kv_heads;
      args.head_dim = config_.head_dim;
      args.scale = scale;
      args.q = q;
      args.q_stride = stride;
      args.n = block.n - unread;
      args.first_position = block.first_row + unread;
      args.kv = block.kv->pages(layer);
      args.out = out;
      ops_->prefill_attention(args, pool);
    } else {
      BeamAttentionArgs args{};
      args.dtype = dtype_;
      args.kv_dtype = weights_->kv_dtype();
      args.q_heads = config_.q_heads;
      args.kv_heads = config_.kv_heads;
      args.head_dim = config_.head_dim;
      args.scale = scale;
      args.q = q;
      args.q_stride = stride;
      args.beams = block.n;
      args.prompt_tokens = block.kv->prompt_tokens();
      args.prompt = block.kv->pages(layer);
      args.tail_tokens = block.kv->tails();
      args.tail_k = block.kv->tail_k(layer);
      args.tail_v = block.kv->tail_v(layer);
      args.ancestor = block.ancestor;
      args.out = out;
      ops_->beam_attention(args, pool);
    }
    row += block.n;
    out_row += block.n - unread;
  }
}

// The residual stream of the rows that are read, side by side as their attention is.
void Decoder::DropUnread(const std::vector<RowBlock>& blocks) {
  const int64_t dim = config_.hidden;
  float* to = x_.data();
  const float* from = x_.data();
  for (const RowBlock& block : blocks) {
    from += block.unread * dim;
    const int64_t size = (block.n - block.unread) * dim;
    if (to != from) std::memmove(to, from, size * sizeof(float));
    from += size;
    to += size;
  }
  n_ = static_cast<int>((to - x_.data()) / dim);
}

void Decoder::RmsNorm(const float* x, const std::vector<float>& weight, int64_t n, void* y,
                      ThreadPool* pool) {
  const int64_t dim = config_.hidden, row_bytes = dim * DTypeSize(dtype_);
  pool->ParallelFor(n, kRowGrain, [&](int64_t first, int64_t last) {
    ops_->rms_norm(dtype_, x + first * dim, weight.data(), config_.rms_eps, last - first, dim,
                   static_cast<uint8_t*>(y) + first * row_bytes);
  });
}

void Decoder::Gemm(const WeightMatrix& w, const void* x, int64_t n, float* y, Epilogue epilogue,
                   const float* bias, ThreadPool* pool) {
  GemmArgs args;
  args.w = w;
  args.x_dtype = dtype_;
  args.x = x;
  args.n = n;
  args.bias = bias;
  args.epilogue = epilogue;
  if (epilogue == Epilogue::kSwiGlu) {
    args.y_t = ffn_.data();
  } else {
    args.y = y;
    args.ldy = w.rows;
  }
  ops_->gemm(args, pool);
}

const void* Decoder::SelectRows(const int32_t* rows, int n, ThreadPool* pool) {
  const int64_t dim = config_.hidden;
  for (int i = 0; i < n; ++i) {
    std::memcpy(gathered_.data() + i * dim, x_.data() + rows[i] * dim, dim * sizeof(float));
  }
  RmsNorm(gathered_.data(), weights_->final_norm(), n, selected_.data(), pool);
  return selected_.data();
}

void Decoder::HiddenState(int row, float* out) const {
  const int64_t dim = config_.hidden;
  if (dtype_ == DType::kF32) {
    std::memcpy(out, reinterpret_cast<const float*>(selected_.data()) + row * dim, dim * sizeof(float));
    return;
  }
  const bf16* from = reinterpret_cast<const bf16*>(selected_.data()) + row * dim;
  for (int64_t d = 0; d < dim; ++d) out[d] = ToFloat(from[d]);
}

void Decoder::LevelLogits(int level, int first, int n, float* y, ThreadPool* pool) {
  const uint8_t* x = selected_.data() + first * static_cast<int64_t>(config_.hidden) * DTypeSize(dtype_);
  Gemm(weights_->level_head(level), x, n, y, Epilogue::kStore, nullptr, pool);
}

void Decoder::VocabLogits(int first, int n, float* y, ThreadPool* pool) {
  const uint8_t* x = selected_.data() + first * static_cast<int64_t>(config_.hidden) * DTypeSize(dtype_);
  Gemm(weights_->head(), x, n, y, Epilogue::kStore, nullptr, pool);
}

void Decoder::VocabLogSumExp(int first, int n, const float* temperature, float* out, ThreadPool* pool) {
  vocab_.resize(std::max(vocab_.size(), static_cast<size_t>(n) * kVocabChunk));
  const WeightMatrix& head = weights_->head();
  const int64_t row_bytes = static_cast<int64_t>(config_.hidden) * DTypeSize(dtype_);
  const uint8_t* x = selected_.data() + first * row_bytes;
  vocab_max_.assign(n, -INFINITY);
  vocab_sum_.assign(n, 0.0f);
  for (int64_t at = 0; at < head.rows; at += kVocabChunk) {
    WeightMatrix chunk = head;
    chunk.rows = std::min<int64_t>(kVocabChunk, head.rows - at);
    chunk.data = static_cast<const uint8_t*>(head.data) + at * row_bytes;
    Gemm(chunk, x, n, vocab_.data(), Epilogue::kStore, nullptr, pool);
    pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* row = vocab_.data() + r * chunk.rows;
        if (temperature[r] != 1.0f) {
          for (int64_t j = 0; j < chunk.rows; ++j) row[j] /= temperature[r];
        }
        float m, s;
        ops_->max_sum_exp(row, 1, chunk.rows, chunk.rows, &m, &s);
        float &max = vocab_max_[r], &sum = vocab_sum_[r];
        const float top = std::max(max, m);
        sum = (sum > 0 ? sum * std::exp(max - top) : 0.0f) + s * std::exp(m - top);
        max = top;
      }
    });
  }
  for (int r = 0; r < n; ++r) out[r] = vocab_max_[r] + std::log(vocab_sum_[r]);
}

}  // namespace genrecall
