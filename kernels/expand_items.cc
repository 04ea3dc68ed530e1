#include "kernels/expand_items.h"

#include <algorithm>
#include <limits>
#include <unordered_set>

namespace genrecall {

namespace {

// A beam's items, taken one at a time.
struct Lane {
  int beam;
  uint32_t next, last;  // positions not looked at yet
  int left;             // items it may still give
};

// Checks every code, and finds the leaf of each beam's SID. Beams whose SID is not in the index, and all but
// the first of beams with one SID, get no lane.
Status MakeLanes(const RecallIndex& index, const int32_t* sids, int beams, int cap,
                 std::vector<Lane>* lanes) {
  const int levels = index.levels();
  std::unordered_set<uint32_t> seen;
  for (int b = 0; b < beams; ++b) {
    const int32_t* sid = sids + static_cast<size_t>(b) * levels;
    for (int l = 0; l < levels; ++l) {
      if (sid[l] < -1 || sid[l] >= index.level_size(l)) {
        return InvalidArgument("sids[", b, ", ", l, "] = ", sid[l], ": expected -1..",
                               index.level_size(l) - 1);
      }
    }
    const uint32_t leaf = index.FindSid(sid);
    if (leaf == kNoNode || !seen.insert(leaf).second) continue;
    const RecallIndex::Range range = index.items(leaf);
    lanes->push_back({b, range.first, range.last, cap > 0 ? cap : std::numeric_limits<int>::max()});
  }
  return Status();
}

}  // namespace

Status ExpandItems(const RecallIndex& index, const int32_t* sids, const float* scores, int beams,
                   const int64_t* exclude, int num_exclude, const ExpandOptions& options, ItemList* out) {
  *out = ItemList();
  if (options.k < 1) return InvalidArgument("k = ", options.k, ": expected >= 1");
  if (options.per_sid_cap < 0)
    return InvalidArgument("per_sid_cap = ", options.per_sid_cap, ": expected >= 0");
  std::vector<Lane> lanes;
  GENRECALL_RETURN_IF_ERROR(MakeLanes(index, sids, beams, options.per_sid_cap, &lanes));
  const std::unordered_set<int64_t> excluded(exclude, exclude + num_exclude);

  // Lanes with items left keep their order; exhausted ones fall out, so a round costs what it yields.
  while (!lanes.empty()) {
    size_t kept = 0;
    for (Lane& lane : lanes) {
      while (lane.next < lane.last && excluded.count(index.item_id(lane.next)) > 0) ++lane.next;
      if (lane.next == lane.last) continue;
      out->item.push_back(index.item_id(lane.next++));
      out->score.push_back(scores[lane.beam]);
      out->beam.push_back(lane.beam);
      if (static_cast<int>(out->item.size()) == options.k) return Status();
      if (--lane.left > 0) lanes[kept++] = lane;
    }
    lanes.resize(kept);
  }
  return Status();
}

void PopularItems(const RecallIndex& index, const int64_t* exclude, int num_exclude, int k, ItemList* out) {
  *out = ItemList();
  const std::unordered_set<int64_t> excluded(exclude, exclude + num_exclude);
  for (const uint32_t position : index.top_items()) {
    if (static_cast<int>(out->item.size()) >= k) return;
    const int64_t item = index.item_id(position);
    if (excluded.count(item) > 0) continue;
    out->item.push_back(item);
    out->score.push_back(index.weight(position));
    out->beam.push_back(-1);
  }
}

}  // namespace genrecall
