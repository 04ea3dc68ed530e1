// Loading a compiled prompt. The file passed its checksum, but what it says is still checked: Assemble
// indexes these tables without looking.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/gguf.h"
#include "kernels/prompt.h"
#include "kernels/prompt_rep.h"

namespace genrecall {
namespace {

constexpr int64_t kFormatVersion = 2;
constexpr int64_t kMaxEvents = 1 << 16;
constexpr int64_t kMaxPromptTokens = 1 << 20;
constexpr int kSegmentColumns = 6;  // kind, subject, top, prefix, separator, domains

template <typename T>
Status Take(Result<T> result, T* out) {
  if (!result.ok()) return result.status();
  *out = std::move(result.value());
  return Status();
}

}  // namespace

// Reads one file into a Prompt::Rep. All errors after the version's are DATA_LOSS with path and place.
class PromptFile {
 public:
  PromptFile(std::shared_ptr<const GgufFile> file) : file_(std::move(file)), rep_(new Prompt::Rep) {}

  Result<std::shared_ptr<const Prompt>> Load(const std::string& expected_digest) {
    GENRECALL_RETURN_IF_ERROR(CheckVersion());
    GENRECALL_RETURN_IF_ERROR(LoadSidSpace(expected_digest));
    GENRECALL_RETURN_IF_ERROR(LoadTexts());
    GENRECALL_RETURN_IF_ERROR(LoadFeatures());
    GENRECALL_RETURN_IF_ERROR(LoadFacets());
    GENRECALL_RETURN_IF_ERROR(LoadBehaviors());
    GENRECALL_RETURN_IF_ERROR(LoadSegments());
    GENRECALL_RETURN_IF_ERROR(CountMaxTokens());
    return std::shared_ptr<const Prompt>(new Prompt(std::move(rep_)));
  }

 private:
  static std::string Key(const std::string& name) { return "genrecall.prompt." + name; }

  template <typename... Args>
  Status DataLoss(const Args&... args) const {
    return Status(Code::kDataLoss, Cat(file_->path(), ": ", args...));
  }

  template <typename T>
  Status IntIn(const std::string& key, int64_t low, int64_t high, T* out) const {
    int64_t value = 0;
    GENRECALL_RETURN_IF_ERROR(Take(file_->Int(Key(key)), &value));
    if (value < low || value > high) {
      return DataLoss(Key(key), " = ", value, ": expected ", low, "..", high);
    }
    *out = static_cast<T>(value);
    return Status();
  }

  // An array of `size` integers, each in low..high.
  Status IntsIn(const std::string& key, size_t size, int64_t low, int64_t high,
                std::vector<int64_t>* out) const {
    GENRECALL_RETURN_IF_ERROR(Take(file_->Ints(Key(key)), out));
    if (out->size() != size) {
      return DataLoss(Key(key), ": ", out->size(), " values: expected ", size);
    }
    for (size_t i = 0; i < size; ++i) {
      if ((*out)[i] < low || (*out)[i] > high) {
        return DataLoss(Key(key), "[", i, "] = ", (*out)[i], ": expected ", low, "..", high);
      }
    }
    return Status();
  }

  // A tensor of rank 1 of int32, each at least `low`.
  Status Int32s(const std::string& name, int32_t low, std::vector<int32_t>* out) const {
    GgufTensor tensor{};
    GENRECALL_RETURN_IF_ERROR(Take(file_->Tensor(name, GgufType::kI32), &tensor));
    if (tensor.shape.size() != 1) {
      return DataLoss("tensor '", name, "' has rank ", tensor.shape.size(), ": expected 1");
    }
    const auto* data = static_cast<const int32_t*>(tensor.data);
    out->assign(data, data + tensor.shape[0]);
    for (size_t i = 0; i < out->size(); ++i) {
      if ((*out)[i] < low) return DataLoss(name, "[", i, "] = ", (*out)[i], ": expected >= ", low);
    }
    return Status();
  }

