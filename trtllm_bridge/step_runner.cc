#include "trtllm_bridge/step_runner.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <tuple>
#include <utility>

namespace genrecall {
namespace {

bool NeedsVocab(const LiveRequest* r) { return r->search.options().normalize == Normalize::kVocab; }

}  // namespace

StepRunner::StepRunner(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops,
                       std::shared_ptr<KvBudget> budget, int max_rows, int max_positions)
    : weights_(weights),
      decoder_(weights, ops, max_rows, max_positions),
      budget_(budget),
      kv_pool_(decoder_.kv_shape(), budget),
      prefix_cache_(&kv_pool_) {}

Status StepRunner::CheckKv(const DecodeRequest& request, int64_t* tail_bytes) const {
  const int width = request.beam.width;
  *tail_bytes = 0;
  for (int l = 1; l < levels(); ++l) {
    const int64_t rows = std::min<int64_t>(width, request.index->num_nodes(l));
    *tail_bytes += kv_pool_.TailBytes(static_cast<int>(rows));
  }
  const int64_t bytes = kv_pool_.PromptBytes(static_cast<int64_t>(request.prompt.size())) + *tail_bytes;
  if (bytes <= budget_->limit()) return Status();
  return InvalidArgument("prompt of ", request.prompt.size(), " tokens and beam_width = ", width, " need ",
                         bytes, " bytes of keys and values: expected at most kv_bytes = ", budget_->limit());
}

bool StepRunner::Admit(LiveRequest* r) {
  try {
    ReserveRows(r);
    r->kv = SequenceKv::Start(&kv_pool_, &prefix_cache_,
                              {&r->request.prompt, r->request.stable_prefix, levels() - 1, r->tail_bytes});
  } catch (const std::bad_alloc&) {  // no room now, either
  }
  if (r->kv == nullptr) return false;
  r->done_rows = r->result.cached_tokens = r->kv->cached_tokens();
  return true;
}

// What a request's passes will need, so that no step of them allocates.
void StepRunner::ReserveRows(LiveRequest* r) const {
  const std::vector<int32_t>& sizes = weights_->sid_tokens().space.level_sizes;
  const RecallIndex& index = *r->request.index;
  size_t rows = 1, logits = sizes[0];
  for (int l = 1; l < levels(); ++l) {
    const size_t live = std::min<size_t>(r->request.beam.width, index.num_nodes(l));
    rows = std::max(rows, live);
    logits = std::max(logits, live * sizes[l]);
  }
  r->search.Reserve();
  r->logits.reserve(logits);
  r->log_normalizer.reserve(rows);
  r->beam_tokens.reserve(rows);
  r->ancestor.reserve(rows * levels());
  r->result.user_state.reserve(weights_->config().hidden);
}

int StepRunner::Adopt(LiveRequest* r) {
  const int skipped = r->kv->Adopt() - r->done_rows;
  if (skipped <= 0) return 0;
  r->done_rows += skipped;
  r->result.cached_tokens += skipped;
  return skipped;
}

void StepRunner::AddMemoryStats(EngineStats* stats) const {
  stats->weight_bytes = weights_->bytes();
  stats->step_bytes = decoder_.step_bytes();
  const KvBudget::Lock lock = budget_->Acquire();
  stats->kv_bytes = kv_pool_.used_bytes();
  stats->kv_resident_bytes = kv_pool_.resident_bytes();
  stats->kv_cached_bytes = prefix_cache_.pages() * kv_pool_.page_bytes();
  stats->kv_evicted_pages = prefix_cache_.evicted_pages();
  stats->kv_budget_bytes = budget_->limit();
}

void StepRunner::Run(const std::vector<Work>& work, ThreadPool* pool) {
  blocks_.clear();
  heads_.clear();
  ending_.clear();
  int step_row = 0;
  for (const Work& w : work) {
    LiveRequest* r = w.request;
    RowBlock block;
    if (!Prepare(w, &block)) continue;
    const int first = r->done_rows;
    r->done_rows += w.rows;
    const bool ends = r->done_rows == r->pass_rows;
    const int read = !r->prefill ? w.rows : ends ? 1 : 0;
    if (read > 0) heads_.push_back({r, step_row, r->prefill ? 0 : first, read});
    if (ends) ending_.push_back(r);
    block.unread = w.rows - read;
    blocks_.push_back(block);
    step_row += read;
  }
  if (blocks_.empty()) return;

  decoder_.Forward(blocks_, pool);
  for (const Work& w : work) {
    if (w.request->prefill && w.request->result.status.ok()) w.request->kv->Keep(w.request->done_rows);
  }
  Head(pool);
  pool->ParallelFor(static_cast<int64_t>(ending_.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) EndPass(ending_[i]);
  });
}

