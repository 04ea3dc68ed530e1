// The process' compute threads: engines with the same thread count share one pool and take turns at it, step
// by step, so that two models do not fight for the cores.
#ifndef GENRECALL_TRTLLM_BRIDGE_COMPUTE_POOL_H_
#define GENRECALL_TRTLLM_BRIDGE_COMPUTE_POOL_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "kernels/thread_pool.h"

namespace genrecall {

class ComputePool {
 public:
  // The process' pool of that many threads, made on first use and gone with its last user.
  static std::shared_ptr<ComputePool> Shared(int num_threads);

  explicit ComputePool(int num_threads) : threads_(num_threads) {}
  ThreadPool* threads() { return &threads_; }

  // Holds the pool for the life of the object. First come, first served: a plain mutex would let the engine
  // that has just finished a step take the next one too.
  class Turn {
   public:
    explicit Turn(ComputePool* pool);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    ComputePool* pool_;
  };

 private:
  ThreadPool threads_;
  std::mutex mutex_;
  std::condition_variable turn_ended_;
  uint64_t next_ticket_ = 0, serving_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_COMPUTE_POOL_H_