  Status CheckVersion() const {
    if (!file_->Has(Key("format_version"))) {
      return DataLoss("not a compiled prompt: ", Key("format_version"), " is missing");
    }
    int64_t version = 0;
    GENRECALL_RETURN_IF_ERROR(Take(file_->Int(Key("format_version")), &version));
    if (version != kFormatVersion) {
      return Status(Code::kFailedPrecondition,
                    Cat(file_->path(), ": prompt format version ", version, ": expected ", kFormatVersion,
                        "; compile the spec again"));
    }
    return Status();
  }

  Status LoadSidSpace(const std::string& expected_digest) {
    SidSpace& space = rep_->sid_space;
    GENRECALL_RETURN_IF_ERROR(Take(file_->String("genrecall.sid_space_digest"), &space.digest));
    if (!expected_digest.empty() && space.digest != expected_digest) {
      return Status(Code::kFailedPrecondition, Cat(file_->path(), ": sid_space_digest = '", space.digest,
                                                   "': expected '", expected_digest, "'"));
    }
    std::vector<int64_t> sizes;
    GENRECALL_RETURN_IF_ERROR(Take(file_->Ints("genrecall.level_sizes"), &sizes));
    if (sizes.empty() || sizes.size() > kMaxLevels) {
      return DataLoss("genrecall.level_sizes: ", sizes.size(), " levels: expected 1..", kMaxLevels);
    }
    rep_->level_begin = {0};
    for (size_t level = 0; level < sizes.size(); ++level) {
      if (sizes[level] < 1 || sizes[level] > kMaxLevelSize) {
        return DataLoss("genrecall.level_sizes[", level, "] = ", sizes[level], ": expected 1..",
                        kMaxLevelSize);
      }
      space.level_sizes.push_back(static_cast<int32_t>(sizes[level]));
      rep_->level_begin.push_back(rep_->level_begin.back() + space.level_sizes.back());
    }
    GENRECALL_RETURN_IF_ERROR(Int32s("sid_token_ids", 0, &rep_->sid_tokens));
    if (rep_->sid_tokens.size() != static_cast<size_t>(rep_->level_begin.back())) {
      return DataLoss("sid_token_ids: ", rep_->sid_tokens.size(), " values: expected ",
                      rep_->level_begin.back(), ", the sum of the level sizes");
    }
    return Status();
  }

  Status LoadTexts() {
    GENRECALL_RETURN_IF_ERROR(Take(file_->String(Key("spec")), &rep_->spec_json));
    GENRECALL_RETURN_IF_ERROR(Int32s("text_tokens", 0, &rep_->text_tokens));
    GENRECALL_RETURN_IF_ERROR(Int32s("text_begin", 0, &rep_->text_begin));
    const std::vector<int32_t>& begin = rep_->text_begin;
    if (begin.empty() || begin.front() != 0 || !std::is_sorted(begin.begin(), begin.end()) ||
        static_cast<size_t>(begin.back()) != rep_->text_tokens.size()) {
      return DataLoss("text_begin: expected ascending offsets from 0 to ", rep_->text_tokens.size());
    }
    return Status();
  }

  int64_t num_texts() const { return static_cast<int64_t>(rep_->text_begin.size()) - 1; }

  Status CheckTexts(const std::string& what, int64_t first, int64_t count) const {
    if (first > num_texts() || count > num_texts() - first) {
      return DataLoss(what, ": texts ", first, "..", first + count - 1, ": expected < ", num_texts());
    }
    return Status();
  }

  Status LoadFeatures() {
    std::vector<std::string> names;
    GENRECALL_RETURN_IF_ERROR(Take(file_->Strings(Key("feature.names")), &names));
    std::vector<int64_t> kinds, first, count, missing;
    GENRECALL_RETURN_IF_ERROR(IntsIn("feature.kinds", names.size(), 0, 2, &kinds));
    GENRECALL_RETURN_IF_ERROR(IntsIn("feature.first_text", names.size(), 0, num_texts(), &first));
    GENRECALL_RETURN_IF_ERROR(IntsIn("feature.num_values", names.size(), 0, num_texts(), &count));
    GENRECALL_RETURN_IF_ERROR(IntsIn("feature.missing_text", names.size(), 0, num_texts() - 1, &missing));
    for (size_t f = 0; f < names.size(); ++f) {
      GENRECALL_RETURN_IF_ERROR(CheckTexts(Cat("feature '", names[f], "'"), first[f], count[f]));
      PromptFeature feature;
      feature.name = names[f];
      feature.kind = static_cast<FeatureKind>(kinds[f]);
      feature.first_text = static_cast<int32_t>(first[f]);
      feature.num_values = static_cast<int32_t>(count[f]);
      feature.missing_text = static_cast<int32_t>(missing[f]);
      GENRECALL_RETURN_IF_ERROR(LoadFeatureTable(Cat("feature.", f, "."), &feature));
      rep_->features.push_back(std::move(feature));
    }
    return Status();
  }

