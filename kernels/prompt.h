// Prompt assembly: compiled prompt spec + feature values + cleaned behaviours with their SIDs -> token ids. Knows no
// tokenizer: every text was tokenized once, when kernels/prompt_spec.py compiled the spec into a GGUF file.
#ifndef GENRECALL_KERNELS_PROMPT_H_
#define GENRECALL_KERNELS_PROMPT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/behaviors.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

enum class FeatureKind : int { kString = 0, kInt64 = 1, kBucket = 2 };  // kBucket: float32 value, sorted boundaries

// The cleaned behaviours of one user with what the index knows of them. Behaviours whose item is not in the index were
// dropped by the caller (LookupBehaviors).
struct PromptBehaviors {
  int length = 0;
  std::vector<int32_t> action;   // [length]
  std::vector<int32_t> domain;   // [length]
  std::vector<int32_t> codes;    // [length, L]
  std::vector<int16_t> facets;   // [length, F]
};
// One user's cleaned events -> those the index has, with SIDs and facets, order kept.
void LookupBehaviors(const RecallIndex& index, const CleanedBehaviors& cleaned, PromptBehaviors* out);

struct AssembledPrompt {
  std::vector<int32_t> tokens;
  int stable_prefix = 0;  // tokens before the first that depends on recent behaviours
};

class Prompt {
 public:
  // Reads a file written by kernels/prompt_spec.py. Errors as GgufFile::Read; FAILED_PRECONDITION for the format
  // version and, with a non-empty expected_digest, for another sid_space_digest.
  static Result<std::shared_ptr<const Prompt>> Load(const std::string& path, const std::string& expected_digest);

  const SidSpace& sid_space() const;
  // Token id of (level, code): the stored table, never computed.
  int32_t sid_token(int level, int32_t code) const;
  const CleanOptions& clean_options() const;
  int max_tokens() const;  // no prompt is longer

  int num_features() const;
  const std::string& feature_name(int f) const;
  FeatureKind feature_kind(int f) const;
  // Index of the feature's value in its compiled table, -1 for an unknown or missing one (which writes the spec's
  // `missing` text). The overload must fit the feature's kind. Bucket: the number of boundaries <= value; NaN is the
  // caller's error to refuse.
  int FeatureValue(int f, std::string_view value) const;
  int FeatureValue(int f, int64_t value) const;
  int FeatureValue(int f, float value) const;

  // INVALID_ARGUMENT when the index is of another SID space or has other facets than the spec.
  Status CheckIndex(const RecallIndex& index) const;

  // feature_values: [num_features()] from FeatureValue. Of n behaviours, the long-term part are the first
  // floor(max(0, n - recent_events) / block) * block ones (its latest long_term_events, again cut in whole blocks), the rest
  // are recent: so the long-term part moves only in blocks. The interest summary reads long-term behaviours only: for its
  // facet the `top` most frequent values, ties to the value seen first; nothing is written when there is none.
  void Assemble(const int32_t* feature_values, const PromptBehaviors& behaviors, AssembledPrompt* out) const;

 private:
  struct Rep;
  std::shared_ptr<const Rep> rep_;
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_PROMPT_H_
