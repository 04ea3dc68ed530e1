// Several branches' items -> one answer.
#include <algorithm>
#include <unordered_map>

#include "kernels/expand_items.h"

namespace genrecall {

namespace {

class Merge {
 public:
  Merge(const BranchItems* branches, int num_branches, int k, MergedItems* out)
      : branches_(branches), k_(static_cast<size_t>(std::max(k, 0))), out_(out) {
    for (int b = 0; b < num_branches; ++b) {
      for (int i = 0; i < branches[b].count; ++i) {
        if (branches[b].item[i] >= 0) proposals_[branches[b].item[i]].mask |= int32_t{1} << b;
      }
    }
  }

  // Places items of branch b that are not placed yet, at most `quota` of them (< 0: no limit), while there is
  // room.
  void Place(int b, int quota) {
    const BranchItems& branch = branches_[b];
    for (int i = 0; i < branch.count && quota != 0 && out_->item.size() < k_; ++i) {
      if (branch.item[i] < 0) continue;
      Proposal& proposal = proposals_.at(branch.item[i]);
      if (proposal.placed) continue;
      proposal.placed = true;
      out_->item.push_back(branch.item[i]);
      out_->score.push_back(branch.score[i]);
      out_->branch_mask.push_back(proposal.mask);
      out_->source.push_back(b);
      if (quota > 0) --quota;
    }
  }

 private:
  struct Proposal {
    int32_t mask = 0;  // bit b: branch b proposed the item
    bool placed = false;
  };

  const BranchItems* branches_;
  const size_t k_;
  MergedItems* out_;
  std::unordered_map<int64_t, Proposal> proposals_;
};

}  // namespace

void MergeBranches(const BranchItems* branches, const int* quota, int num_branches, int k, MergedItems* out) {
  *out = MergedItems();
  Merge merge(branches, num_branches, k, out);
  for (int b = 0; b < num_branches; ++b) merge.Place(b, quota[b]);
  for (int b = 0; b < num_branches; ++b) merge.Place(b, -1);
}

}  // namespace genrecall
