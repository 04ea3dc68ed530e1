// Look-ups in a finished recall index.
#include "kernels/recall_index.h"

#include <algorithm>

namespace genrecall {

Status CheckLevelSizes(const std::vector<int32_t>& level_sizes) {
  if (level_sizes.empty() || level_sizes.size() > static_cast<size_t>(kMaxLevels)) {
    return InvalidArgument("level_sizes has ", level_sizes.size(), " levels: expected 1..", kMaxLevels);
  }
  for (size_t l = 0; l < level_sizes.size(); ++l) {
    if (level_sizes[l] < 1 || level_sizes[l] > kMaxLevelSize) {
      return InvalidArgument("level_sizes[", l, "] = ", level_sizes[l], ": expected 1..", kMaxLevelSize);
    }
  }
  return Status();
}

uint32_t RecallIndex::num_nodes(int level) const {
  return level == 0 ? 1 : static_cast<uint32_t>(codes_[level - 1].size());
}

uint32_t RecallIndex::child(int level, uint32_t node, int32_t code) const {
  const Range range = children(level, node);
  const uint16_t* codes = codes_[level].data();
  const uint16_t* found = std::lower_bound(codes + range.first, codes + range.last, code);
  if (found == codes + range.last || *found != code) return kNoNode;
  return static_cast<uint32_t>(found - codes);
}

uint32_t RecallIndex::FindSid(const int32_t* sid) const {
  uint32_t node = 0;
  for (int l = 0; l < levels(); ++l) {
    node = child(l, node, sid[l]);
    if (node == kNoNode) return kNoNode;
  }
  return node;
}

void RecallIndex::SidCodes(uint32_t sid, int32_t* out) const {
  uint32_t node = sid;
  for (int l = levels() - 1; l >= 0; --l) {
    out[l] = codes_[l][node];
    const IndexArray<uint32_t>& begin = child_begin_[l];
    node = static_cast<uint32_t>(std::upper_bound(begin.begin(), begin.end(), node) - begin.begin() - 1);
  }
}

RecallIndex::Range RecallIndex::items(uint32_t sid) const {
  if (sid_item_begin_.empty()) return {sid, sid + 1};
  return {sid_item_begin_[sid], sid_item_begin_[sid + 1]};
}

uint32_t RecallIndex::FindItem(int64_t item_id) const {
  const uint32_t* found =
      std::lower_bound(by_item_id_.begin(), by_item_id_.end(), item_id,
                       [this](uint32_t position, int64_t id) { return item_id_[position] < id; });
  if (found == by_item_id_.end() || item_id_[*found] != item_id) return kNoNode;
  return *found;
}

uint32_t RecallIndex::SidOfPosition(uint32_t position) const {
  if (sid_item_begin_.empty()) return position;
  const uint32_t* after = std::upper_bound(sid_item_begin_.begin(), sid_item_begin_.end(), position);
  return static_cast<uint32_t>(after - sid_item_begin_.begin() - 1);
}

int64_t RecallIndex::memory_bytes() const {
  int64_t bytes = sid_item_begin_.bytes() + item_id_.bytes() + weight_.bytes() + by_item_id_.bytes() +
                  facets_.bytes() + static_cast<int64_t>(top_items_.size() * sizeof(uint32_t));
  for (int l = 0; l < levels(); ++l) bytes += child_begin_[l].bytes() + codes_[l].bytes();
  return bytes;
}

}  // namespace genrecall
