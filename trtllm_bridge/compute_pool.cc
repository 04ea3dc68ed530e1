#include "trtllm_bridge/compute_pool.h"

#include <map>

namespace genrecall {

std::shared_ptr<ComputePool> ComputePool::Shared(int num_threads) {
  static std::mutex mutex;
  static auto* pools = new std::map<int, std::weak_ptr<ComputePool>>();
  std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<ComputePool>& known = (*pools)[num_threads];
  std::shared_ptr<ComputePool> pool = known.lock();
  if (pool == nullptr) {
    pool = std::make_shared<ComputePool>(num_threads);
    known = pool;
  }
  return pool;
}

ComputePool::Turn::Turn(ComputePool* pool) : pool_(pool) {
  std::unique_lock<std::mutex> lock(pool_->mutex_);
  const uint64_t ticket = pool_->next_ticket_++;
  pool_->turn_ended_.wait(lock, [&] { return pool_->serving_ == ticket; });
}

ComputePool::Turn::~Turn() {
  {
    std::lock_guard<std::mutex> lock(pool_->mutex_);
    ++pool_->serving_;
  }
  pool_->turn_ended_.notify_all();
}

}  // namespace genrecall
