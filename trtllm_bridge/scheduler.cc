#include "trtllm_bridge/scheduler.h"

#include <algorithm>
#include <tuple>

namespace genrecall {

bool Scheduler::Enqueue(Id id, const Request& request) {
  if (waiting_ >= options_.max_queue) return false;
  Live live;
  live.request = request;
  live.pass_rows = request.prompt_rows;
  live.later_rows = request.decode_rows;
  live_.emplace(id, live);
  ++waiting_;
  return true;
}

void Scheduler::Cancel(Id id) {
  const auto it = live_.find(id);
  if (it != live_.end()) it->second.cancelled = true;
}

std::vector<Scheduler::Ended> Scheduler::Expire(Time now) {
  std::vector<Ended> ended;
  for (auto it = live_.begin(); it != live_.end();) {
    const Live& live = it->second;
    const bool late = now >= live.request.deadline;
    if (!live.cancelled && !late) {
      ++it;
      continue;
    }
    ended.push_back({it->first, live.cancelled ? Code::kCancelled : Code::kDeadlineExceeded});
    if (!live.running) --waiting_;
    it = live_.erase(it);
  }
  return ended;
}

void Scheduler::BeginPass(Id id, int64_t rows, int64_t later_rows) {
  Live& live = live_.at(id);
  live.prefill = false;
  live.pass_rows = rows;
  live.later_rows = later_rows;
}

void Scheduler::Remove(Id id) {
  const auto it = live_.find(id);
  if (it == live_.end()) return;
  if (!it->second.running) --waiting_;
  live_.erase(it);
}

void Scheduler::Admit() {
  while (waiting_ > 0 && running() < options_.max_running) {
    Live* best = nullptr;
    for (auto& [id, live] : live_) {
      if (!live.running && (best == nullptr || live.request.priority > best->request.priority)) best = &live;
    }
    best->running = true;
    --waiting_;
  }
}

std::vector<Scheduler::Entry*> Scheduler::ServingOrder() {
  std::vector<Entry*> order;
  for (Entry& entry : live_) {
    if (entry.second.running) order.push_back(&entry);
  }
  const auto key = [](const Entry* e) {
    const Live& live = e->second;
    const int starved = live.skipped >= kMaxSkippedSteps ? live.skipped : 0;
    return std::make_tuple(-starved, -static_cast<int64_t>(live.request.priority),
                           live.pass_rows + live.later_rows, e->first);
  };
  std::sort(order.begin(), order.end(), [&](const Entry* a, const Entry* b) { return key(a) < key(b); });
  return order;
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

std::vector<Scheduler::Grant> Scheduler::Plan() {
  Admit();
  const std::vector<Entry*> order = ServingOrder();
  const Company company(order);
  std::vector<Grant> grants;
  int64_t free_rows = options_.max_step_rows;
  for (Entry* e : order) {
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
    grants.push_back({e->first, static_cast<int>(rows)});
  }
  return grants;
}

}  // namespace genrecall
