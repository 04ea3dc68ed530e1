// The bridge: rows of a batch go to the engine, each as a request of its own, and come back as tensors.
#include <algorithm>
#include <limits>

#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/decode_batch.h"
#include "tf_ops/dims.h"
#include "tf_ops/engine_resource.h"
#include "tf_ops/index_variant.h"
#include "tf_ops/resource_init.h"
#include "trtllm_bridge/beam_search.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

constexpr const char* kRowInputs[] = {"length",   "stable_prefix", "beam_width",     "deadline_ms",
                                      "priority", "seed",          "exclude_length", "row_status"};

REGISTER_OP("Genrecall>ConstrainedBeamSearch")
    .Input("engine: resource")
    .Input("index: variant")
    .Input("tokens: int32")
    .Input("length: int32")
    .Input("stable_prefix: int32")
    .Input("beam_width: int32")
    .Input("deadline_ms: int32")
    .Input("priority: int32")
    .Input("seed: int32")
    .Input("exclude_item: int64")
    .Input("exclude_length: int32")
    .Input("row_status: int32")
    .Attr("levels: int >= 1")
    .Attr("hidden_size: int >= 1")
    .Attr("normalize: {'level', 'legal', 'vocab'} = 'level'")
    .Attr("temperature: float = 1.0")
    .Attr("prefix_caps: list(int) = []")
    .Output("sids: int32")
    .Output("score: float")
    .Output("step_score: float")
    .Output("user_state: float")
    .Output("status: int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      int levels, hidden_size;
      TF_RETURN_IF_ERROR(c->GetAttr("levels", &levels));
      TF_RETURN_IF_ERROR(c->GetAttr("hidden_size", &hidden_size));
      dims.Bind('L', levels);
      dims.Bind('D', hidden_size);
      TF_RETURN_IF_ERROR(dims.Input("engine", ""));
      TF_RETURN_IF_ERROR(dims.Input("index", ""));
      TF_RETURN_IF_ERROR(dims.Input("tokens", "BP"));
      TF_RETURN_IF_ERROR(dims.Input("exclude_item", "BE"));
      for (const char* name : kRowInputs) TF_RETURN_IF_ERROR(dims.Input(name, "B"));
      TF_RETURN_IF_ERROR(dims.Output("sids", "BWL"));
      TF_RETURN_IF_ERROR(dims.Output("score", "BW"));
      TF_RETURN_IF_ERROR(dims.Output("step_score", "BWL"));
      TF_RETURN_IF_ERROR(dims.Output("user_state", "BD"));
      return dims.Output("status", "B");
    })
    .Doc(R"doc(
Trie-constrained beam search: every beam is a semantic ID of the index. Each row is a request to the engine, which batches
them with everybody else's. Rows with row_status != 0 are not decoded.

A row that fails among others has its code in `status` and no beams; a row that is alone fails the op. Cancelling the step
cancels its rows.

engine: <resource>[], of EngineHandle.
index: <variant>[], of AcquireIndex.
tokens: <int32>[B, P].
length: <int32>[B], 1..P tokens of the row.
stable_prefix: <int32>[B], 0..length: tokens that repeat over this user's requests.
beam_width: <int32>[B], 1..4096 beams wanted.
deadline_ms: <int32>[B], from now; <= 0: none.
priority: <int32>[B], higher goes first.
seed: <int32>[B], 0: the best beams; else the seed of a sample of beams without replacement, drawn from the model's
  distribution over legal semantic IDs, in the order of the draw.
exclude_item: <int64>[B, E], items the row must not get: a semantic ID that has no others gets no beam.
exclude_length: <int32>[B], 0..E.
row_status: <int32>[B], 0 or the code for which a row is to be empty.
levels: L of engine and index.
hidden_size: D of the engine.
normalize: what a step's log-probabilities are normalised over: the codes of the level, the legal ones, or the vocabulary.
temperature: > 0; logits are divided by it.
prefix_caps: at most prefix_caps[l] beams share their first l + 1 codes, 0: no cap; at most L - 1 of them.
sids: <int32>[B, W, L], W the largest beam_width of the batch; best beam first; -1 pads.
score: <float>[B, W], sums of log-probabilities; -inf pads.
step_score: <float>[B, W, L]; -inf pads.
user_state: <float>[B, D], last hidden state of the prompt; 0 for a row without beams.
status: <int32>[B], row_status, or the code with which decoding ended.
)doc");

