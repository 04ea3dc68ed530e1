// Which prompts' keys and values are still there: a radix tree over token ids whose edges are whole pages.
// Knows no model, no request, and no index: what a prefix's keys and values are depends on its tokens and the
// weights alone, so they outlive any replacement of the recall index.
//
// A page is pinned while a request reads it. Without pins it is idle: it stays until the budget needs its
// bytes, then the least recently used leaf of the process goes first. All calls need the budget's lock.
#ifndef GENRECALL_TRTLLM_BRIDGE_PREFIX_CACHE_H_
#define GENRECALL_TRTLLM_BRIDGE_PREFIX_CACHE_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "kernels/transformer_args.h"
#include "trtllm_bridge/kv_budget.h"

namespace genrecall {

class KvPool;

class PrefixCache : public KvBudget::Member {
 public:
  explicit PrefixCache(KvPool* pool);
  ~PrefixCache() override;  // no page is pinned any more
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  using Tokens = std::array<int32_t, kPageTokens>;
  struct Page {
    Page* parent = nullptr;
    uint8_t* block = nullptr;  // of the pool, kPageTokens tokens; read-only
    std::map<Tokens, std::unique_ptr<Page>>::const_iterator place;  // in parent->children
    std::map<Tokens, std::unique_ptr<Page>> children;
    int pins = 0;
    uint64_t last_use = 0;
  };

  // The page of tokens[0..kPageTokens) after `parent` (null: at the start of a prompt), pinned; null when it
  // is not kept.
  Page* Pin(Page* parent, const int32_t* tokens);
  // Keeps a page that is not kept yet: block and its committed bytes are the cache's from now on. Pinned.
  Page* Keep(Page* parent, const int32_t* tokens, uint8_t* block);
  void Unpin(Page* page);

  int64_t pages() const { return pages_; }
  int64_t evicted_pages() const { return evicted_; }

  uint64_t OldestUse() const override;
  void DropOldest() override;

 private:
  bool IsIdleLeaf(const Page& page) const {
    return page.pins == 0 && page.children.empty() && &page != &root_;
  }

  KvPool* const pool_;
  Page root_;
  std::set<std::pair<uint64_t, Page*>> idle_leaves_;  // by last use
  int64_t pages_ = 0, evicted_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_PREFIX_CACHE_H_
