#include "trtllm_bridge/beam_search.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/gumbel.h"

namespace genrecall {
namespace {

// rows [rows, cols] -> [parents, cols + 1]: row parent[b], then last[b]. The old rows end up in `spare`.
template <typename T>
void GatherAppend(int cols, const std::vector<int32_t>& parent, const std::vector<T>& last,
                  std::vector<T>* rows, std::vector<T>* spare) {
  spare->resize(parent.size() * (cols + 1));
  for (size_t b = 0; b < parent.size(); ++b) {
    const T* row = rows->data() + static_cast<size_t>(parent[b]) * cols;
    T* out = spare->data() + b * (cols + 1);
    std::copy(row, row + cols, out);
    out[cols] = last[b];
  }
  rows->swap(*spare);
}

}  // namespace

BeamSearch::BeamSearch(std::shared_ptr<const RecallIndex> index, const BeamOptions& options,
                       const std::vector<int64_t>& exclude)
    : index_(std::move(index)),
      options_(options),
      exclusions_(*index_, exclude),
      node_{0},
      score_{0.0f},
      log_prob_{0.0f},
      perturbed_{std::numeric_limits<float>::infinity()},
      stream_{RootStream(options.seed)} {}

std::vector<GroupCap> BeamSearch::Caps() const {
  std::vector<GroupCap> caps;
  for (int l = 0; l < level_; ++l) {
    if (options_.prefix_caps[l] > 0) caps.push_back({options_.prefix_caps[l], path_.data() + l, level_});
  }
  return caps;
}

void BeamSearch::Reserve() {
  const size_t width = options_.width, levels = index_->levels();
  for (std::vector<int32_t>* v : {&prefixes_, &spare_codes_, &ancestors_}) v->reserve(width * levels);
  for (std::vector<float>* v : {&step_scores_, &spare_scores_}) v->reserve(width * levels);
  for (std::vector<float>* v : {&score_, &beams_.score, &beams_.step_score}) v->reserve(width);
  for (std::vector<int32_t>* v : {&last_codes_, &beams_.parent, &beams_.code}) v->reserve(width);
  for (std::vector<uint32_t>* v : {&node_, &beams_.node}) v->reserve(width);
}

Status BeamSearch::Advance(const float* logits, int64_t stride, const float* log_normalizer) {
  const std::vector<uint32_t>& dead = exclusions_.nodes(level_ + 1);
  const TopkSampling sampling{log_prob_.data(), perturbed_.data(), stream_.data()};
  TopkArgs args;
  args.index = index_.get();
  args.level = level_;
  args.rows = live();
  args.node = node_.data();
  args.beam_score = score_.data();
  args.logits = logits;
  args.stride = stride;
  args.normalize = options_.normalize;
  args.log_normalizer = log_normalizer;
  args.temperature = options_.temperature;
  args.width = options_.width;
  args.dead = dead.data();
  args.num_dead = static_cast<int>(dead.size());
  args.caps = Caps();
  if (options_.seed != 0) args.sampling = &sampling;
  GENRECALL_RETURN_IF_ERROR(ConstrainedTopk(args, &beams_));

  const int rows = live();
  const std::vector<int32_t>& parent = beams_.parent;
  GatherAppend(level_, parent, beams_.code, &prefixes_, &spare_codes_);
  GatherAppend(level_, parent, beams_.step_score, &step_scores_, &spare_scores_);
  if (options_.capped()) GatherAppend(level_, parent, beams_.node, &path_, &spare_nodes_);
  std::vector<int32_t>& ancestors = spare_codes_;
  ancestors.resize((level_ + 1) * parent.size());
  for (size_t b = 0; b < parent.size(); ++b) {
    for (int j = 0; j < level_; ++j) ancestors[j * parent.size() + b] = ancestors_[j * rows + parent[b]];
    ancestors[level_ * parent.size() + b] = static_cast<int32_t>(b);
  }
  ancestors_.swap(ancestors);
  node_ = beams_.node;
  score_ = beams_.score;
  last_codes_ = beams_.code;
  log_prob_ = beams_.log_prob;
  perturbed_ = beams_.perturbed;
  stream_ = beams_.stream;
  ++level_;
  return Status();
}

void BeamSearch::Finish(DecodeResult* out) const {
  const size_t width = options_.width, levels = index_->levels();
  const float worst = -std::numeric_limits<float>::infinity();
  out->width = options_.width;
  out->beams = live();
  out->sids = prefixes_;
  out->score = score_;
  out->step_score = step_scores_;
  out->sids.resize(width * levels, -1);
  out->score.resize(width, worst);
  out->step_score.resize(width * levels, worst);
}

Status SetPrefixCaps(const std::vector<int32_t>& caps, int levels, BeamOptions* options) {
  if (static_cast<int>(caps.size()) > levels - 1) {
    return InvalidArgument("prefix_caps has ", caps.size(),
                           " entries: expected at most L - 1 = ", levels - 1);
  }
  for (size_t i = 0; i < caps.size(); ++i) {
    if (caps[i] < 0) return InvalidArgument("prefix_caps[", i, "] = ", caps[i], ": expected >= 0");
  }
  options->prefix_caps = {};
  std::copy(caps.begin(), caps.end(), options->prefix_caps.begin());
  return Status();
}

int64_t DecodeRowsBound(const RecallIndex& index, int width) {
  int64_t rows = 0;
  for (int l = 1; l < index.levels(); ++l) rows += std::min<int64_t>(width, index.num_nodes(l));
  return rows;
}

}  // namespace genrecall
