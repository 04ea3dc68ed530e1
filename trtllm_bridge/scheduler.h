// Which rows run in the next step. Pure bookkeeping: knows no model, no threads and no clock; its caller
// serialises the calls.
//
// A request is a series of passes: its prompt's rows, then one row per live beam for each further level. A
// step runs some rows of every chosen request in the same gemms. Policy:
//
// 1. Waiting requests are admitted by priority, then in order of arrival, up to max_running.
// 2. A step has max_step_rows. Running requests are served in order: higher priority; then fewer rows left to
//    the end, so a narrow request overtakes a wide one; then arrival.
// 3. While others of its priority or a higher one are live, a request takes at most prefill_chunk rows of a
//    step: a wide one must not stretch the step that a narrow one sits in. Of the highest priority, the one
//    with the least left is exempt for its beams' rows: it should finish.
// 4. Nobody starves: a request that got no rows in kMaxSkippedSteps steps in a row is served first in the
//    next, whatever its priority, the longest-skipped first.
#ifndef GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_
#define GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "kernels/status.h"

namespace genrecall {

struct SchedulerOptions {
  int max_queue = 256;
  int max_running = 64;  // requests that hold keys and values
  int max_step_rows = 512;
  int prefill_chunk = 128;
};

class Scheduler {
 public:
  using Id = uint64_t;
  using Time = std::chrono::steady_clock::time_point;
  static constexpr int kMaxSkippedSteps = 4;

  explicit Scheduler(const SchedulerOptions& options) : options_(options) {}

  struct Request {
    int priority = 0;
    Time deadline = Time::max();
    int64_t prompt_rows = 1;
    int64_t decode_rows = 0;  // an upper bound for all passes after the prompt's
  };
  // Puts a request at the end of the queue; ids ascend. False when max_queue requests are waiting already.
  bool Enqueue(Id id, const Request& request);

  // The request will be among the next Expire's. Unknown ids are ignored.
  void Cancel(Id id);

  struct Ended {
    Id id;
    Code code;  // kCancelled | kDeadlineExceeded
  };
  // Removes what has been cancelled and what is past its deadline, waiting or running.
  std::vector<Ended> Expire(Time now);

  struct Grant {
    Id id;
    int rows;
  };
  // Admits, and says who runs how many rows of its current pass in this step: rows >= 1 each, max_step_rows
  // in all. Empty only when no request is live. Running requests are all between steps of a pass with rows
  // left.
  std::vector<Grant> Plan();

  int64_t rows_left_in_pass(Id id) const { return live_.at(id).pass_rows; }
  // Starts a request's next pass of `rows` rows, after which at most `later_rows` follow.
  void BeginPass(Id id, int64_t rows, int64_t later_rows);
  // A running request is finished (or failed).
  void Remove(Id id);

  bool idle() const { return live_.empty(); }
  int waiting() const { return waiting_; }
  int running() const { return static_cast<int>(live_.size()) - waiting_; }

 private:
  struct Live {
    Request request;
    bool running = false;
    bool cancelled = false;
    bool prefill = true;
    int64_t pass_rows = 0;   // left in the current pass
    int64_t later_rows = 0;  // of the passes after it
    int skipped = 0;         // steps in a row without a row
    int64_t rows_left() const { return pass_rows + later_rows; }
  };
  using Entry = std::pair<const Id, Live>;

  class Company;

  void Admit();
  std::vector<Entry*> ServingOrder();

  SchedulerOptions options_;
  std::map<Id, Live> live_;  // waiting and running, in order of arrival
  int waiting_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_
