// Memory for keys and values: a pool of blocks under a budget, and one sequence's share of it. Knows no model
// and no scheduling.
//
// A prompt's keys and values lie in pages of kPageTokens tokens, one copy that all beams read, and that
// requests with the same prefix read together (prefix_cache.h). Generated positions lie in tails, one per
// position, with one row per beam that was live there; beams find their ancestors' rows by index, so that
// reordering beams moves no keys or values.
#ifndef GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_
#define GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/kv_vector.h"
#include "kernels/transformer_ops.h"
#include "trtllm_bridge/kv_budget.h"
#include "trtllm_bridge/prefix_cache.h"

namespace genrecall {

struct KvShape {
  DType dtype = DType::kF32;
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;

  // Bytes of the keys (or of the values) of `tokens` tokens in one layer.
  int64_t BlockBytes(int64_t tokens) const { return tokens * kv_heads * KvVectorBytes(dtype, head_dim); }
};

// Hands out blocks of (layers x {keys, values} x tokens) and keeps what comes back for the next request of
// that size, so that a step pays for no page faults. Spare blocks go back to the system when the budget needs
// their room. All but the constructor, the destructor and the sizes needs the budget's lock.
class KvPool : public KvBudget::Member {
 public:
  KvPool(const KvShape& shape, std::shared_ptr<KvBudget> budget);
  ~KvPool() override;
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvShape& shape() const { return shape_; }
  KvBudget& budget() const { return *budget_; }

  // What a block takes from the budget.
  int64_t BlockBytes(int tokens) const;
  int64_t page_bytes() const { return BlockBytes(kPageTokens); }
  int64_t PromptBytes(int64_t tokens) const;
  // Tails come in powers of two, so that requests of about the same width reuse each other's.
  static int TailTokens(int rows);
  int64_t TailBytes(int rows) const { return BlockBytes(TailTokens(rows)); }

  // To be called within what the budget has committed to. std::bad_alloc when the system has no memory.
  uint8_t* Allocate(int tokens);
  void Free(uint8_t* block, int tokens);
  int64_t resident_bytes() const { return resident_bytes_; }  // blocks in use and spare ones
  int64_t used_bytes() const { return used_bytes_; }

  void FreeSpare() override;

 private:
  const KvShape shape_;
  const std::shared_ptr<KvBudget> budget_;
  std::map<int, std::vector<uint8_t*>> spare_;  // by tokens
  int64_t resident_bytes_ = 0, used_bytes_ = 0;
};

// One request's keys and values, from its admission to its end; then its pages stay in the cache or go back
// to the pool. Used by one thread; what it shares with others it touches under the budget's lock.
class SequenceKv {
 public:
  struct Demand {
    const std::vector<int32_t>* prompt = nullptr;  // outlives the sequence
    int stable_prefix = 0;                         // tokens whose pages are worth keeping
    int max_tails = 0;
    int64_t tail_bytes = 0;  // of all tails together: sums of KvPool::TailBytes
  };
  // Commits everything the request can come to need, less what the cache has of its prompt. Null when the
  // budget has no room now.
  static std::unique_ptr<SequenceKv> Start(KvPool* pool, PrefixCache* cache, const Demand& demand);
  ~SequenceKv();
  SequenceKv(const SequenceKv&) = delete;
  SequenceKv& operator=(const SequenceKv&) = delete;

  int prompt_tokens() const { return static_cast<int>(demand_.prompt->size()); }
  KvPages pages(int layer) const { return {&k_page_[layer * num_pages_], &v_page_[layer * num_pages_]}; }

  // Leading tokens whose keys and values are those of cached pages: whole pages, and never the whole prompt,
  // since its last token's hidden state is wanted.
  int cached_tokens() const;
  // Takes over what others have kept of this prompt by now. What this request has computed of those pages is
  // let go: the bits are the same. Returns cached_tokens().
  int Adopt();
  // Memory for the first `tokens` tokens. std::bad_alloc.
  void Extend(int tokens);
  // The first `tokens` tokens are computed: their whole pages, as far as they are worth it, are others' to
  // read from now on.
  void Keep(int tokens);

  // Room for `rows` rows at the next generated position. std::bad_alloc.
  void AddTail(int rows);
  int tails() const { return static_cast<int>(tails_.size()); }
  // [rows, kv_heads] vectors (kv_vector.h) of each generated position so far, for one layer.
  void* const* tail_k(int layer) const { return &tail_k_[layer * demand_.max_tails]; }
  void* const* tail_v(int layer) const { return &tail_v_[layer * demand_.max_tails]; }

 private:
  struct Tail {
    uint8_t* data;
    int tokens;
  };
  SequenceKv(KvPool* pool, PrefixCache* cache, const Demand& demand);

  PrefixCache::Page* PinNext();
  void Share(PrefixCache::Page* page);
  void SetPage(int i, uint8_t* block);

  KvPool* const pool_;
  PrefixCache* const cache_;
  const Demand demand_;
  const int64_t num_pages_;
  int64_t committed_ = 0;                   // for what is not in the cache
  std::vector<PrefixCache::Page*> shared_;  // pinned: the first pages
  std::vector<uint8_t*> pages_;             // [num_pages], null: no memory yet
  std::vector<void*> k_page_, v_page_;      // [layers, num_pages]
  std::vector<Tail> tails_;
  std::vector<void*> tail_k_, tail_v_;  // [layers, max_tails]
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_KV_CACHE_H_
