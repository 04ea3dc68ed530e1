#include "kernels/exclusions.h"

#include <algorithm>

namespace genrecall {
namespace {

// The parent of node `child` of level + 1. O(log nodes).
uint32_t Parent(const RecallIndex& index, int level, uint32_t child) {
  uint32_t low = 0, high = index.num_nodes(level) - 1;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (child < index.children(level, middle).last) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

void SortUnique(std::vector<uint32_t>* v) {
  std::sort(v->begin(), v->end());
  v->erase(std::unique(v->begin(), v->end()), v->end());
}

}  // namespace

Exclusions::Exclusions(const RecallIndex& index, const std::vector<int64_t>& items) {
  std::vector<uint32_t> positions;
  for (const int64_t item : items) {
    const uint32_t position = index.FindItem(item);
    if (position != kNoNode) positions.push_back(position);
  }
  SortUnique(&positions);
  // Positions of one SID are neighbours, and so are the children of one node: a run that is as long as its
  // SID's, or its node's, leaves nothing.
  const int levels = index.levels();
  std::vector<uint32_t>& leaves = nodes_[levels - 1];
  for (size_t i = 0; i < positions.size();) {
    const uint32_t sid = index.SidOfPosition(positions[i]);
    const RecallIndex::Range range = index.items(sid);
    size_t end = i;
    while (end < positions.size() && positions[end] < range.last) ++end;
    if (end - i == range.last - range.first) leaves.push_back(sid);
    i = end;
  }
  for (int level = levels - 1; level >= 1; --level) {
    const std::vector<uint32_t>& below = nodes_[level];
    for (size_t i = 0; i < below.size();) {
      const uint32_t node = Parent(index, level, below[i]);
      const RecallIndex::Range range = index.children(level, node);
      size_t end = i;
      while (end < below.size() && below[end] < range.last) ++end;
      if (end - i == range.last - range.first) nodes_[level - 1].push_back(node);
      i = end;
    }
  }
}

const std::vector<uint32_t>& Exclusions::nodes(int level) const { return nodes_[level - 1]; }

}  // namespace genrecall
