// The trie-constrained beam search of one request: which prefixes are live, what they scored, whom they
// descend from. Knows no model: the caller brings the logits of each level's live rows.
#ifndef GENRECALL_TRTLLM_BRIDGE_BEAM_SEARCH_H_
#define GENRECALL_TRTLLM_BRIDGE_BEAM_SEARCH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/constrained_topk.h"
#include "kernels/exclusions.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"
#include "trtllm_bridge/engine.h"

namespace genrecall {

// The live width of a level is min(W, legal prefixes): one row before level 0, at most C_0 after it, then
// growing to W. If W is at least the number of SIDs nothing is ever dropped and the result is the exact
// ranking. SIDs all of whose items are excluded are not legal: they cost no beam.
//
// With a seed the beams are a sample of W SIDs without replacement (Gumbel top-k), in the order of their
// perturbed values, from the distribution over legal SIDs that the model's logits at the temperature give;
// scores are what they would be without a seed.
//
//   BeamSearch search(index, options, excluded items);
//   while (!search.done()) search.Advance(logits of search.live() rows at search.level(), ...);
class BeamSearch {
 public:
  BeamSearch(std::shared_ptr<const RecallIndex> index, const BeamOptions& options,
             const std::vector<int64_t>& exclude);

  int level() const { return level_; }  // the level that the next Advance expands, L when done
  // Also when no beam is left, every SID being excluded.
  bool done() const { return level_ == index_->levels() || live() == 0; }
  int live() const { return static_cast<int>(node_.size()); }  // rows of logits that the next Advance takes
  const BeamOptions& options() const { return options_; }

  // The newest code of each live beam (level >= 1): [live].
  const std::vector<int32_t>& last_codes() const { return last_codes_; }
  // ancestor[j * live + b]: the row that live beam b descends from among the beams that were live at
  // generated position j; j in 0..level-1, the last of them being b itself.
  const std::vector<int32_t>& ancestors() const { return ancestors_; }
  // The codes of the live beams so far: [live, level].
  const std::vector<int32_t>& prefixes() const { return prefixes_; }

  // Memory for all levels at once, so that Advance allocates nothing.
  void Reserve();

  // Expands the live rows by one level. logits: [live, C_level], row stride `stride`; log_normalizer
  // [live] for kVocab. Errors: INTERNAL for a logit that is not a number (ConstrainedTopk's message); the
  // search is then over.
  Status Advance(const float* logits, int64_t stride, const float* log_normalizer);

  // Writes width, beams, sids, score and step_score, padded to W with -1 and -inf. Call when done().
  void Finish(DecodeResult* out) const;

 private:
  std::vector<GroupCap> Caps() const;

  std::shared_ptr<const RecallIndex> index_;
  BeamOptions options_;
  Exclusions exclusions_;
  int level_ = 0;
  std::vector<uint32_t> node_;      // [live] of trie level `level_`, distinct
  std::vector<uint32_t> path_;      // [live, level], the nodes of the live beams' prefixes; with caps only
  std::vector<float> score_;        // [live]
  std::vector<int32_t> prefixes_;   // [live, level]
  std::vector<float> step_scores_;  // [live, level]
  std::vector<int32_t> last_codes_;
  std::vector<int32_t> ancestors_;  // [level, live]
  // With a seed, [live] each: see TopkSampling.
  std::vector<float> log_prob_, perturbed_;
  std::vector<uint64_t> stream_;
  // Scratch of Advance.
  TopkBeams beams_;
  std::vector<int32_t> spare_codes_;
  std::vector<float> spare_scores_;
  std::vector<uint32_t> spare_nodes_;
};

// Sets options->prefix_caps from caps of prefix lengths 1, 2, ...; INVALID_ARGUMENT: more than L - 1 of them,
// a negative one.
Status SetPrefixCaps(const std::vector<int32_t>& caps, int levels, BeamOptions* options);

// An upper bound of the rows that the passes after the prompt's take: sum over levels 1..L-1 of min(W,
// number of prefixes).
int64_t DecodeRowsBound(const RecallIndex& index, int width);

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_BEAM_SEARCH_H_
