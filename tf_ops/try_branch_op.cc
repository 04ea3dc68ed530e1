// TryBranch: runs a function so that neither its failure nor its slowness becomes the step's.
#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf_ops/branch_run.h"

namespace genrecall {
namespace {

using tensorflow::AsyncOpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::PartialTensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Shape of output i: output_shapes[i], with the rows (dim 0) of the fallback.
absl::Status TryBranchShape(InferenceContext* c) {
  std::vector<ShapeHandle> fallback;
  TF_RETURN_IF_ERROR(c->input("fallback", &fallback));
  std::vector<PartialTensorShape> shapes;
  TF_RETURN_IF_ERROR(c->GetAttr("output_shapes", &shapes));
  if (shapes.size() != fallback.size()) {
    return absl::InvalidArgumentError(absl::StrCat("output_shapes has ", shapes.size(),
                                                   " shapes: expected one per output, ", fallback.size()));
  }
  ShapeHandle deadline;
  TF_RETURN_IF_ERROR(c->WithRankAtMost(c->input(c->num_inputs() - 1), 1, &deadline));
  for (size_t i = 0; i < shapes.size(); ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shapes[i], &shape));
    ShapeHandle merged;  // the fallback is one of the answers
    TF_RETURN_IF_ERROR(c->Merge(shape, fallback[i], &merged));
    if (c->RankKnown(shape) && c->RankKnown(fallback[i]) && c->Rank(shape) > 0) {
      TF_RETURN_IF_ERROR(c->ReplaceDim(shape, 0, c->Dim(fallback[i], 0), &shape));
    }
    c->set_output(i, shape);
  }
  c->set_output(c->num_outputs() - 1, c->Scalar());
  return absl::OkStatus();
}

REGISTER_OP("Genrecall>TryBranch")
    .Input("args: Tin")
    .Input("fallback: Tout")
    .Input("deadline_ms: int32")
    .Output("outputs: Tout")
    .Output("status: int32")
    .Attr("f: func")
    .Attr("Tin: list(type) >= 0")
    .Attr("Tout: list(type) >= 1")
    .Attr("output_shapes: list(shape) >= 1")
    .Attr("scores: list(int) = []")
    .Attr("branch: string = 'branch'")
    .Attr("max_threads: int >= 1 = 64")
    .SetIsStateful()  // a deadline makes the answer depend on the clock: never folded into a constant
    .SetShapeFn(TryBranchShape)
    .Doc(R"doc(
Answers with the outputs of f(args), or with the fallback and the reason.

The fallback is the answer when f fails, is late, gives an output of another dtype or shape, or a NaN among its scores.
f runs on threads of its own and may outlive the step: when it is late it is cancelled and left to end by itself.
While `max_threads` such late runs have not ended, f is not called again and status is RESOURCE_EXHAUSTED.
Cancelling the step cancels f and ends the op with CANCELLED.

args: what f reads; also the resources and other tensors it captures.
fallback: one tensor per output.
deadline_ms: [B] or scalar; the smallest positive value counts from the op's start; none positive: no deadline.
outputs: f's, or the fallback.
status: scalar, 0 or the canonical code of the failure (4 DEADLINE_EXCEEDED, 13 INTERNAL for unusable outputs, ...).
output_shapes: what each output must be compatible with; its dim 0 must in addition be the fallback's.
scores: indices of the outputs that must not hold a NaN.
branch: name in metrics and logs.
)doc");

class TryBranchOp : public AsyncOpKernel {
 public:
  explicit TryBranchOp(OpKernelConstruction* ctx) : AsyncOpKernel(ctx) {
    tensorflow::DataTypeVector in, out;
    std::vector<int> scores;
    int max_threads;
    std::string name;
    std::vector<PartialTensorShape> shapes;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tin", &in));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tout", &out));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("scores", &scores));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("max_threads", &max_threads));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("branch", &name));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("output_shapes", &shapes));
    num_args_ = static_cast<int>(in.size());
    max_abandoned_ = max_threads;
    auto state = std::make_shared<BranchState>(max_threads);
    state->name = name;
    state->shapes = shapes;
    state->is_score.assign(out.size(), false);
    for (int i : scores) {
      OP_REQUIRES(ctx, i >= 0 && i < static_cast<int>(out.size()),
                  absl::InvalidArgumentError(absl::StrCat("scores: ", i, ": expected 0..", out.size() - 1)));
      state->is_score[i] = true;
    }
    state_ = std::move(state);
  }

  void ComputeAsync(OpKernelContext* ctx, DoneCallback done) override {
    const tensorflow::Tensor& deadline = ctx->input(ctx->num_inputs() - 1);
    OP_REQUIRES_ASYNC(ctx, deadline.dims() <= 1,
                      absl::InvalidArgumentError(absl::StrCat(
                          "deadline_ms: shape ", deadline.shape().DebugString(), ": expected [B]")),
                      done);
    int budget_ms = 0;
    for (int64_t i = 0; i < deadline.NumElements(); ++i) {
      const int ms = deadline.flat<int32_t>()(i);
      if (ms > 0) budget_ms = budget_ms > 0 ? std::min(budget_ms, ms) : ms;
    }
    bool full;
    {
      std::lock_guard<std::mutex> lock(state_->mu);
      full = state_->abandoned >= max_abandoned_;
    }
    DeviceRuns::Token device;
    OP_REQUIRES_OK_ASYNC(ctx, DeviceRuns::Count(ctx->resource_manager(), &device), done);
    auto run = std::make_shared<BranchRun>(std::move(device), state_, ctx, num_args_, std::move(done));
    if (full) {
      return run->AnswerFallback(absl::ResourceExhaustedError(
          absl::StrCat(max_abandoned_, " late runs have not ended yet: not called again until one does")));
    }
    const absl::Status ready = state_->function.Instantiate(ctx, f_);
    if (!ready.ok()) return run->AnswerFallback(ready);
    run->Start(budget_ms);
  }

 private:
  tensorflow::NameAttrList f_;
  int num_args_ = 0;
  int max_abandoned_ = 0;
  std::shared_ptr<BranchState> state_;  // outlives the kernel while a late run does
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>TryBranch").Device(tensorflow::DEVICE_CPU), TryBranchOp);

}  // namespace
}  // namespace genrecall
