// Results on their way to their callbacks. Knows no engine.
#ifndef GENRECALL_TRTLLM_BRIDGE_MAILBOX_H_
#define GENRECALL_TRTLLM_BRIDGE_MAILBOX_H_

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "trtllm_bridge/engine.h"

namespace genrecall {

// A slow callback delays other callbacks, never a step.
class Mailbox {
 public:
  void Post(DecodeCallback callback, DecodeResult result) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      box_.emplace_back(std::move(callback), std::move(result));
    }
    changed_.notify_one();
  }
  void Close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_one();
  }
  // Delivers until closed and empty.
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return closed_ || !box_.empty(); });
      if (box_.empty()) return;
      auto [callback, result] = std::move(box_.front());
      box_.pop_front();
      lock.unlock();
      callback(std::move(result));
      callback = nullptr;  // what it captured goes before the lock is taken again
      lock.lock();
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<DecodeCallback, DecodeResult>> box_;
  bool closed_ = false;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_MAILBOX_H_
