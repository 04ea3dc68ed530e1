// A tiny decoder with random weights and random catalogues, for C++ programs that drive the engine.
#ifndef GENRECALL_TESTS_RANDOM_ENGINE_H_
#define GENRECALL_TESTS_RANDOM_ENGINE_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/gguf.h"
#include "kernels/recall_index.h"

namespace genrecall {

inline void Expect(bool ok, const std::string& what) {
  if (ok) return;
  std::fflush(stdout);
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::_Exit(1);
}

struct RandomModel {
  DType dtype = DType::kF32;
  bool int8 = false;  // W8A8, with int8 keys and values
  int layers = 2, hidden = 32, ffn = 56, q_heads = 4, kv_heads = 2, vocab = 160;
  std::vector<int32_t> level_sizes = {9, 14, 6, 11};
  uint32_t seed = 1;

  // Writes a qwen2 model.gguf. SID tokens are the vocabulary's first.
  void Write(const std::string& path) const {
    GgufWriter writer;
    std::vector<std::vector<uint8_t>> held;
    std::mt19937 rng(seed);
    const auto add_int8 = [&](const std::string& name, int64_t rows, int64_t cols) {
      held.emplace_back(rows * cols);
      for (uint8_t& w : held.back()) w = static_cast<uint8_t>(rng());
      writer.Add(name + ".weight", GgufType::kI8, {rows, cols}, held.back().data());
      held.emplace_back(rows * sizeof(float));
      for (int64_t o = 0; o < rows; ++o) reinterpret_cast<float*>(held.back().data())[o] = 0.004f;
      writer.Add(name + ".scale", GgufType::kF32, {rows}, held.back().data());
    };
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      const bool vector = shape.size() == 1;
      if (int8 && !vector && name.rfind("blk.", 0) == 0) {
        return add_int8(name.substr(0, name.rfind('.')), shape[0], shape[1]);
      }
      int64_t n = 1;
      for (int64_t d : shape) n *= d;
      std::normal_distribution<float> normal(vector && name.find("norm") != std::string::npos ? 1.0f : 0.0f,
                                             vector ? 0.2f : 0.3f);
      const bool wide = vector || dtype == DType::kF32;
      held.emplace_back(n * (wide ? sizeof(float) : sizeof(bf16)));
      for (int64_t i = 0; i < n; ++i) {
        if (wide) {
          reinterpret_cast<float*>(held.back().data())[i] = normal(rng);
        } else {
          reinterpret_cast<bf16*>(held.back().data())[i] = ToBf16(normal(rng));
        }
      }
      writer.Add(name, wide ? GgufType::kF32 : GgufType::kBF16, std::move(shape), held.back().data());
    };
    const int dim = hidden / q_heads;
    add("token_embd.weight", {vocab, hidden});
    add("output_norm.weight", {hidden});
    for (int l = 0; l < layers; ++l) {
      const std::string blk = Cat("blk.", l, ".");
      add(blk + "attn_q.weight", {hidden, hidden});
      add(blk + "attn_k.weight", {kv_heads * dim, hidden});
      add(blk + "attn_v.weight", {kv_heads * dim, hidden});
      add(blk + "attn_output.weight", {hidden, hidden});
      add(blk + "ffn_gate.weight", {ffn, hidden});
      add(blk + "ffn_up.weight", {ffn, hidden});
      add(blk + "ffn_down.weight", {hidden, ffn});
      add(blk + "attn_q.bias", {hidden});
      add(blk + "attn_k.bias", {kv_heads * dim});
      add(blk + "attn_v.bias", {kv_heads * dim});
      add(blk + "attn_norm.weight", {hidden});
      add(blk + "ffn_norm.weight", {hidden});
    }
    std::vector<int32_t> tokens;
    for (int32_t size : level_sizes) {
      for (int32_t c = 0; c < size; ++c) tokens.push_back(static_cast<int32_t>(tokens.size()));
    }
    writer.Add("genrecall.sid_token_ids", GgufType::kI32, {static_cast<int64_t>(tokens.size())},
               tokens.data());
    writer.Set("general.architecture", std::string("qwen2"));
    for (const auto& [key, value] : {std::pair<const char*, int64_t>{"block_count", layers},
                                     {"embedding_length", hidden},
                                     {"feed_forward_length", ffn},
                                     {"attention.head_count", q_heads},
                                     {"attention.head_count_kv", kv_heads},
                                     {"context_length", 8192}}) {
      writer.Set(std::string("qwen2.") + key, value);
    }
    writer.Set("qwen2.attention.layer_norm_rms_epsilon", 1e-6);
    writer.Set("qwen2.rope.freq_base", 10000.0);
    writer.Set("genrecall.level_sizes", std::vector<int64_t>(level_sizes.begin(), level_sizes.end()));
    writer.Set("genrecall.sid_space_digest", std::string());
    writer.Set("genrecall.weights_digest",
               Cat("random ", seed, " ", static_cast<int>(dtype), int8 ? " w8a8" : ""));
    if (int8) {
      writer.Set("genrecall.quantization", std::string("w8a8"));
      writer.Set("genrecall.kv_dtype", std::string("int8"));
    }
    const Status status = writer.Write(path);
    Expect(status.ok(), status.message());
  }

  std::vector<int32_t> Prompt(int tokens, uint32_t prompt_seed) const {
    std::mt19937 rng(prompt_seed);
    std::vector<int32_t> prompt(tokens);
    for (int32_t& t : prompt) t = static_cast<int32_t>(rng() % vocab);
    return prompt;
  }

  std::shared_ptr<const RecallIndex> Index(int64_t items, uint32_t index_seed) const {
    std::mt19937 rng(index_seed);
    std::vector<int64_t> id(items);
    std::vector<int32_t> codes;
    for (int64_t i = 0; i < items; ++i) {
      id[i] = i;
      for (int32_t size : level_sizes) codes.push_back(static_cast<int32_t>(rng() % size));
    }
    CatalogueRows rows;
    rows.num_items = items;
    rows.item_id = id.data();
    rows.codes = codes.data();
    Result<std::shared_ptr<const RecallIndex>> index = RecallIndex::Build({level_sizes, ""}, rows);
    Expect(index.ok(), index.status().message());
    return index.value();
  }
};

}  // namespace genrecall

#endif  // GENRECALL_TESTS_RANDOM_ENGINE_H_
