#include "kernels/behaviors.h"

#include <algorithm>
#include <utility>

namespace genrecall {
namespace {

bool Has(uint32_t mask, int32_t bit, int32_t num_bits) {
  return bit >= 0 && bit < num_bits && (mask >> bit & 1u) != 0;
}

// Steps 1 and 2: indices of the valid events in time order.
std::vector<int> OrderValid(const BehaviorView& events, int64_t request_time, const CleanOptions& options) {
  std::vector<int> order;
  order.reserve(std::max(events.length, 0));
  for (int i = 0; i < events.length; ++i) {
    if (events.item[i] >= 0 && events.time[i] > 0 && events.time[i] <= request_time &&
        Has(options.actions, events.action[i], kNumActions) &&
        Has(options.domains, events.domain[i], kNumDomains)) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return events.time[a] < events.time[b]; });
  return order;
}

// Steps 3 and 4 concern the events of one item only. `ranks` are those of one item, ascending; an event of
// rank r is order[r]. Clears keep[r] of the events that go.
class ItemFolder {
 public:
  ItemFolder(const BehaviorView& events, const std::vector<int>& order, const CleanOptions& options,
             std::vector<char>* keep)
      : events_(events), order_(order), options_(options), keep_(*keep) {}

  void Fold(const std::pair<int64_t, int>* first, const std::pair<int64_t, int>* last) {
    open_clicks_.clear();
    for (auto* it = first; it != last; ++it) {
      const int rank = it->second;
      if (Action(rank) == kClick) {
        open_clicks_.push_back(rank);
      } else if (Action(rank) == kConversion) {
        while (!open_clicks_.empty() &&
               Time(rank) - Time(open_clicks_.back()) <= options_.attribution_window_s) {
          keep_[open_clicks_.back()] = 0;
          open_clicks_.pop_back();
        }
      }
    }
    int64_t kept_time[kNumActions];
    std::fill(kept_time, kept_time + kNumActions, -1);  // none: times are positive
    for (auto* it = first; it != last; ++it) {
      const int rank = it->second;
      if (!keep_[rank]) continue;
      int64_t& kept = kept_time[Action(rank)];
      if (kept >= 0 && Time(rank) - kept <= options_.repeat_window_s) {
        keep_[rank] = 0;
      } else {
        kept = Time(rank);
      }
    }
  }

 private:
  int32_t Action(int rank) const { return events_.action[order_[rank]]; }
  int64_t Time(int rank) const { return events_.time[order_[rank]]; }

  const BehaviorView& events_;
  const std::vector<int>& order_;
  const CleanOptions& options_;
  std::vector<char>& keep_;
  std::vector<int> open_clicks_;  // ranks of clicks no conversion has absorbed
};

// How many of n survivors step 5 drops.
int NumDropped(int n, const CleanOptions& options) {
  const int max_events = std::max(options.max_events, 1);
  if (n <= max_events) return 0;
  const int block = std::min(std::max(options.block, 1), max_events);
  const int excess = n - max_events;
  return excess + (block - excess % block) % block;
}

}  // namespace

void CleanBehaviors(const BehaviorView& events, int64_t request_time, const CleanOptions& options,
                    CleanedBehaviors* out) {
  out->item.clear();
  out->action.clear();
  out->domain.clear();
  out->time.clear();

  const std::vector<int> order = OrderValid(events, request_time, options);
  const int n = static_cast<int>(order.size());
  std::vector<std::pair<int64_t, int>> by_item(n);
  for (int rank = 0; rank < n; ++rank) by_item[rank] = {events.item[order[rank]], rank};
  std::sort(by_item.begin(), by_item.end());

  std::vector<char> keep(n, 1);
  ItemFolder folder(events, order, options, &keep);
  for (int first = 0; first < n;) {
    int last = first + 1;
    while (last < n && by_item[last].first == by_item[first].first) ++last;
    folder.Fold(by_item.data() + first, by_item.data() + last);
    first = last;
  }

  int skip = NumDropped(static_cast<int>(std::count(keep.begin(), keep.end(), 1)), options);
  for (int rank = 0; rank < n; ++rank) {
    if (!keep[rank] || skip-- > 0) continue;
    const int i = order[rank];
    out->item.push_back(events.item[i]);
    out->action.push_back(events.action[i]);
    out->domain.push_back(events.domain[i]);
    out->time.push_back(events.time[i]);
  }
}

}  // namespace genrecall
