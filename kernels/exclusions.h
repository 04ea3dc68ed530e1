// Items one request must not get, as the parts of the trie that it therefore need not search. Knows no beams.
#ifndef GENRECALL_KERNELS_EXCLUSIONS_H_
#define GENRECALL_KERNELS_EXCLUSIONS_H_

#include <cstdint>
#include <vector>

#include "kernels/recall_index.h"

namespace genrecall {

// Trie nodes under which every item is excluded. A beam on one would lead to nothing, so they are not legal.
class Exclusions {
 public:
  Exclusions() = default;
  // Items that are not in the index are ignored. O(items * levels * log).
  Exclusions(const RecallIndex& index, const std::vector<int64_t>& items);

  // Ascending node numbers of trie level `level` (1..L).
  const std::vector<uint32_t>& nodes(int level) const;

 private:
  std::vector<uint32_t> nodes_[kMaxLevels];  // [level - 1]
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_EXCLUSIONS_H_
