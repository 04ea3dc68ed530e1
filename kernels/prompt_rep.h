// The tables a compiled prompt consists of: filled and checked by prompt_file.cc, read by prompt.cc. Private
// to those two.
#ifndef GENRECALL_KERNELS_PROMPT_REP_H_
#define GENRECALL_KERNELS_PROMPT_REP_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/prompt.h"

namespace genrecall {

// A text is a number into the pool of tokenized texts; kNoText writes nothing.
inline constexpr int32_t kNoText = -1;

struct PromptFeature {
  std::string name;
  FeatureKind kind = FeatureKind::kString;
  int32_t first_text = 0;  // of value 0; the others follow
  int32_t num_values = 0;
  int32_t missing_text = kNoText;
  // Value -> number, sorted by value; the one of the feature's kind is filled.
  std::vector<std::pair<std::string, int32_t>> strings;
  std::vector<std::pair<int64_t, int32_t>> ints;
  std::vector<float> boundaries;  // ascending; num_values - 1 of them
};

struct PromptFacet {
  std::string name;
  int32_t first_text = 0;
  int32_t num_values = 0;
};

struct PromptSegment {
  SegmentKind kind = SegmentKind::kText;
  int32_t subject = 0;  // kText: the text; kFeature: the feature; kInterest: the facet
  int32_t top = 0;      // kInterest
  int32_t prefix = kNoText;
  int32_t separator = kNoText;                 // kInterest
  uint32_t domains = (1u << kNumDomains) - 1;  // kInterest, kLongTerm, kRecent: bit d: reads domain d
};

struct Prompt::Rep {
  SidSpace sid_space;
  std::vector<int32_t> sid_tokens;   // level after level
  std::vector<int32_t> level_begin;  // [L + 1] into sid_tokens

  std::vector<int32_t> text_tokens;  // text t: [text_begin[t], text_begin[t + 1])
  std::vector<int32_t> text_begin;

  std::vector<PromptFeature> features;
  std::vector<PromptFacet> facets;
  std::vector<PromptSegment> segments;

  CleanOptions clean;
  int32_t long_term_events = 0;  // a whole number of blocks
  int32_t recent_events = 0;
  int32_t summary_events = 0;  // the most past events an interest summary reads
  int32_t block = 1;
  int32_t action_text[kNumActions] = {kNoText, kNoText, kNoText};
  int32_t separator_text = kNoText;
  int32_t merge_levels = 0;  // 0: nothing is merged
  int32_t merge_window = 1;

  int32_t max_tokens = 0;
  std::string spec_json;

  int32_t text_size(int32_t text) const {
    return text == kNoText ? 0 : text_begin[text + 1] - text_begin[text];
  }
  void Write(int32_t text, std::vector<int32_t>* out) const {
    if (text == kNoText) return;
    out->insert(out->end(), text_tokens.begin() + text_begin[text],
                text_tokens.begin() + text_begin[text + 1]);
  }
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_PROMPT_REP_H_
