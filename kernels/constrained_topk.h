// One step of trie-constrained beam search for one request: log-softmax of a level's logits, the allowed children of
// every live beam, the W best of them. Knows no model.
#ifndef GENRECALL_KERNELS_CONSTRAINED_TOPK_H_
#define GENRECALL_KERNELS_CONSTRAINED_TOPK_H_

#include <cstdint>
#include <vector>

#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

// What a step's log-probabilities are normalised over.
enum class Normalize : int {
  kLevel = 0,  // softmax over the level's codes
  kLegal = 1,  // over the allowed children of the beam's node
  kVocab = 2,  // over the whole vocabulary: the caller gives log_normalizer
};

struct TopkArgs {
  const RecallIndex* index = nullptr;
  int level = 0;                      // trie level being expanded, 0..L-1
  int rows = 0;                       // live beams (1 at level 0)
  const uint32_t* node = nullptr;     // [rows] distinct nodes of `level`
  const float* beam_score = nullptr;  // [rows] sums so far
  const float* logits = nullptr;      // [rows, level_size(level)], row stride `stride`
  int64_t stride = 0;
  Normalize normalize = Normalize::kLevel;
  const float* log_normalizer = nullptr;  // [rows], kVocab: log-sum-exp of the row's whole vocabulary
  float temperature = 1.0f;           // > 0; logits are divided by it before normalising
  int width = 0;                      // W >= 1
};

// The step's survivors, best first; all arrays of `count`.
struct TopkBeams {
  int count = 0;
  std::vector<int32_t> parent;  // row each came from
  std::vector<int32_t> code;
  std::vector<uint32_t> node;   // of level + 1
  std::vector<float> score;     // beam_score[parent] + step log-probability
  std::vector<float> step_score;
};

// The min(W, candidates) best (row, allowed child) pairs by score. Ties: the lexicographically smaller SID prefix, which is the
// smaller `node`. Nothing illegal, nothing twice. A NaN or +inf logit among a row's level is INTERNAL
// ("logits[row, code] = nan at level l: expected finite"): -inf logits are allowed and rank last.
// Deterministic in float32: log-softmax sums in ascending code order.
Status ConstrainedTopk(const TopkArgs& args, TopkBeams* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CONSTRAINED_TOPK_H_
