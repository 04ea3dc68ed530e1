// One step of the engine: the granted rows of the live requests through the decoder, their logits to their
// beam searches. Knows no threads, no queue and no policy.
#ifndef GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_
#define GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_

#include <memory>
#include <vector>

#include "trtllm_bridge/beam_search.h"
#include "trtllm_bridge/decoder.h"
#include "trtllm_bridge/engine.h"

namespace genrecall {

// A request from its submission to its result. Its passes: the prompt's rows, then the live beams' rows of
// each level but the last, whose codes need no further logits.
struct LiveRequest {
  LiveRequest(RequestId id, DecodeRequest request, DecodeCallback callback)
      : id(id),
        request(std::move(request)),
        callback(std::move(callback)),
        search(this->request.index, this->request.beam, this->request.exclude),
        pass_rows(static_cast<int>(this->request.prompt.size())) {}

  RequestId id;
  DecodeRequest request;
  DecodeCallback callback;
  BeamSearch search;
  std::unique_ptr<SequenceKv> kv;  // from its first step on
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
  StepRunner(std::shared_ptr<const DecoderWeights> weights, const TransformerOps* ops, int max_rows,
             int max_positions);

  struct Work {
    LiveRequest* request;
    int rows;  // >= 1, at most pass_rows - done_rows
  };
  // Runs the work of one step. A request whose pass ended with it has its search advanced, and is then
  // finished() or at the start of its next pass. A request's numeric error or lack of memory is its own
  // result.status.
  void Run(const std::vector<Work>& work, ThreadPool* pool);

  int64_t kv_bytes() const { return kv_pool_.bytes_in_use(); }

 private:
  // Rows whose logits are wanted: `count` rows of a request from `first` of its pass.
  struct HeadRows {
    LiveRequest* request;
    int step_row;  // of the first, in the step
    int first, count;
  };

  bool Prepare(const Work& work, RowBlock* block);
  void Head(std::vector<HeadRows> heads, ThreadPool* pool);
  void EndPass(LiveRequest* request);

  std::shared_ptr<const DecoderWeights> weights_;
  Decoder decoder_;
  KvPool kv_pool_;
  std::vector<float> logits_;  // [rows, C_level] of one level
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_STEP_RUNNER_H_
