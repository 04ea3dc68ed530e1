// Behaviour cleaning: one user's raw events -> the events a prompt is written from. Knows no index and no
// tokenizer.
#ifndef GENRECALL_KERNELS_BEHAVIORS_H_
#define GENRECALL_KERNELS_BEHAVIORS_H_

#include <cstdint>
#include <vector>

#include "kernels/status.h"

namespace genrecall {

enum Action : int32_t { kExposure = 0, kClick = 1, kConversion = 2, kNumActions = 3 };
enum Domain : int32_t { kAd = 0, kContent = 1, kNumDomains = 2 };

// One user's events in any order; four parallel arrays of `length`.
struct BehaviorView {
  const int64_t* item;
  const int32_t* action;
  const int32_t* domain;
  const int64_t* time;  // Unix seconds
  int length;
};

struct CleanOptions {
  int max_events = 64;  // at most this many survivors are kept, >= 1
  int block = 1;        // the oldest are dropped in whole blocks of this many, 1..max_events
  uint32_t actions = (1u << kClick) | (1u << kConversion);  // bit a: events of action a are kept
  uint32_t domains = (1u << kAd) | (1u << kContent);        // bit d: events of domain d are kept
  int64_t attribution_window_s =
      7 * 24 * 3600;                    // a conversion absorbs the clicks on its item at most this much older
  int64_t repeat_window_s = 24 * 3600;  // an event repeats the kept one of same item and action this recent
};

struct CleanedBehaviors {
  std::vector<int64_t> item;
  std::vector<int32_t> action, domain;
  std::vector<int64_t> time;
};

// In this order:
//  1. drop events with item < 0, time <= 0, time > request_time, an unknown or switched-off action or domain;
//  2. order by time, stably (events of one second keep their given order); domains merge into one line;
//  3. a conversion absorbs the clicks on the same item (any domain) that stand before it and are at most
//     attribution_window_s older: the clicks are removed, the conversion stays where it is;
//  4. a later event with the item and action of a *kept* event at most repeat_window_s older is dropped, so
//     folding a repeat never rewrites what is already in a prompt;
//  5. while more than max_events are left, drop the `block` oldest. So max_events - block + 1 .. max_events
//     of a long history stay, and from one new event to the next nearly always the same ones: were the oldest
//     dropped one by one, every new event would shift the blocks in which a prompt's long-term part is
//     written.
// Never fails: bad events are dropped, options out of bounds are clamped. length 0 gives no events. Appending
// an event that is not older than the others changes what the earlier ones gave in two ways only: a
// conversion may absorb clicks, and step 5 may drop one block. Folding a repeat takes nothing back. What is
// clean, and the beginning of it, stays as it is when it is cleaned again: training cuts its prompts from
// clean lines, and they are then the prompts that serving writes from raw events. O(length log length).
void CleanBehaviors(const BehaviorView& events, int64_t request_time, const CleanOptions& options,
                    CleanedBehaviors* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_BEHAVIORS_H_
