// One step of the engine: the granted rows of the live requests through the decoder, their logits to their
// beam searches. Knows no threads, no queue and no policy.
#ifndef GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_
#define GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_

#include <memory>
#include <vector>

#include "trtllm_bridge/beam_search.h"
#include "trtllm_bridge/decoder.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/kv_cache.h"

namespace genrecall {

// A request from its submission to its result. Its passes: the prompt's rows, then the live beams' rows of
// each level but the last, whose codes need no further logits.
struct LiveRequest {
  LiveRequest(RequestId id, DecodeRequest request, DecodeCallback callback, int64_t tail_bytes)
      : id(id),
        request(std::move(request)),
        callback(std::move(callback)),
        tail_bytes(tail_bytes),
        search(this->request.index, this->request.beam, this->request.exclude),
        pass_rows(static_cast<int>(this->request.prompt.size())) {}

  RequestId id;
  DecodeRequest request;
  DecodeCallback callback;
  int64_t tail_bytes;  // what its beams' keys and values take at most
  BeamSearch search;
  std::unique_ptr<SequenceKv> kv;  // once admitted
  bool prefill = true;
  int pass_rows;                      // rows of the current pass
  int done_rows = 0;                  // of them, run already
  std::vector<int32_t> beam_tokens;   // [pass_rows] of a beams' pass
  std::vector<int32_t> ancestor;      // [tails, rows of this step]
  std::vector<float> logits;          // [live, C_level] of the pass
  std::vector<float> log_normalizer;  // [live], normalize = vocab
  DecodeResult result;                // complete when finished()

  bool finished() const { return !result.status.ok() || search.done(); }
};

class StepRunner {
 public:
  StepRunner(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops,
             std::shared_ptr<KvBudget> budget, int max_rows, int max_positions);

  // INVALID_ARGUMENT for a request whose keys and values the budget could never hold; else tail_bytes is what
  // its beams' take at most. From any thread.
  Status CheckKv(const DecodeRequest& request, int64_t* tail_bytes) const;
  // Memory for all of the request's passes; what the prefix cache has of its prompt is done_rows from the
  // start. False: there is no room now.
  bool Admit(LiveRequest* request);
  // Takes over what other requests have computed of this one's prompt since; returns how many more of its
  // rows are done by that.
  int Adopt(LiveRequest* request);

  struct Work {
    LiveRequest* request;
    int rows;  // >= 1, at most pass_rows - done_rows
  };
  // Runs the work of one step. A request whose pass ended with it has its search advanced, and is then
  // finished() or at the start of its next pass. A request's numeric error or lack of memory is its own
  // result.status.
  void Run(const std::vector<Work>& work, ThreadPool* pool);

  // The stats' numbers of memory. From any thread.
  void AddMemoryStats(EngineStats* stats) const;

 private:
  // Rows whose logits are wanted: `count` rows of a request from `first` of its pass.
  struct HeadRows {
    LiveRequest* request;
    int step_row;  // of the first, among the rows of the step that are read
    int first, count;
  };

  void ReserveRows(LiveRequest* request) const;
  bool Prepare(const Work& work, RowBlock* block);
  void Head(ThreadPool* pool);
  void VocabHead(ThreadPool* pool);
  void LevelHeads(ThreadPool* pool);
  void EndPass(LiveRequest* request);
  int levels() const { return static_cast<int>(weights_->sid_tokens().space.level_sizes.size()); }

  std::shared_ptr<const DecoderWeights> weights_;
  Decoder decoder_;
  std::shared_ptr<KvBudget> budget_;
  KvPool kv_pool_;
  PrefixCache prefix_cache_;
  // Of one step; kept, so that a step allocates nothing.
  std::vector<RowBlock> blocks_;
  std::vector<HeadRows> heads_;
  std::vector<LiveRequest*> ending_;
  std::vector<int32_t> head_rows_;  // rows of the step whose logits are wanted
  std::vector<float> temperature_;  // of those that need the whole vocabulary, which come first
  std::vector<float> normalizer_;   // as many
  std::vector<float> logits_;       // [rows, C_level] of one level
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_
