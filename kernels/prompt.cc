#include "kernels/prompt.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/prompt_rep.h"

namespace genrecall {
namespace {

// The value numbers of a sorted table; -1 where it has no such key.
template <typename Key, typename Entry>
int Find(const std::vector<Entry>& table, const Key& key) {
  auto it = std::lower_bound(table.begin(), table.end(), key,
                             [](const Entry& entry, const Key& k) { return entry.first < k; });
  return it != table.end() && it->first == key ? it->second : -1;
}

// "[256, 256]"
std::string Join(const std::vector<int32_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

// How a user's behaviours fall into parts: long-term [long_term_begin, past_end), recent [past_end, n), and
// what an interest summary reads, [summary_begin, past_end).
struct Parts {
  int summary_begin, long_term_begin, past_end;
};

Parts Split(int n, int recent_events, int long_term_events, int summary_events, int block) {
  const int past = std::max(0, n - recent_events) / block * block;
  return {std::max(0, past - summary_events), std::max(0, past - long_term_events), past};
}

bool Reads(const PromptSegment& segment, int32_t domain) {
  return domain >= 0 && domain < kNumDomains && (segment.domains >> domain & 1u) != 0;
}

// The segment's most frequent values of its facet among the behaviours that a summary reads.
std::vector<int32_t> TopFacetValues(const PromptSegment& segment, const PromptBehaviors& behaviors,
                                    Parts parts, int num_facets, int32_t num_values) {
  std::vector<int32_t> seen;  // values, in the order of their first appearance
  std::vector<int32_t> count(num_values, 0);
  for (int i = parts.summary_begin; i < parts.past_end; ++i) {
    const int32_t value = behaviors.facets[static_cast<size_t>(i) * num_facets + segment.subject];
    if (value < 0 || value >= num_values || !Reads(segment, behaviors.domain[i])) continue;
    if (count[value]++ == 0) seen.push_back(value);
  }
  std::stable_sort(seen.begin(), seen.end(), [&](int32_t a, int32_t b) { return count[a] > count[b]; });
  if (static_cast<int>(seen.size()) > segment.top) seen.resize(segment.top);
  return seen;
}

}  // namespace

void LookupBehaviors(const RecallIndex& index, const CleanedBehaviors& cleaned, PromptBehaviors* out) {
  const int levels = index.levels();
  const int num_facets = index.num_facets();
  out->action.clear();
  out->domain.clear();
  out->codes.clear();
  out->facets.clear();
  for (size_t i = 0; i < cleaned.item.size(); ++i) {
    const uint32_t position = index.FindItem(cleaned.item[i]);
    if (position == kNoNode) continue;
    out->action.push_back(cleaned.action[i]);
    out->domain.push_back(cleaned.domain[i]);
    out->codes.resize(out->codes.size() + levels);
    index.SidCodes(index.SidOfPosition(position), out->codes.data() + out->codes.size() - levels);
    for (int f = 0; f < num_facets; ++f) out->facets.push_back(index.facet(position, f));
  }
  out->length = static_cast<int>(out->action.size());
}

Prompt::Prompt(std::unique_ptr<const Rep> rep) : rep_(std::move(rep)) {}

const SidSpace& Prompt::sid_space() const { return rep_->sid_space; }
int32_t Prompt::sid_token(int level, int32_t code) const {
  return rep_->sid_tokens[rep_->level_begin[level] + code];
}
const CleanOptions& Prompt::clean_options() const { return rep_->clean; }
int Prompt::max_tokens() const { return rep_->max_tokens; }
const std::string& Prompt::spec_json() const { return rep_->spec_json; }

int Prompt::num_features() const { return static_cast<int>(rep_->features.size()); }
const std::string& Prompt::feature_name(int f) const { return rep_->features[f].name; }
FeatureKind Prompt::feature_kind(int f) const { return rep_->features[f].kind; }
int Prompt::num_facets() const { return static_cast<int>(rep_->facets.size()); }
const std::string& Prompt::facet_name(int f) const { return rep_->facets[f].name; }
int Prompt::num_segments() const { return static_cast<int>(rep_->segments.size()); }
SegmentKind Prompt::segment_kind(int s) const { return rep_->segments[s].kind; }

int Prompt::FeatureValue(int f, std::string_view value) const {
  return Find(rep_->features[f].strings, value);
}

int Prompt::FeatureValue(int f, int64_t value) const { return Find(rep_->features[f].ints, value); }

int Prompt::FeatureValue(int f, float value) const {
  if (value == -std::numeric_limits<float>::infinity()) return -1;
  const std::vector<float>& boundaries = rep_->features[f].boundaries;
  return static_cast<int>(std::upper_bound(boundaries.begin(), boundaries.end(), value) - boundaries.begin());
}

Status Prompt::CheckIndex(const RecallIndex& index) const {
  const SidSpace& ours = rep_->sid_space;
  const SidSpace& theirs = index.sid_space();
  if (theirs.level_sizes != ours.level_sizes) {
    return InvalidArgument("recall index: level sizes ", Join(theirs.level_sizes),
                           ": expected the prompt spec's ", Join(ours.level_sizes));
  }
  if (!theirs.digest.empty() && !ours.digest.empty() && theirs.digest != ours.digest) {
    return InvalidArgument("recall index: sid_space_digest = '", theirs.digest,
                           "': expected the prompt spec's '", ours.digest, "'");
  }
  if (index.num_facets() != num_facets()) {
    return InvalidArgument("recall index: ", index.num_facets(), " facets: expected the prompt spec's ",
                           num_facets());
  }
  return Status();
}

// Writes the behaviours of one prompt, segment after segment, and keeps account of what the prompt has told.
class Prompt::EventWriter {
 public:
  EventWriter(const Rep& rep, const PromptBehaviors& behaviors, AssembledPrompt* out)
      : rep_(rep), behaviors_(behaviors), out_(*out) {
    out_.events.assign(behaviors.length, EventPlace());
  }