// The op's inputs, checked.
struct SearchInputs {
  int64_t rows = 0, max_tokens = 0;
  int64_t max_excluded = 0;
  const int32_t *tokens, *length, *stable_prefix, *beam_width, *deadline_ms, *priority, *seed,
      *exclude_length, *row_status;
  const int64_t* exclude_item;
  std::shared_ptr<const RecallIndex> index;

  absl::Status Read(OpKernelContext* ctx, int levels) {
    InputDims dims;
    TF_RETURN_IF_ERROR(IndexInput(ctx, levels, /*facets=*/-1, &index));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "tokens", "BP", &tokens));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "exclude_item", "BE", &exclude_item));
    const int32_t** const row_inputs[] = {&length,   &stable_prefix, &beam_width,     &deadline_ms,
                                          &priority, &seed,          &exclude_length, &row_status};
    for (size_t i = 0; i < std::size(kRowInputs); ++i) {
      TF_RETURN_IF_ERROR(dims.Input(ctx, kRowInputs[i], "B", row_inputs[i]));
    }
    rows = dims['B'], max_tokens = dims['P'], max_excluded = dims['E'];
    for (int64_t b = 0; b < rows; ++b) {
      if (row_status[b] != 0) continue;
      TF_RETURN_IF_ERROR(CheckLength("length", b, length[b], 'P', max_tokens));
      TF_RETURN_IF_ERROR(CheckLength("exclude_length", b, exclude_length[b], 'E', max_excluded));
      TF_RETURN_IF_ERROR(CheckRange("stable_prefix", b, stable_prefix[b], 0, length[b], "length"));
      TF_RETURN_IF_ERROR(CheckRange("beam_width", b, beam_width[b], 1, kMaxBeamWidth, "max_beam_width"));
    }
    return absl::OkStatus();
  }

  int64_t Width() const {
    int32_t width = 1;
    for (int64_t b = 0; b < rows; ++b) {
      if (row_status[b] == 0) width = std::max(width, beam_width[b]);
    }
    return width;
  }

  DecodeRequest Request(int64_t b, const BeamOptions& options, DecodeBatch::Clock::time_point start) const {
    DecodeRequest request;
    const int32_t* prompt = tokens + b * max_tokens;
    request.prompt.assign(prompt, prompt + length[b]);
    request.stable_prefix = stable_prefix[b];
    request.index = index;
    request.beam = options;
    request.beam.width = beam_width[b];
    request.beam.seed = static_cast<uint32_t>(seed[b]);
    const int64_t* excluded = exclude_item + b * max_excluded;
    request.exclude.assign(excluded, excluded + exclude_length[b]);
    if (deadline_ms[b] > 0) request.deadline = start + std::chrono::milliseconds(deadline_ms[b]);
    request.priority = priority[b];
    return request;
  }
};

// The op's outputs, all padding until rows are written.
struct SearchOutputs {
  int64_t width, levels, hidden;
  int32_t *sids, *status;
  float *score, *step_score, *user_state;

  absl::Status Allocate(OpKernelContext* ctx, int64_t rows) {
    TF_RETURN_IF_ERROR(Output(ctx, "sids", {rows, width, levels}, &sids));
    TF_RETURN_IF_ERROR(Output(ctx, "score", {rows, width}, &score));
    TF_RETURN_IF_ERROR(Output(ctx, "step_score", {rows, width, levels}, &step_score));
    TF_RETURN_IF_ERROR(Output(ctx, "user_state", {rows, hidden}, &user_state));
    TF_RETURN_IF_ERROR(Output(ctx, "status", {rows}, &status));
    constexpr float kWorst = -std::numeric_limits<float>::infinity();
    std::fill_n(sids, rows * width * levels, -1);
    std::fill_n(score, rows * width, kWorst);
    std::fill_n(step_score, rows * width * levels, kWorst);
    std::fill_n(user_state, rows * hidden, 0.0f);
    return absl::OkStatus();
  }

  void Write(int64_t b, const DecodeResult& result) {
    std::copy(result.sids.begin(), result.sids.end(), sids + b * width * levels);
    std::copy(result.score.begin(), result.score.end(), score + b * width);
    std::copy(result.step_score.begin(), result.step_score.end(), step_score + b * width * levels);
    std::copy(result.user_state.begin(), result.user_state.end(), user_state + b * hidden);
  }
};

