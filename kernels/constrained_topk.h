// One step of trie-constrained beam search for one request: log-softmax of a level's logits, the legal
// children of every live beam, the W best of them. Knows no model.
#ifndef GENRECALL_KERNELS_CONSTRAINED_TOPK_H_
#define GENRECALL_KERNELS_CONSTRAINED_TOPK_H_

#include <cstdint>
#include <vector>

#include "kernels/candidates.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

// What a step's log-probabilities are normalised over.
enum class Normalize : int {
  kLevel = 0,  // softmax over the level's codes
  kLegal = 1,  // over the legal children of the beam's node
  kVocab = 2,  // over the whole vocabulary: the caller gives log_normalizer
};

// Gumbel top-k sampling instead of the best (kernels/gumbel.h): what each live beam carries, [rows].
struct TopkSampling {
  const float* log_prob;   // sum of log-probabilities over legal children, whatever `normalize` says
  const float* perturbed;  // its perturbed value, which beams are ranked by; +inf at the root
  const uint64_t* stream;  // its noise stream
};

struct TopkArgs {
  const RecallIndex* index = nullptr;
  int level = 0;                      // trie level being expanded, 0..L-1
  int rows = 0;                       // live beams (1 at level 0)
  const uint32_t* node = nullptr;     // [rows] distinct nodes of `level`
  const float* beam_score = nullptr;  // [rows] sums so far, not NaN; best first is fastest
  const float* logits = nullptr;      // [rows, level_size(level)], row stride `stride`
  int64_t stride = 0;
  Normalize normalize = Normalize::kLevel;
  // [rows], kVocab: log-sum-exp over the row's whole vocabulary of logits / temperature; finite, or -inf when
  // every logit is.
  const float* log_normalizer = nullptr;
  float temperature = 1.0f;  // > 0; logits are divided by it before normalising
  int width = 0;             // W >= 1
  // Children that are not legal for this request: ascending nodes of level + 1 (Exclusions).
  const uint32_t* dead = nullptr;
  int num_dead = 0;
  std::vector<GroupCap> caps;              // how many survivors may share a prefix
  const TopkSampling* sampling = nullptr;  // null: the best
};

// The step's survivors, best first; all arrays of `count`.
struct TopkBeams {
  int count = 0;
  std::vector<int32_t> parent;  // row each came from
  std::vector<int32_t> code;
  std::vector<uint32_t> node;  // of level + 1
  std::vector<float> score;    // beam_score[parent] + step_score
  std::vector<float> step_score;
  // With sampling, what the survivors carry on; else empty.
  std::vector<float> log_prob, perturbed;
  std::vector<uint64_t> stream;
};

// The min(W, candidates) best (row, legal child) pairs by score (by perturbed value when sampling), less what
// caps forbid. A child is legal when it is in the trie and not among `dead`. Ties: the lexicographically
// smaller SID prefix, which is the smaller `node`. Nothing illegal, nothing twice. -inf logits are allowed
// and rank last: a step score is -inf when its logit is, also where all that it is normalised over are.
// Errors: INTERNAL for a NaN or +inf logit anywhere in a row's level
// ("logits[row, code] = nan at level l: expected finite"), a NaN or +inf beam_score or log_normalizer;
// INVALID_ARGUMENT for arguments out of their bounds. On error *out is unspecified.
// O(rows * (level_size + children)) time; nothing is allocated once scratch and *out have grown to a width.
// Bit-deterministic: a row's float32 sums are taken in a fixed order that depends on nothing but the row's
// length.
Status ConstrainedTopk(const TopkArgs& args, TopkBeams* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CONSTRAINED_TOPK_H_