// Memory for the request's rows of this step. False: there is none, and the request has failed.
bool StepRunner::Prepare(const Work& work, RowBlock* block) {
  LiveRequest* r = work.request;
  try {
    if (r->prefill) r->kv->Extend(r->done_rows + work.rows);
    if (!r->prefill && r->done_rows == 0) r->kv->AddTail(r->pass_rows);
    const size_t rows = r->search.live();
    r->logits.resize(rows * weights_->sid_tokens().space.level_sizes[r->search.level()]);
    r->log_normalizer.resize(rows);
  } catch (const std::bad_alloc&) {
    r->result.status = Status(Code::kResourceExhausted, "no memory for the request's keys and values");
    return false;
  }
  block->n = work.rows;
  block->kv = r->kv.get();
  block->first_row = r->done_rows;
  block->prefill = r->prefill;
  if (r->prefill) {
    block->tokens = r->request.prompt.data() + r->done_rows;
    return true;
  }
  block->tokens = r->beam_tokens.data() + r->done_rows;
  const int tails = r->kv->tails(), live = r->pass_rows;
  r->ancestor.resize(static_cast<size_t>(tails) * work.rows);
  for (int j = 0; j < tails; ++j) {
    const int32_t* from = r->search.ancestors().data() + static_cast<size_t>(j) * live + r->done_rows;
    std::copy(from, from + work.rows, r->ancestor.data() + static_cast<size_t>(j) * work.rows);
  }
  block->ancestor = r->ancestor.data();
  return true;
}

void StepRunner::Head(ThreadPool* pool) {
  if (heads_.empty()) return;
  // Rows that also need the whole vocabulary first, then level by level: each is one gemm.
  const auto key = [](const HeadRows& h) {
    return std::make_tuple(!NeedsVocab(h.request), h.request->search.level(), h.step_row);
  };
  std::sort(heads_.begin(), heads_.end(),
            [&](const HeadRows& a, const HeadRows& b) { return key(a) < key(b); });
  head_rows_.clear();
  temperature_.clear();
  for (const HeadRows& h : heads_) {
    for (int i = 0; i < h.count; ++i) head_rows_.push_back(h.step_row + i);
    if (NeedsVocab(h.request)) {
      temperature_.insert(temperature_.end(), h.count, h.request->search.options().temperature);
    }
  }
  decoder_.SelectRows(head_rows_.data(), static_cast<int>(head_rows_.size()), pool);
  VocabHead(pool);
  LevelHeads(pool);
}

void StepRunner::VocabHead(ThreadPool* pool) {
  if (temperature_.empty()) return;
  normalizer_.resize(temperature_.size());
  decoder_.VocabLogSumExp(0, static_cast<int>(temperature_.size()), temperature_.data(), normalizer_.data(),
                          pool);
  const float* from = normalizer_.data();
  for (const HeadRows& h : heads_) {
    if (!NeedsVocab(h.request)) break;
    std::copy(from, from + h.count, h.request->log_normalizer.data() + h.first);
    from += h.count;
  }
}

void StepRunner::LevelHeads(ThreadPool* pool) {
  int row = 0;
  for (size_t begin = 0; begin < heads_.size();) {
    const int level = heads_[begin].request->search.level();
    const int codes = weights_->sid_tokens().space.level_sizes[level];
    size_t end = begin;
    int count = 0;
    for (; end < heads_.size() && heads_[end].request->search.level() == level; ++end)
      count += heads_[end].count;
    logits_.resize(std::max(logits_.size(), static_cast<size_t>(count) * codes));
    decoder_.LevelLogits(level, row, count, logits_.data(), pool);
    const float* from = logits_.data();
    for (; begin < end; ++begin) {
      const HeadRows& h = heads_[begin];
      const size_t size = static_cast<size_t>(h.count) * codes;
      std::memcpy(h.request->logits.data() + static_cast<size_t>(h.first) * codes, from,
                  size * sizeof(float));
      from += size;
      if (h.request->prefill) {
        h.request->result.user_state.resize(weights_->config().hidden);
        decoder_.HiddenState(row, h.request->result.user_state.data());
      }
      row += h.count;
    }
  }
}

void StepRunner::EndPass(LiveRequest* r) {
  const int level = r->search.level();
  const int codes = weights_->sid_tokens().space.level_sizes[level];
  r->result.status = r->search.Advance(r->logits.data(), codes, r->log_normalizer.data());
  if (!r->result.status.ok()) return;
  if (r->search.done()) {
    r->search.Finish(&r->result);
    return;
  }
  r->prefill = false;
  r->pass_rows = r->search.live();
  r->done_rows = 0;
  const std::vector<int32_t>& token = weights_->sid_tokens().token[level];
  r->beam_tokens.clear();
  for (const int32_t code : r->search.last_codes()) r->beam_tokens.push_back(token[code]);
}

}  // namespace genrecall