class ConstrainedBeamSearchOp : public tensorflow::AsyncOpKernel {
 public:
  explicit ConstrainedBeamSearchOp(OpKernelConstruction* c) : AsyncOpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("levels", &levels_));
    OP_REQUIRES_OK(c, c->GetAttr("hidden_size", &hidden_size_));
    OP_REQUIRES_OK(c, c->GetAttr("temperature", &options_.temperature));
    OP_REQUIRES(
        c, options_.temperature > 0,
        absl::InvalidArgumentError(absl::StrCat("temperature = ", options_.temperature, ": expected > 0")));
    std::string normalize;
    OP_REQUIRES_OK(c, c->GetAttr("normalize", &normalize));
    options_.normalize = normalize == "level"   ? Normalize::kLevel
                         : normalize == "legal" ? Normalize::kLegal
                                                : Normalize::kVocab;
    std::vector<int32_t> prefix_caps;
    OP_REQUIRES_OK(c, c->GetAttr("prefix_caps", &prefix_caps));
    OP_REQUIRES_OK(c, ToAbsl(SetPrefixCaps(prefix_caps, levels_, &options_)));
  }

  void ComputeAsync(OpKernelContext* ctx, DoneCallback done) override {
    tensorflow::core::RefCountPtr<EngineResource> resource;
    OP_REQUIRES_OK_ASYNC(ctx, ResourceInput(ctx, "engine", &resource), done);
    OP_REQUIRES_OK_ASYNC(ctx, CheckEngine(*resource->engine()), done);
    SearchInputs in{};
    OP_REQUIRES_OK_ASYNC(ctx, in.Read(ctx, levels_), done);

    auto step = std::make_shared<Step>(Step{ctx, std::move(done), in, nullptr});
    auto batch = std::make_shared<DecodeBatch>(resource->engine(), in.rows, [this, step] { Ended(step); });
    step->batch = batch;
    tensorflow::CancellationManager* cancellation = ctx->cancellation_manager();
    if (cancellation != nullptr) {
      step->token = cancellation->get_cancellation_token();
      step->registered = cancellation->RegisterCallback(step->token, [batch] { batch->Cancel(); });
      if (!step->registered) batch->Cancel();  // cancelled before it began
    }
    for (int64_t b = 0; b < in.rows; ++b) {
      if (in.row_status[b] == 0) batch->Submit(b, in.Request(b, options_, batch->start()));
    }
    batch->Close();
  }

 private:
  // What the end of a step needs.
  struct Step {
    OpKernelContext* ctx;
    DoneCallback done;
    SearchInputs in{};
    std::shared_ptr<DecodeBatch> batch;
    tensorflow::CancellationToken token = 0;
    bool registered = false;
  };

  absl::Status CheckEngine(const Engine& engine) const {
    const int levels = static_cast<int>(engine.sid_space().level_sizes.size());
    if (levels == levels_ && engine.hidden_size() == hidden_size_) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("engine has ", levels, " levels and hidden size ",
                                                      engine.hidden_size(), ": expected levels = ", levels_,
                                                      ", hidden_size = ", hidden_size_));
  }

  // On the engine's thread, which has others' rows to compute: the graph goes on in one of TensorFlow's.
  void Ended(std::shared_ptr<Step> step) {
    auto* runner = step->ctx->runner();
    auto finish = [this, step] {
      OpKernelContext* ctx = step->ctx;
      const bool cancelled =
          ctx->cancellation_manager() != nullptr &&
          !(step->registered && ctx->cancellation_manager()->TryDeregisterCallback(step->token));
      OP_REQUIRES_ASYNC(ctx, !cancelled, absl::CancelledError("the step was cancelled"), step->done);
      OP_REQUIRES_OK_ASYNC(ctx, Write(*step), step->done);
      step->done();
    };
    if (runner == nullptr || *runner == nullptr) return finish();
    (*runner)(std::move(finish));
  }

  absl::Status Write(const Step& step) const {
    const SearchInputs& in = step.in;
    const std::vector<DecodeResult>& results = step.batch->results();
    if (in.rows == 1 && !results[0].status.ok()) return ToAbsl(results[0].status);
    SearchOutputs out{in.Width(), levels_, hidden_size_, nullptr, nullptr, nullptr, nullptr, nullptr};
    TF_RETURN_IF_ERROR(out.Allocate(step.ctx, in.rows));
    for (int64_t b = 0; b < in.rows; ++b) {
      const Status& status = results[b].status;
      out.status[b] = in.row_status[b] != 0 ? in.row_status[b] : static_cast<int32_t>(status.code());
      if (out.status[b] == 0) out.Write(b, results[b]);
    }
    return absl::OkStatus();
  }

  int levels_ = 0, hidden_size_ = 0;
  BeamOptions options_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>ConstrainedBeamSearch").Device(tensorflow::DEVICE_CPU),
                        ConstrainedBeamSearchOp);

}  // namespace
}  // namespace genrecall
