#include "trtllm_bridge/step_runner.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

namespace genrecall {

StepRunner::StepRunner(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops, int max_rows,
                       int max_positions)
    : weights_(weights), decoder_(weights, ops, max_rows, max_positions), kv_pool_(decoder_.kv_shape()) {}

void StepRunner::Run(const std::vector<Work>& work, ThreadPool* pool) {
  std::vector<RowBlock> blocks;
  std::vector<HeadRows> heads;
  std::vector<LiveRequest*> ending;
  int step_row = 0;
  for (const Work& w : work) {
    LiveRequest* r = w.request;
    RowBlock block;
    if (!Prepare(w, &block)) continue;
    blocks.push_back(block);
    const int first = r->done_rows;
    r->done_rows += w.rows;
    const bool ends = r->done_rows == r->pass_rows;
    if (!r->prefill) {
      heads.push_back({r, step_row, first, w.rows});
    } else if (ends) {
      heads.push_back({r, step_row + w.rows - 1, 0, 1});
    }
    if (ends) ending.push_back(r);
    step_row += w.rows;
  }
  if (blocks.empty()) return;

  decoder_.Forward(blocks, pool);
  Head(std::move(heads), pool);
  pool->ParallelFor(static_cast<int64_t>(ending.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) EndPass(ending[i]);
  });
}

// Memory for the request's rows of this step. False: there is none, and the request has failed.
bool StepRunner::Prepare(const Work& work, RowBlock* block) {
  LiveRequest* r = work.request;
  try {
    if (r->kv == nullptr) {
      r->kv = std::make_unique<SequenceKv>(&kv_pool_, static_cast<int>(r->request.prompt.size()));
    }
    if (r->done_rows == 0) {
      if (!r->prefill) r->kv->AddTail(r->pass_rows);
      const size_t rows = r->search.live();
      r->logits.resize(rows * weights_->sid_tokens().space.level_sizes[r->search.level()]);
      r->log_normalizer.resize(rows);
    }
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

void StepRunner::Head(std::vector<HeadRows> heads, ThreadPool* pool) {
  if (heads.empty()) return;
  const auto is_vocab = [](const HeadRows& h) {
    return h.request->search.options().normalize == Normalize::kVocab;
  };
  // Rows that also need the whole vocabulary first, then level by level: each is one gemm.
  std::stable_sort(heads.begin(), heads.end(), [&](const HeadRows& a, const HeadRows& b) {
    return std::make_pair(!is_vocab(a), a.request->search.level()) <
           std::make_pair(!is_vocab(b), b.request->search.level());
  });
  std::vector<int32_t> rows;
  std::vector<float> temperature;  // of the vocabulary's rows, which come first
  for (const HeadRows& h : heads) {
    for (int i = 0; i < h.count; ++i) rows.push_back(h.step_row + i);
    if (is_vocab(h)) temperature.insert(temperature.end(), h.count, h.request->search.options().temperature);
  }
  decoder_.SelectRows(rows.data(), static_cast<int>(rows.size()), pool);

  if (!temperature.empty()) {
    std::vector<float> normalizer(temperature.size());
    decoder_.VocabLogSumExp(0, static_cast<int>(temperature.size()), temperature.data(), normalizer.data(),
                            pool);
    const float* from = normalizer.data();
    for (const HeadRows& h : heads) {
      if (!is_vocab(h)) break;
      std::copy(from, from + h.count, h.request->log_normalizer.data() + h.first);
      from += h.count;
    }
  }

  int row = 0;
  for (size_t begin = 0; begin < heads.size();) {
    const int level = heads[begin].request->search.level();
    const int codes = weights_->sid_tokens().space.level_sizes[level];
    size_t end = begin;
    int count = 0;
    for (; end < heads.size() && heads[end].request->search.level() == level; ++end)
      count += heads[end].count;
    logits_.resize(std::max(logits_.size(), static_cast<size_t>(count) * codes));
    decoder_.LevelLogits(level, row, count, logits_.data(), pool);
    const float* from = logits_.data();
    for (; begin < end; ++begin) {
      const HeadRows& h = heads[begin];
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
