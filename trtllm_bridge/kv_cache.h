// Memory for keys and values: a pool of pages, and one sequence's share of it. Knows no model and no
// scheduling.
//
// A prompt's keys and values lie in pages of kPageTokens tokens, one copy that all beams read. Generated
// positions lie in tails, one per position, with one row per beam that was live there; beams find their
// ancestors' rows by index, so that reordering beams moves no keys or values. Not thread-safe: one engine
// thread uses it.
#ifndef GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_
#define GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/transformer_ops.h"

namespace genrecall {

struct KvShape {
  DType dtype = DType::kF32;
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;

  // Bytes of the keys (or of the values) of `tokens` tokens in one layer.
  int64_t BlockBytes(int64_t tokens) const { return tokens * kv_heads * head_dim * DTypeSize(dtype); }
};

// Hands out blocks of (layers x {keys, values} x tokens) and takes them back for the next request of that
// size, so that a step pays for no page faults. Freed blocks beyond kMaxFreeBytes go back to the system.
class KvPool {
 public:
  static constexpr int64_t kMaxFreeBytes = int64_t{512} << 20;

  explicit KvPool(const KvShape& shape) : shape_(shape) {}
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvShape& shape() const { return shape_; }
  uint8_t* Allocate(int tokens);
  void Free(uint8_t* block, int tokens);
  int64_t bytes_in_use() const { return bytes_in_use_.load(std::memory_order_relaxed); }  // from any thread

 private:
  int64_t Bytes(int tokens) const { return 2 * shape_.layers * shape_.BlockBytes(tokens); }

  KvShape shape_;
  std::map<int, std::vector<uint8_t*>> free_;  // by tokens
  int64_t free_bytes_ = 0;
  std::atomic<int64_t> bytes_in_use_{0};
};

// One request's keys and values; gives its blocks back when destroyed.
class SequenceKv {
 public:
  SequenceKv(KvPool* pool, int prompt_tokens);
  ~SequenceKv();
  SequenceKv(const SequenceKv&) = delete;
  SequenceKv& operator=(const SequenceKv&) = delete;

  int prompt_tokens() const { return prompt_tokens_; }
  KvPages pages(int layer) const { return {&k_page_[layer * num_pages()], &v_page_[layer * num_pages()]}; }

  // Room for `rows` rows at the next generated position.
  void AddTail(int rows);
  int tails() const { return static_cast<int>(tails_.size()); }
  // T [rows, kv_heads, head_dim] of each generated position so far, for one layer.
  void* const* tail_k(int layer) const { return tail_k_[layer].data(); }
  void* const* tail_v(int layer) const { return tail_v_[layer].data(); }

 private:
  struct Block {
    uint8_t* data;
    int tokens;
  };
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }

  KvPool* pool_;
  int prompt_tokens_;
  std::vector<Block> pages_, tails_;
  std::vector<void*> k_page_, v_page_;               // [layers, pages]
  std::vector<std::vector<void*>> tail_k_, tail_v_;  // [layers][tails]
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_