  Status LoadFeatureTable(const std::string& prefix, PromptFeature* feature) const {
    switch (feature->kind) {
      case FeatureKind::kString: {
        std::vector<std::string> values;
        GENRECALL_RETURN_IF_ERROR(Take(file_->Strings(Key(prefix + "values")), &values));
        return SortedTable(prefix, feature->num_values, values, &feature->strings);
      }
      case FeatureKind::kInt64: {
        std::vector<int64_t> values;
        GENRECALL_RETURN_IF_ERROR(Take(file_->Ints(Key(prefix + "values")), &values));
        return SortedTable(prefix, feature->num_values, values, &feature->ints);
      }
      case FeatureKind::kBucket:
        return LoadBoundaries(prefix, feature);
    }
    return Status();
  }

  template <typename T>
  Status SortedTable(const std::string& prefix, int32_t expected, const std::vector<T>& values,
                     std::vector<std::pair<T, int32_t>>* table) const {
    if (values.size() != static_cast<size_t>(expected)) {
      return DataLoss(Key(prefix), "values: ", values.size(), " values: expected ", expected);
    }
    for (int32_t i = 0; i < expected; ++i) table->emplace_back(values[i], i);
    std::sort(table->begin(), table->end());
    for (int32_t i = 1; i < expected; ++i) {
      if ((*table)[i].first == (*table)[i - 1].first) {
        return DataLoss(Key(prefix), "values: '", (*table)[i].first, "' twice");
      }
    }
    return Status();
  }

  Status LoadBoundaries(const std::string& prefix, PromptFeature* feature) const {
    const std::string name = prefix + "boundaries";
    GgufTensor tensor{};
    GENRECALL_RETURN_IF_ERROR(Take(file_->Tensor(name, GgufType::kF32), &tensor));
    if (tensor.shape.size() != 1 || tensor.shape[0] != feature->num_values - 1) {
      return DataLoss("tensor '", name, "': expected shape [", feature->num_values - 1, "]");
    }
    const auto* data = static_cast<const float*>(tensor.data);
    feature->boundaries.assign(data, data + tensor.shape[0]);
    for (size_t i = 0; i < feature->boundaries.size(); ++i) {
      if (!std::isfinite(data[i]) || (i > 0 && !(data[i - 1] < data[i]))) {
        return DataLoss(name, "[", i, "] = ", data[i], ": expected finite and ascending");
      }
    }
    return Status();
  }

  Status LoadFacets() {
    std::vector<std::string> names;
    GENRECALL_RETURN_IF_ERROR(Take(file_->Strings(Key("facet.names")), &names));
    std::vector<int64_t> first, count;
    GENRECALL_RETURN_IF_ERROR(IntsIn("facet.first_text", names.size(), 0, num_texts(), &first));
    GENRECALL_RETURN_IF_ERROR(IntsIn("facet.num_values", names.size(), 0, num_texts(), &count));
    for (size_t f = 0; f < names.size(); ++f) {
      GENRECALL_RETURN_IF_ERROR(CheckTexts(Cat("facet '", names[f], "'"), first[f], count[f]));
      rep_->facets.push_back({names[f], static_cast<int32_t>(first[f]), static_cast<int32_t>(count[f])});
    }
    return Status();
  }

