// Calls a function at a time, unless it is removed before. Knows no TensorFlow.
#ifndef GENRECALL_TF_OPS_DEADLINE_TIMER_H_
#define GENRECALL_TF_OPS_DEADLINE_TIMER_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

namespace genrecall {

// One thread for the process, asleep until the earliest deadline: a blocked branch must not be able to delay
// the timer that answers in its place.
class DeadlineTimer {
 public:
  using Clock = std::chrono::steady_clock;
  using Key = std::pair<Clock::time_point, uint64_t>;

  // The process's timer. Its thread starts at the first Add and is never joined.
  static DeadlineTimer& Get();

  // `call` runs on the timer's thread at `when` or soon after; it must be short and must not block.
  Key Add(Clock::time_point when, std::function<void()> call);

  // The call is dropped; true if it had neither run nor begun to.
  bool Remove(const Key& key);

 private:
  DeadlineTimer();
  void Loop();

  std::mutex mu_;
  std::condition_variable changed_;
  std::map<Key, std::function<void()>> calls_;
  uint64_t next_id_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_DEADLINE_TIMER_H_