  // Something was written from the first `end` behaviours: none of them can be asked for any more.
  void Tell(int end) { told_ = std::max(told_, end); }

  // Behaviours [begin, end), as far as the segment reads their domains.
  void Write(const PromptSegment& segment, int begin, int end) {
    const int first = size();
    written_.clear();
    for (int i = begin; i < end; ++i) {
      EventPlace& place = out_.events[i];
      const bool reads = Reads(segment, behaviors_.domain[i]);
      if (i >= told_ && (reads || place.asked < 0)) place.asked = end_ < 0 ? first : end_;
      if (!reads || IsMerged(segment, i)) continue;
      if (written_.empty()) rep_.Write(segment.prefix, &out_.tokens);
      WriteEvent(i, &place);
      written_.push_back(i);
      Tell(i + 1);
    }
  }

 private:
  int size() const { return static_cast<int>(out_.tokens.size()); }

  const int32_t* Codes(int i) const { return behaviors_.codes.data() + static_cast<size_t>(i) * levels(); }
  int levels() const { return static_cast<int>(rep_.sid_space.level_sizes.size()); }

  void WriteEvent(int i, EventPlace* place) {
    std::vector<int32_t>& tokens = out_.tokens;
    const int32_t action = behaviors_.action[i];
    if (action >= 0 && action < kNumActions) rep_.Write(rep_.action_text[action], &tokens);
    place->begin = size();
    for (int level = 0; level < levels(); ++level) {
      tokens.push_back(rep_.sid_tokens[rep_.level_begin[level] + Codes(i)[level]]);
    }
    rep_.Write(rep_.separator_text, &tokens);
    end_ = size();
  }

  bool IsMerged(const PromptSegment& segment, int i) const {
    if (segment.kind != SegmentKind::kLongTerm || rep_.merge_levels == 0) return false;
    const int first = std::max(0, static_cast<int>(written_.size()) - rep_.merge_window);
    return std::any_of(written_.begin() + first, written_.end(), [&](int j) {
      return behaviors_.action[j] == behaviors_.action[i] &&
             std::equal(Codes(i), Codes(i) + rep_.merge_levels, Codes(j));
    });
  }

  const Rep& rep_;
  const PromptBehaviors& behaviors_;
  AssembledPrompt& out_;
  std::vector<int> written_;  // by the segment at hand
  int told_ = 0;              // behaviours before this one have been told of
  int end_ = -1;              // tokens before the end of the last behaviour written; -1: none was
};

void Prompt::Assemble(const int32_t* feature_values, const PromptBehaviors& behaviors,
                      AssembledPrompt* out) const {
  const Rep& rep = *rep_;
  const Parts parts =
      Split(behaviors.length, rep.recent_events, rep.long_term_events, rep.summary_events, rep.block);
  std::vector<int32_t>& tokens = out->tokens;
  tokens.clear();
  out->segment_end.clear();
  out->stable_prefix = -1;
  EventWriter events(rep, behaviors, out);

  for (const PromptSegment& segment : rep.segments) {
    switch (segment.kind) {
      case SegmentKind::kText:
        rep.Write(segment.subject, &tokens);
        break;
      case SegmentKind::kFeature: {
        const PromptFeature& feature = rep.features[segment.subject];
        const int32_t value = feature_values[segment.subject];
        const bool known = value >= 0 && value < feature.num_values;
        rep.Write(known ? feature.first_text + value : feature.missing_text, &tokens);
        break;
      }
      case SegmentKind::kInterest: {
        const PromptFacet& facet = rep.facets[segment.subject];
        const std::vector<int32_t> values =
            TopFacetValues(segment, behaviors, parts, num_facets(), facet.num_values);
        for (size_t i = 0; i < values.size(); ++i) {
          rep.Write(i == 0 ? segment.prefix : segment.separator, &tokens);
          rep.Write(facet.first_text + values[i], &tokens);
        }
        if (!values.empty()) events.Tell(parts.past_end);
        break;
      }
      case SegmentKind::kLongTerm:
        events.Write(segment, parts.long_term_begin, parts.past_end);
        break;
      case SegmentKind::kRecent:
        if (out->stable_prefix < 0) out->stable_prefix = static_cast<int>(tokens.size());
        events.Write(segment, parts.past_end, behaviors.length);
        break;
    }
    out->segment_end.push_back(static_cast<int>(tokens.size()));
  }
  if (out->stable_prefix < 0) out->stable_prefix = static_cast<int>(tokens.size());
}

}  // namespace genrecall
