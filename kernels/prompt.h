// Prompt assembly: compiled prompt spec + feature values + cleaned behaviours with their SIDs -> token ids.
// Knows no tokenizer: every text was tokenized once, when kernels/prompt_spec.py compiled the spec into a
// GGUF file.
#ifndef GENRECALL_KERNELS_PROMPT_H_
#define GENRECALL_KERNELS_PROMPT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/behaviors.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

enum class FeatureKind : int {
  kString = 0,
  kInt64 = 1,
  kBucket = 2
};  // kBucket: float32 value, sorted boundaries

// What a segment of a prompt writes; the JSON names are text, feature, interest, long_term, recent.
enum class SegmentKind : int { kText = 0, kFeature = 1, kInterest = 2, kLongTerm = 3, kRecent = 4 };
inline constexpr int kNumSegmentKinds = 5;

// The cleaned behaviours of one user with what the index knows of them. Behaviours whose item is not in the
// index were dropped by the caller (LookupBehaviors). Oldest first.
struct PromptBehaviors {
  int length = 0;
  std::vector<int32_t> action;  // [length]
  std::vector<int32_t> domain;  // [length]
  std::vector<int32_t> codes;   // [length, L]
  std::vector<int16_t> facets;  // [length, F], F = Prompt::num_facets()
};
// One user's cleaned events -> those the index has, with SIDs and facets, order kept.
void LookupBehaviors(const RecallIndex& index, const CleanedBehaviors& cleaned, PromptBehaviors* out);

// Where a prompt says a behaviour. Training reads it: every event of a prompt can be a target.
struct EventPlace {
  // The event is asked for by token asked - 1: what stands before is the end of the last event written before
  // it, separator included (for the first one: what precedes the behaviours), which is where serving asks for
  // the event after those. -1: what stands there already tells of this event or a later one (an interest
  // summary that counted it, a segment of another domain), or the event is older than the behaviours written.
  int32_t asked = -1;
  int32_t begin = -1;  // its first SID token; -1: not written
};

struct AssembledPrompt {
  std::vector<int32_t> tokens;
  int stable_prefix = 0;           // tokens before the first `recent` segment; all of them when there is none
  std::vector<int> segment_end;    // [num_segments] tokens written when the segment was done
  std::vector<EventPlace> events;  // [PromptBehaviors::length]
};

class Prompt {
 public:
  // Reads a file written by kernels/prompt_spec.py and checks all that Assemble relies on. Errors: as
  // GgufFile::Read; DATA_LOSS for contents that contradict each other; FAILED_PRECONDITION for the format
  // version and, with a non-empty expected_digest, for another sid_space_digest.
  static Result<std::shared_ptr<const Prompt>> Load(const std::string& path,
                                                    const std::string& expected_digest);

  const SidSpace& sid_space() const;
  // Token id of (level, code), both in range: the stored table, never computed.
  int32_t sid_token(int level, int32_t code) const;
  const CleanOptions& clean_options() const;
  int max_tokens() const;                // no prompt is longer
  const std::string& spec_json() const;  // the spec it was compiled from, for people and model cards

  int num_features() const;
  const std::string& feature_name(int f) const;
  FeatureKind feature_kind(int f) const;
  // Index of the feature's value in its compiled table, -1 for an unknown or missing one (which writes the
  // spec's `missing` text). The overload must fit the feature's kind. Bucket: the number of boundaries <=
  // value; -inf stands for a missing value; NaN is the caller's error to refuse.
  int FeatureValue(int f, std::string_view value) const;
  int FeatureValue(int f, int64_t value) const;
  int FeatureValue(int f, float value) const;

  int num_facets() const;
  const std::string& facet_name(int f) const;
  int num_segments() const;
  SegmentKind segment_kind(int s) const;

  // INVALID_ARGUMENT when the index is of another SID space or has another number of facets than the spec.
  Status CheckIndex(const RecallIndex& index) const;

  // feature_values: [num_features()] from FeatureValue. behaviors: of arrays that fit, codes in range; not
  // checked here.
  //
  // Of n behaviours the first floor(max(0, n - recent_events) / block) * block are past, the rest (at most
  // recent_events + block - 1) are recent. The long-term part is the latest long_term_events of the past, a
  // whole number of blocks: so it moves only in blocks, and between two moves the prompts of a user share
  // their stable prefix.
  //
  // A behaviour writes the text of its action, its L SID tokens, the separator. A `long_term` or `recent`
  // segment writes its prefix, then its behaviours; an `interest` segment its prefix, then the `top` most
  // frequent values of its facet among the past behaviours, those before the long-term part included as far
  // back as cleaning keeps them until the next block is past (ties: the value seen first; values the spec has
  // no text for do not count), with separators between them. All three read the behaviours of their domains
  // only, and write nothing, not even the prefix, when there is nothing to follow it.
  //
  // With merge_levels = m > 0 a long-term behaviour is not written when one of the last merge_window written
  // by its segment has its action and its first m codes: the first of similar items stands for all. So
  // merging never takes back what is written, and the stable prefix moves no more often than without it.
  void Assemble(const int32_t* feature_values, const PromptBehaviors& behaviors, AssembledPrompt* out) const;

 private:
  struct Rep;         // prompt_rep.h
  class EventWriter;  // prompt.cc
  explicit Prompt(std::unique_ptr<const Rep> rep);
  friend class PromptFile;  // prompt_file.cc
  std::shared_ptr<const Rep> rep_;
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_PROMPT_H_
