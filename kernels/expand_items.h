// From beams to items, and from branches to one answer. Knows no model.
#ifndef GENRECALL_KERNELS_EXPAND_ITEMS_H_
#define GENRECALL_KERNELS_EXPAND_ITEMS_H_

#include <cstdint>
#include <vector>

#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

struct ItemList {
  std::vector<int64_t> item;
  std::vector<float> score;
  std::vector<int32_t> beam;  // beam each item came from (-1: none)
};

struct ExpandOptions {
  int k = 50;           // at most this many items, >= 1
  int per_sid_cap = 0;  // at most this many items of one SID; 0: no cap
};

// One user's beams -> items. sids: [beams, L], rows of -1 are padding; scores [beams], best first.
// Round-robin: first the heaviest eligible item of every beam in beam order, then the second of each, ... so
// a crowded SID cannot fill the answer. Excluded items are skipped and do not use up a cap. SIDs no longer in
// the index give nothing. An item's score is its beam's. No item twice: of beams with one SID the first
// counts. INVALID_ARGUMENT: a code outside
// [-1, C), k < 1, per_sid_cap < 0.
Status ExpandItems(const RecallIndex& index, const int32_t* sids, const float* scores, int beams,
                   const int64_t* exclude, int num_exclude, const ExpandOptions& options, ItemList* out);

// The popular branch: the heaviest items of the index less the excluded; score = weight; beam = -1. It looks
// at the index's top_items, so it never gives more than RecallIndex::kTopItems.
void PopularItems(const RecallIndex& index, const int64_t* exclude, int num_exclude, int k, ItemList* out);

// One branch's answer for one user: `count` items, best first (-1 entries are skipped).
struct BranchItems {
  const int64_t* item;
  const float* score;
  int count;
};

struct MergedItems {
  std::vector<int64_t> item;
  std::vector<float> score;          // the score given by the branch that placed the item
  std::vector<int32_t> branch_mask;  // bit b: branch b proposed it
  std::vector<int32_t> source;       // branch that placed the item
};

inline constexpr int kMaxBranches = 31;  // bits of a branch_mask

// Quotas, de-duplication, provenance. Branch b first places up to quota[b] items not yet placed, in branch
// order (quota < 0: no limit); places left over up to k are then filled from the branches in order, ignoring
// quotas. An item proposed by several branches appears once, where the first of them placed it, with every
// proposer's bit set (also of proposals beyond a quota). num_branches <= kMaxBranches.
void MergeBranches(const BranchItems* branches, const int* quota, int num_branches, int k, MergedItems* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_EXPAND_ITEMS_H_
