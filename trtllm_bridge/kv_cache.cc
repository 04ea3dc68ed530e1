#include "trtllm_bridge/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

namespace genrecall {
namespace {

// Blocks from this size on are mapped one by one, so that one that is given back is given to the system, and
// not to the heap.
constexpr int64_t kMappedBytes = 64 << 10;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

uint8_t* GetBlock(int64_t bytes) {
  if (bytes < kMappedBytes) return static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
  void* block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return block == MAP_FAILED ? nullptr : static_cast<uint8_t*>(block);
}

void PutBlock(uint8_t* block, int64_t bytes) {
  if (bytes < kMappedBytes) {
    std::free(block);
  } else {
    ::munmap(block, bytes);
  }
}

int NumPages(int64_t tokens) { return static_cast<int>((tokens + kPageTokens - 1) / kPageTokens); }

}  // namespace

KvPool::KvPool(const KvShape& shape, std::shared_ptr<KvBudget> budget)
    : shape_(shape), budget_(std::move(budget)) {
  const KvBudget::Lock lock = budget_->Acquire();
  budget_->Join(this);
}

KvPool::~KvPool() {
  const KvBudget::Lock lock = budget_->Acquire();
  FreeSpare();
  budget_->Leave(this);
}

int64_t KvPool::BlockBytes(int tokens) const {
  const int64_t bytes = 2 * shape_.layers * shape_.BlockBytes(tokens);
  return RoundUp(bytes, bytes < kMappedBytes ? 64 : 4096);
}

int64_t KvPool::PromptBytes(int64_t tokens) const { return NumPages(tokens) * page_bytes(); }

int KvPool::TailTokens(int rows) {
  int size = 8;
  while (size < rows) size *= 2;
  return size;
}

uint8_t* KvPool::Allocate(int tokens) {
  const int64_t bytes = BlockBytes(tokens);
  std::vector<uint8_t*>& spare = spare_[tokens];
  uint8_t* block = nullptr;
  if (!spare.empty()) {
    block = spare.back();
    spare.pop_back();
  } else {
    budget_->MakeResidentRoom(bytes);
    block = GetBlock(bytes);
    if (block == nullptr) throw std::bad_alloc();
    budget_->AddResident(bytes);
    resident_bytes_ += bytes;
  }
  used_bytes_ += bytes;
  return block;
}

void KvPool::Free(uint8_t* block, int tokens) {
  used_bytes_ -= BlockBytes(tokens);
  spare_[tokens].push_back(block);
}

void KvPool::FreeSpare() {
  for (auto& [tokens, blocks] : spare_) {
    const int64_t bytes = BlockBytes(tokens);
    for (uint8_t* block : blocks) PutBlock(block, bytes);
    budget_->AddResident(-bytes * static_cast<int64_t>(blocks.size()));
    resident_bytes_ -= bytes * static_cast<int64_t>(blocks.size());
    blocks.clear();
  }
}

SequenceKv::SequenceKv(KvPool* pool, PrefixCache* cache, const Demand& demand)
    : pool_(pool), cache_(cache), demand_(demand), num_pages_(NumPages(prompt_tokens())) {
  const int layers = pool->shape().layers;
  shared_.reserve(num_pages_);
  pages_.resize(num_pages_);
  k_page_.resize(layers * num_pages_);
  v_page_.resize(layers * num_pages_);
  tails_.reserve(demand.max_tails);
  tail_k_.resize(layers * demand.max_tails);
  tail_v_.resize(layers * demand.max_tails);
}

std::unique_ptr<SequenceKv> SequenceKv::Start(KvPool* pool, PrefixCache* cache, const Demand& demand) {
  std::unique_ptr<SequenceKv> kv(new SequenceKv(pool, cache, demand));
  const KvBudget::Lock lock = pool->budget().Acquire();
  while (PrefixCache::Page* page = kv->PinNext()) {
    kv->SetPage(static_cast<int>(kv->shared_.size()), page->block);
    kv->shared_.push_back(page);
  }
  const int64_t own_pages = kv->num_pages_ - static_cast<int64_t>(kv->shared_.size());
  const int64_t bytes = own_pages * pool->page_bytes() + demand.tail_bytes;
  if (!pool->budget().Commit(bytes)) return nullptr;  // after the lock, the destructor unpins
  kv->committed_ = bytes;
  return kv;
}

SequenceKv::~SequenceKv() {
  const KvBudget::Lock lock = pool_->budget().Acquire();
  const int first_own = static_cast<int>(shared_.size());
  for (int i = first_own; i < num_pages_; ++i) {
    if (pages_[i] != nullptr) pool_->Free(pages_[i], kPageTokens);
  }
  for (const Tail& tail : tails_) pool_->Free(tail.data, tail.tokens);
  pool_->budget().Uncommit(committed_);
  while (!shared_.empty()) {  // the last page first: a leaf is never used later than its parent
    cache_->Unpin(shared_.back());
    shared_.pop_back();
  }
}

int SequenceKv::cached_tokens() const {
  return std::min(static_cast<int>(shared_.size()), (prompt_tokens() - 1) / kPageTokens) * kPageTokens;
}

// The cached page after the shared ones, null when there is none or the prompt's last token is in it.
PrefixCache::Page* SequenceKv::PinNext() {
  const int next = static_cast<int>(shared_.size());
  if (next >= (prompt_tokens() - 1) / kPageTokens) return nullptr;
  return cache_->Pin(shared_.empty() ? nullptr : shared_.back(),
                     demand_.prompt->data() + int64_t{next} * kPageTokens);
}

// A cached page takes the place of the first page of our own.
void SequenceKv::Share(PrefixCache::Page* page) {
  const int i = static_cast<int>(shared_.size());
  if (pages_[i] != nullptr) pool_->Free(pages_[i], kPageTokens);
  SetPage(i, page->block);
  shared_.push_back(page);
  pool_->budget().Uncommit(pool_->page_bytes());
  committed_ -= pool_->page_bytes();
}

void SequenceKv::SetPage(int i, uint8_t* data) {
  const int64_t block = pool_->shape().BlockBytes(kPageTokens);
  pages_[i] = data;
  for (int64_t l = 0; l < pool_->shape().layers; ++l) {
    k_page_[l * num_pages_ + i] = data + 2 * l * block;
    v_page_[l * num_pages_ + i] = data + (2 * l + 1) * block;
  }
}

int SequenceKv::Adopt() {
  const KvBudget::Lock lock = pool_->budget().Acquire();
  while (PrefixCache::Page* page = PinNext()) Share(page);
  return cached_tokens();
}

void SequenceKv::Extend(int tokens) {
  const int pages = NumPages(tokens);
  if (pages_[pages - 1] != nullptr) return;
  const KvBudget::Lock lock = pool_->budget().Acquire();
  for (int i = 0; i < pages; ++i) {
    if (pages_[i] == nullptr) SetPage(i, pool_->Allocate(kPageTokens));
  }
}

void SequenceKv::Keep(int tokens) {
  const int whole = std::min(tokens, demand_.stable_prefix) / kPageTokens;
  if (static_cast<int>(shared_.size()) >= whole) return;
  const KvBudget::Lock lock = pool_->budget().Acquire();
  while (static_cast<int>(shared_.size()) < whole) {
    const int i = static_cast<int>(shared_.size());
    PrefixCache::Page* parent = shared_.empty() ? nullptr : shared_.back();
    const int32_t* page_tokens = demand_.prompt->data() + int64_t{i} * kPageTokens;
    if (PrefixCache::Page* page = cache_->Pin(parent, page_tokens)) {  // another request was first
      Share(page);
    } else {
      shared_.push_back(cache_->Keep(parent, page_tokens, pages_[i]));
      committed_ -= pool_->page_bytes();  // the commitment is the cache's now
    }
  }
}

void SequenceKv::AddTail(int rows) {
  const KvShape& shape = pool_->shape();
  const int tokens = KvPool::TailTokens(rows), tail = tails();
  uint8_t* data;
  {
    const KvBudget::Lock lock = pool_->budget().Acquire();
    data = pool_->Allocate(tokens);
  }
  tails_.push_back({data, tokens});
  const int64_t block = shape.BlockBytes(tokens);
  for (int64_t l = 0; l < shape.layers; ++l) {
    tail_k_[l * demand_.max_tails + tail] = data + 2 * l * block;
    tail_v_[l * demand_.max_tails + tail] = data + (2 * l + 1) * block;
  }
}

}  // namespace genrecall
