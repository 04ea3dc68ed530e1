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

std::vector<Scheduler::Grant> Scheduler::Plan() {
  Admit();
  const std::vector<Entry*> order = ServingOrder();
  const bool alone = order.size() == 1;
  const Entry* least_left = nullptr;
  for (const Entry* e : order) {
    const auto left = [](const Entry* x) { return x->second.pass_rows + x->second.later_rows; };
    if (least_left == nullptr || left(e) < left(least_left)) least_left = e;
  }
  std::vector<Grant> grants;
  int64_t free_rows = options_.max_step_rows;
  for (Entry* e : order) {
    Live& live = e->second;
    const bool whole = alone || (e == least_left && !live.prefill);
    const int64_t limit = whole ? options_.max_step_rows : options_.prefill_chunk;
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