  Status LoadBehaviors() {
    Prompt::Rep& rep = *rep_;
    constexpr int64_t kForever = std::numeric_limits<int64_t>::max();
    GENRECALL_RETURN_IF_ERROR(IntIn("max_events", 1, kMaxEvents, &rep.clean.max_events));
    GENRECALL_RETURN_IF_ERROR(IntIn("block", 1, rep.clean.max_events, &rep.block));
    rep.clean.block = rep.block;
    GENRECALL_RETURN_IF_ERROR(IntIn("recent_events", 0, kMaxEvents, &rep.recent_events));
    GENRECALL_RETURN_IF_ERROR(IntIn("long_term_events", 0, kMaxEvents, &rep.long_term_events));
    if (rep.long_term_events % rep.block != 0) {
      return DataLoss(Key("long_term_events"), " = ", rep.long_term_events,
                      ": expected a multiple of the block, ", rep.block);
    }
    // So many past events there are even when cleaning has just dropped a block. Were a summary to read more,
    // it would change then, too, and not only when a block becomes past.
    rep.summary_events = std::max(0, rep.clean.max_events - rep.block + 1 - rep.recent_events);
    rep.summary_events = std::max(rep.long_term_events, rep.summary_events / rep.block * rep.block);
    GENRECALL_RETURN_IF_ERROR(IntIn("actions", 0, (1 << kNumActions) - 1, &rep.clean.actions));
    GENRECALL_RETURN_IF_ERROR(IntIn("domains", 0, (1 << kNumDomains) - 1, &rep.clean.domains));
    GENRECALL_RETURN_IF_ERROR(IntIn("attribution_window_s", 0, kForever, &rep.clean.attribution_window_s));
    GENRECALL_RETURN_IF_ERROR(IntIn("repeat_window_s", 0, kForever, &rep.clean.repeat_window_s));
    const auto levels = static_cast<int64_t>(rep.sid_space.level_sizes.size());
    GENRECALL_RETURN_IF_ERROR(IntIn("merge_levels", 0, levels, &rep.merge_levels));
    GENRECALL_RETURN_IF_ERROR(IntIn("merge_window", 1, kMaxEvents, &rep.merge_window));
    std::vector<int64_t> texts;
    GENRECALL_RETURN_IF_ERROR(IntsIn("action_text", kNumActions, 0, num_texts() - 1, &texts));
    std::copy(texts.begin(), texts.end(), rep.action_text);
    return IntIn("separator_text", 0, num_texts() - 1, &rep.separator_text);
  }

  Status LoadSegments() {
    GgufTensor tensor{};
    GENRECALL_RETURN_IF_ERROR(Take(file_->Tensor("segments", GgufType::kI32), &tensor));
    if (tensor.shape.size() != 2 || tensor.shape[1] != kSegmentColumns) {
      return DataLoss("tensor 'segments': expected shape [n, ", kSegmentColumns, "]");
    }
    const auto* row = static_cast<const int32_t*>(tensor.data);
    uint32_t written[kNumSegmentKinds] = {};  // domains, by kind
    for (int64_t s = 0; s < tensor.shape[0]; ++s, row += kSegmentColumns) {
      if (row[0] < 0 || row[0] >= kNumSegmentKinds) {
        return DataLoss("segments[", s, ", 0] = ", row[0], ": expected 0..", kNumSegmentKinds - 1);
      }
      if (row[5] < 0 || row[5] >= 1 << kNumDomains) {
        return DataLoss("segments[", s, ", 5] = ", row[5], ": expected 0..", (1 << kNumDomains) - 1);
      }
      const PromptSegment segment{static_cast<SegmentKind>(row[0]), row[1], row[2], row[3], row[4],
                                  static_cast<uint32_t>(row[5])};
      uint32_t& domains = written[row[0]];
      const bool writes = segment.kind == SegmentKind::kLongTerm || segment.kind == SegmentKind::kRecent;
      if (writes && (domains & segment.domains) != 0) {
        return DataLoss("segments[", s, ", 5] = ", row[5],
                        ": expected domains that no segment of its kind has yet");
      }
      domains |= segment.domains;
      if (segment.subject < 0 || segment.subject >= NumSubjects(segment.kind)) {
        return DataLoss("segments[", s, ", 1] = ", segment.subject, ": expected 0..",
                        NumSubjects(segment.kind) - 1);
      }
      if (segment.top < 0) return DataLoss("segments[", s, ", 2] = ", segment.top, ": expected >= 0");
      for (int column = 3; column < 5; ++column) {
        if (row[column] < kNoText || row[column] >= num_texts()) {
          return DataLoss("segments[", s, ", ", column, "] = ", row[column], ": expected ", kNoText, "..",
                          num_texts() - 1);
        }
      }
      rep_->segments.push_back(segment);
    }
    return Status();
  }

