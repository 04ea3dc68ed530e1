#include "trtllm_bridge/prefix_cache.h"

#include <algorithm>

#include "trtllm_bridge/kv_cache.h"

namespace genrecall {
namespace {

PrefixCache::Tokens Copy(const int32_t* tokens) {
  PrefixCache::Tokens copy;
  std::copy(tokens, tokens + kPageTokens, copy.begin());
  return copy;
}

}  // namespace

PrefixCache::PrefixCache(KvPool* pool) : pool_(pool) {
  const KvBudget::Lock lock = pool_->budget().Acquire();
  pool_->budget().Join(this);
}

PrefixCache::~PrefixCache() {
  const KvBudget::Lock lock = pool_->budget().Acquire();
  while (!idle_leaves_.empty()) DropOldest();
  pool_->budget().Leave(this);
}

PrefixCache::Page* PrefixCache::Pin(Page* parent, const int32_t* tokens) {
  if (parent == nullptr) parent = &root_;
  const auto found = parent->children.find(Copy(tokens));
  if (found == parent->children.end()) return nullptr;
  Page* page = found->second.get();
  if (IsIdleLeaf(*page)) idle_leaves_.erase({page->last_use, page});
  if (page->pins++ == 0) pool_->budget().AddIdle(-pool_->page_bytes());
  return page;
}

PrefixCache::Page* PrefixCache::Keep(Page* parent, const int32_t* tokens, uint8_t* block) {
  if (parent == nullptr) parent = &root_;
  auto page = std::make_unique<Page>();
  page->parent = parent;
  page->block = block;
  page->pins = 1;
  const auto [place, added] = parent->children.emplace(Copy(tokens), std::move(page));
  place->second->place = place;
  ++pages_;
  return place->second.get();
}

void PrefixCache::Unpin(Page* page) {
  page->last_use = pool_->budget().Tick();
  if (--page->pins > 0) return;
  pool_->budget().AddIdle(pool_->page_bytes());
  if (page->children.empty()) idle_leaves_.emplace(page->last_use, page);
}

uint64_t PrefixCache::OldestUse() const {
  return idle_leaves_.empty() ? kNothing : idle_leaves_.begin()->first;
}

void PrefixCache::DropOldest() {
  Page* page = idle_leaves_.begin()->second;
  idle_leaves_.erase(idle_leaves_.begin());
  pool_->Free(page->block, kPageTokens);
  pool_->budget().Uncommit(pool_->page_bytes());
  pool_->budget().AddIdle(-pool_->page_bytes());
  Page* parent = page->parent;
  parent->children.erase(page->place);
  if (IsIdleLeaf(*parent)) idle_leaves_.emplace(parent->last_use, parent);
  --pages_;
  ++evicted_;
}

}  // namespace genrecall
