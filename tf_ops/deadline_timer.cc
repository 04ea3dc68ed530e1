#include "tf_ops/deadline_timer.h"

#include <pthread.h>

#include <thread>

namespace genrecall {

DeadlineTimer& DeadlineTimer::Get() {
  static DeadlineTimer* timer =
      new DeadlineTimer;  // never destroyed: its thread lives as long as the process
  return *timer;
}

DeadlineTimer::DeadlineTimer() {
  std::thread([this] {
    pthread_setname_np(pthread_self(), "gr-deadlines");
    Loop();
  }).detach();
}

DeadlineTimer::Key DeadlineTimer::Add(Clock::time_point when, std::function<void()> call) {
  std::lock_guard<std::mutex> lock(mu_);
  const Key key(when, next_id_++);
  const auto it = calls_.emplace(key, std::move(call)).first;
  if (it == calls_.begin()) changed_.notify_one();
  return key;
}

bool DeadlineTimer::Remove(const Key& key) {
  std::function<void()> dropped;  // destroyed after the lock is released: it may own what calls back
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = calls_.find(key);
  if (it == calls_.end()) return false;
  dropped = std::move(it->second);
  calls_.erase(it);
  return true;
}

void DeadlineTimer::Loop() {
  std::unique_lock<std::mutex> lock(mu_);
  for (;;) {
    if (calls_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const auto first = calls_.begin();
    if (Clock::now() < first->first.first) {
      changed_.wait_until(lock, Clock::time_point(first->first.first));
      continue;
    }
    std::function<void()> call = std::move(first->second);
    calls_.erase(first);
    lock.unlock();
    call();
    call = nullptr;
    lock.lock();
  }
}

}  // namespace genrecall