  // How many values a segment's `subject` may have.
  int64_t NumSubjects(SegmentKind kind) const {
    switch (kind) {
      case SegmentKind::kText:
        return num_texts();
      case SegmentKind::kFeature:
        return static_cast<int64_t>(rep_->features.size());
      case SegmentKind::kInterest:
        return static_cast<int64_t>(rep_->facets.size());
      case SegmentKind::kLongTerm:
      case SegmentKind::kRecent:
        return 1;  // written as 0
    }
    return 0;
  }

  // Sizes of `count` texts from `first`, the largest first.
  std::vector<int64_t> TextSizes(int32_t first, int32_t count) const {
    std::vector<int64_t> sizes;
    for (int32_t i = 0; i < count; ++i) sizes.push_back(rep_->text_size(first + i));
    std::sort(sizes.rbegin(), sizes.rend());
    return sizes;
  }

  // Of a behaviour.
  int64_t MaxEventTokens() const {
    int64_t action = 0;
    for (int32_t text : rep_->action_text) action = std::max<int64_t>(action, rep_->text_size(text));
    const auto levels = static_cast<int64_t>(rep_->sid_space.level_sizes.size());
    return action + levels + rep_->text_size(rep_->separator_text);
  }

  // Of a segment without its behaviours, which several segments may share.
  int64_t MaxSegmentTokens(const PromptSegment& segment) const {
    switch (segment.kind) {
      case SegmentKind::kText:
        return rep_->text_size(segment.subject);
      case SegmentKind::kFeature: {
        const PromptFeature& feature = rep_->features[segment.subject];
        const auto sizes = TextSizes(feature.first_text, feature.num_values);
        return std::max<int64_t>(rep_->text_size(feature.missing_text), sizes.empty() ? 0 : sizes[0]);
      }
      case SegmentKind::kInterest: {
        const PromptFacet& facet = rep_->facets[segment.subject];
        const auto sizes = TextSizes(facet.first_text, facet.num_values);
        const int64_t values =
            std::min<int64_t>({segment.top, static_cast<int64_t>(sizes.size()), rep_->clean.max_events});
        if (values == 0) return 0;
        int64_t tokens = rep_->text_size(segment.prefix) + (values - 1) * rep_->text_size(segment.separator);
        for (int64_t i = 0; i < values; ++i) tokens += sizes[i];
        return tokens;
      }
      case SegmentKind::kLongTerm:
      case SegmentKind::kRecent:
        return rep_->text_size(segment.prefix);
    }
    return 0;
  }

  Status CountMaxTokens() {
    // Each term is below 2^17 * 2^33, and the sum is checked after each. Behaviours count once a kind: the
    // segments of one kind share them by domain.
    int64_t total = 0;
    int64_t events[kNumSegmentKinds] = {};
    events[static_cast<int>(SegmentKind::kLongTerm)] = rep_->long_term_events;
    events[static_cast<int>(SegmentKind::kRecent)] = int64_t{rep_->recent_events} + rep_->block - 1;
    for (const PromptSegment& segment : rep_->segments) {
      total += MaxSegmentTokens(segment);
      total += std::exchange(events[static_cast<int>(segment.kind)], 0) * MaxEventTokens();
      if (total > kMaxPromptTokens) {
        return DataLoss("a prompt may have more than ", kMaxPromptTokens, " tokens: expected fewer");
      }
    }
    rep_->max_tokens = static_cast<int32_t>(total);
    return Status();
  }

  std::shared_ptr<const GgufFile> file_;
  std::unique_ptr<Prompt::Rep> rep_;
};

Result<std::shared_ptr<const Prompt>> Prompt::Load(const std::string& path,
                                                   const std::string& expected_digest) {
  auto file = GgufFile::Read(path, /*require_checksum=*/true);
  if (!file.ok()) return file.status();
  return PromptFile(file.value()).Load(expected_digest);
}

}  // namespace genrecall
