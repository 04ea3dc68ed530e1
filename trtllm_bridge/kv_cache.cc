#include "trtllm_bridge/kv_cache.h"

#include <cstdlib>
#include <new>

namespace genrecall {
namespace {

// Tails come in powers of two, so that requests of about the same width reuse each other's.
int RoundUpRows(int rows) {
  int size = 8;
  while (size < rows) size *= 2;
  return size;
}

}  // namespace

KvPool::~KvPool() {
  for (const auto& [tokens, blocks] : free_) {
    for (uint8_t* block : blocks) std::free(block);
  }
}

uint8_t* KvPool::Allocate(int tokens) {
  const int64_t bytes = Bytes(tokens);
  bytes_in_use_.fetch_add(bytes, std::memory_order_relaxed);
  std::vector<uint8_t*>& free = free_[tokens];
  if (!free.empty()) {
    uint8_t* block = free.back();
    free.pop_back();
    free_bytes_ -= bytes;
    return block;
  }
  void* block = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (block == nullptr) {
    bytes_in_use_.fetch_sub(bytes, std::memory_order_relaxed);
    throw std::bad_alloc();
  }
  return static_cast<uint8_t*>(block);
}

void KvPool::Free(uint8_t* block, int tokens) {
  const int64_t bytes = Bytes(tokens);
  bytes_in_use_.fetch_sub(bytes, std::memory_order_relaxed);
  if (free_bytes_ + bytes > kMaxFreeBytes) {
    std::free(block);
    return;
  }
  free_[tokens].push_back(block);
  free_bytes_ += bytes;
}

SequenceKv::SequenceKv(KvPool* pool, int prompt_tokens) : pool_(pool), prompt_tokens_(prompt_tokens) {
  const KvShape& shape = pool->shape();
  const int pages = (prompt_tokens + kPageTokens - 1) / kPageTokens;
  const int64_t block = shape.BlockBytes(kPageTokens);
  pages_.reserve(pages);
  for (int p = 0; p < pages; ++p) pages_.push_back({pool->Allocate(kPageTokens), kPageTokens});
  k_page_.resize(static_cast<size_t>(shape.layers) * pages);
  v_page_.resize(k_page_.size());
  for (int l = 0; l < shape.layers; ++l) {
    for (int p = 0; p < pages; ++p) {
      k_page_[l * pages + p] = pages_[p].data + 2 * l * block;
      v_page_[l * pages + p] = pages_[p].data + (2 * l + 1) * block;
    }
  }
  tail_k_.resize(shape.layers);
  tail_v_.resize(shape.layers);
}

SequenceKv::~SequenceKv() {
  for (const Block& b : pages_) pool_->Free(b.data, b.tokens);
  for (const Block& b : tails_) pool_->Free(b.data, b.tokens);
}

void SequenceKv::AddTail(int rows) {
  const KvShape& shape = pool_->shape();
  const int tokens = RoundUpRows(rows);
  tails_.reserve(tails_.size() + 1);
  tails_.push_back({pool_->Allocate(tokens), tokens});
  const int64_t block = shape.BlockBytes(tokens);
  for (int l = 0; l < shape.layers; ++l) {
    tail_k_[l].push_back(tails_.back().data + 2 * l * block);
    tail_v_[l].push_back(tails_.back().data + (2 * l + 1) * block);
  }
}

}  // namespace genrecall
