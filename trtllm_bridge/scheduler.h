// Which rows run in the next step. Pure bookkeeping: knows no model, no threads and no clock; its caller
// serialises the calls.
//
// A request is a series of passes: its prompt's rows, then one row per live beam for each further level. A
// step runs some rows of every chosen request in the same gemms. Policy:
//
// 1. Waiting requests are admitted by priority, then in order of arrival, up to max_running, when they would
//    get rows in the step to come and as memory allows. Under overload, so, requests wait before they start:
//    many that run by turns would all be late. Nobody overtakes the first one waiting of its priority, and
//    after kMaxSkippedSteps later ones of higher priority the longest waiting one is first.
// 2. A step has max_step_rows. Running requests are served in order: higher priority; then fewer rows left to
//    the end, so a narrow request overtakes a wide one; then arrival.
// 3. While others of its priority or a higher one are live, a request takes at most prefill_chunk rows of a
//    step: a wide one must not stretch the step that a narrow one sits in. Of the highest priority, the one
//    with the least left is exempt for its beams' rows: it should finish.
// 4. Nobody starves: a request that got no rows in kMaxSkippedSteps steps in a row is served first in the
//    next, whatever its priority, the longest-skipped first.
// 5. A request that cannot meet its deadline any more, if every further step were as fast as the fastest of
//    the last few, is ended at once, waiting or running: its rows are others'.
#ifndef GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_
#define GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/status.h"

namespace genrecall {

struct SchedulerOptions {
  int max_queue = 256;
  int max_running = 64;  // requests that hold keys and values
  int max_step_rows = 512;
  int prefill_chunk = 160;
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
    int passes = 1;           // all passes, the prompt's included: each takes a step at least
  };
  // Puts a request at the end of the queue; ids ascend. False when max_queue requests are waiting already.
  bool Enqueue(Id id, const Request& request);

  // The request will be among the next Expire's. Unknown ids are ignored.
  void Cancel(Id id);

  // The least that a step, and a row of one, takes. Zero: unknown.
  struct StepCost {
    Time::duration step{0}, row{0};
  };
  struct Ended {
    Id id;
    Code code;   // kCancelled | kDeadlineExceeded
    bool early;  // before its deadline, which it would have missed
  };
  // Removes what has been cancelled, what is past its deadline and what will be, waiting or running. The
  // result is good until the next call.
  const std::vector<Ended>& Expire(Time now, const StepCost& cost);

  struct Grant {
    Id id;
    int rows;
  };
  // Whether a waiting request can start now: the number of its prompt's rows that need not run, or kNoRoom.
  using Admission = std::function<int64_t(Id)>;
  static constexpr int64_t kNoRoom = -1;
  // Admits, and says who runs how many rows of its current pass in this step: rows >= 1 each, max_step_rows
  // in all. Empty only when no request is running and none could start. Running requests are all between
  // steps of a pass with rows left. The result is good until the next call.
  const std::vector<Grant>& Plan(const Admission& admit);

  int64_t rows_left_in_pass(Id id) const { return live_.at(id).pass_rows; }
  // `rows` of the request's current pass need not run: fewer than are left.
  void SkipRows(Id id, int64_t rows) { live_.at(id).pass_rows -= rows; }
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
    int passes_left = 1;     // with the current one
    int skipped = 0;         // steps in a row without a row; while waiting: later ones admitted before
    int64_t rows_left() const { return pass_rows + later_rows; }
  };
  using Entry = std::pair<const Id, Live>;

  class Company;

  Time::duration LeastTimeLeft(const Live& live, const StepCost& cost) const;
  // Ascending: who goes first.
  static std::tuple<int, int64_t, int64_t, Id> ServingKey(const Entry& entry);
  Entry* FirstWaiting();
  void CountOvertaken(Id admitted);
  bool WouldRun(const Entry& newcomer) const;
  void Admit(const Admission& admit);
  void SortByServingOrder();

  SchedulerOptions options_;
  std::map<Id, Live> live_;  // waiting and running, in order of arrival
  int waiting_ = 0;
  // Kept from call to call, so that a step allocates nothing.
  std::vector<Entry*> order_;
  std::vector<Grant> grants_;
  std::vector<Ended> ended_;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_SCHEDULER_H_
