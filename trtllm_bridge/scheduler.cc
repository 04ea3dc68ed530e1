#include "trtllm_bridge/scheduler.h"

#include <algorithm>

namespace genrecall {

bool Scheduler::Enqueue(Id id, const Request& request) {
  if (waiting_ >= options_.max_queue) return false;
  Live live;
  live.request = request;
  live.pass_rows = request.prompt_rows;
  live.later_rows = request.decode_rows;
  live.passes_left = request.passes;
  live_.emplace(id, live);
  ++waiting_;
  return true;
}

void Scheduler::Cancel(Id id) {
  const auto it = live_.find(id);
  if (it != live_.end()) it->second.cancelled = true;
}

Scheduler::Time::duration Scheduler::LeastTimeLeft(const Live& live, const StepCost& cost) const {
  // In company a prompt comes in chunks; beams' rows may come in one step whoever is there.
  const int64_t chunk = live_.size() > 1 ? options_.prefill_chunk : options_.max_step_rows;
  const int64_t steps = live.prefill ? (live.pass_rows + chunk - 1) / chunk : 1;
  return std::max(cost.step * steps, cost.row * live.pass_rows) + cost.step * (live.passes_left - 1);
}

const std::vector<Scheduler::Ended>& Scheduler::Expire(Time now, const StepCost& cost) {
  ended_.clear();
  for (auto it = live_.begin(); it != live_.end();) {
    const Live& live = it->second;
    const bool late = now >= live.request.deadline;
    const bool will_be =
        live.request.deadline != Time::max() && LeastTimeLeft(live, cost) > live.request.deadline - now;
    if (!live.cancelled && !late && !will_be) {
      ++it;
      continue;
    }
    ended_.push_back(
        {it->first, live.cancelled ? Code::kCancelled : Code::kDeadlineExceeded, !live.cancelled && !late});
    if (!live.running) --waiting_;
    it = live_.erase(it);
  }
  return ended_;
}

void Scheduler::BeginPass(Id id, int64_t rows, int64_t later_rows) {
  Live& live = live_.at(id);
  live.prefill = false;
  live.pass_rows = rows;
  live.later_rows = later_rows;
  --live.passes_left;
}

void Scheduler::Remove(Id id) {
  const auto it = live_.find(id);
  if (it == live_.end()) return;
  if (!it->second.running) --waiting_;
  live_.erase(it);
}

std::tuple<int, int64_t, int64_t, Scheduler::Id> Scheduler::ServingKey(const Entry& entry) {
  const Live& live = entry.second;
  const int starved = live.skipped >= kMaxSkippedSteps ? live.skipped : 0;
  return {-starved, -static_cast<int64_t>(live.request.priority), live.rows_left(), entry.first};
}

Scheduler::Entry* Scheduler::FirstWaiting() {
  Entry* first = nullptr;
  for (Entry& e : live_) {
    if (e.second.running) continue;
    if (e.second.skipped >= kMaxSkippedSteps) return &e;  // only the oldest one is ever counted
    if (first == nullptr || e.second.request.priority > first->second.request.priority) first = &e;
  }
  return first;
}

// The oldest waiting request is passed over for `admitted`.
void Scheduler::CountOvertaken(Id admitted) {
  for (auto& [id, live] : live_) {
    if (live.running) continue;
    if (id < admitted) ++live.skipped;
    return;
  }
}

// Whether those who go before it leave it a row of the step to come.
bool Scheduler::WouldRun(const Entry& newcomer) const {
  int64_t rows_before = 0;
  for (const Entry& e : live_) {
    if (!e.second.running || ServingKey(newcomer) < ServingKey(e)) continue;
    rows_before += std::min<int64_t>(e.second.pass_rows, options_.prefill_chunk);
  }
  return rows_before < options_.max_step_rows;
}

void Scheduler::Admit(const Admission& admit) {
  while (waiting_ > 0 && running() < options_.max_running) {
    Entry* first = FirstWaiting();
    if (!WouldRun(*first)) return;
    const int64_t rows_there = admit(first->first);
    if (rows_there == kNoRoom) return;
    first->second.pass_rows -= rows_there;
    first->second.running = true;
    --waiting_;
    CountOvertaken(first->first);
  }
}

void Scheduler::SortByServingOrder() {
  order_.clear();
  for (Entry& entry : live_) {
    if (entry.second.running) order_.push_back(&entry);
  }
  std::sort(order_.begin(), order_.end(),
            [](const Entry* a, const Entry* b) { return ServingKey(*a) < ServingKey(*b); });
}

// Who need not leave room for others: rule 3.
class Scheduler::Company {
 public:
  explicit Company(const std::vector<Entry*>& running) {
    for (const Entry* e : running) {
      if (least_left_ == nullptr || e->second.request.priority > priority_) {
        priority_ = e->second.request.priority;
        least_left_ = e;
        peers_ = 0;
      }
      if (e->second.request.priority < priority_) continue;
      ++peers_;
      if (e->second.rows_left() < least_left_->second.rows_left()) least_left_ = e;
    }
  }
  bool MayTakeAll(const Entry& e) const {
    if (e.second.request.priority < priority_) return false;
    return peers_ == 1 || (&e == least_left_ && !e.second.prefill);
  }

 private:
  int priority_ = 0;  // the highest that is running
  int peers_ = 0;     // requests of that priority
  const Entry* least_left_ = nullptr;
};

const std::vector<Scheduler::Grant>& Scheduler::Plan(const Admission& admit) {
  Admit(admit);
  SortByServingOrder();
  const Company company(order_);
  grants_.clear();
  int64_t free_rows = options_.max_step_rows;
  for (Entry* e : order_) {
    Live& live = e->second;
    const int64_t limit = company.MayTakeAll(*e) ? options_.max_step_rows : options_.prefill_chunk;
    const int64_t rows = std::min({live.pass_rows, limit, free_rows});
    if (rows == 0) {
      ++live.skipped;
      continue;
    }
    live.skipped = 0;
    live.pass_rows -= rows;
    free_rows -= rows;
    grants_.push_back({e->first, static_cast<int>(rows)});
  }
  return grants_;
}

}  // namespace genrecall
