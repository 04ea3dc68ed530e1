// What a step takes at least, from the steps of late: to tell which deadlines cannot be met any more. Knows
// no clock and no request.
#ifndef GENRECALL_TRTLLM_BRIDGE_STEP_COST_H_
#define GENRECALL_TRTLLM_BRIDGE_STEP_COST_H_

#include <algorithm>
#include <array>

#include "trtllm_bridge/scheduler.h"

namespace genrecall {

// Least values over the last kWindow steps: a step of few rows tells what any step costs, one of many what a
// row does. Few steps, so that under load, when all of them are full, a step is known to take what a full
// one takes; several, so that one slow step condemns nobody.
class StepCostMeter {
 public:
  void Record(int64_t rows, Scheduler::Time::duration took) {
    step_[next_] = took;
    row_[next_] = took / rows;
    next_ = (next_ + 1) % kWindow;
    seen_ = std::min(seen_ + 1, kWindow);
    doubt_ = 0;
  }

  // Zero until there is a whole window.
  Scheduler::StepCost cost() const {
    if (seen_ < kWindow) return {};
    return {LeastOf(step_), LeastOf(row_)};
  }

  // A request was ended for this estimate, before anybody tried. Each halves it until a step is measured
  // again: a machine that has become fast would else never show it.
  void Doubt() { doubt_ = std::min(doubt_ + 1, 30); }

 private:
  using Durations = std::array<Scheduler::Time::duration, 8>;
  Scheduler::Time::duration LeastOf(const Durations& d) const {
    return *std::min_element(d.begin(), d.end()) / (int64_t{1} << doubt_);
  }

  static constexpr int kWindow = std::tuple_size_v<Durations>;
  Durations step_{}, row_{};
  int next_ = 0, seen_ = 0, doubt_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_STEP_COST_H_
