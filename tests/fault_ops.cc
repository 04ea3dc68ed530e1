// Ops that misbehave on demand, for the tests of what contains them. Never part of the product's library.
#include <chrono>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace {

using namespace tensorflow;  // NOLINT: a test

enum Kind : int { kNone = 0, kError = 1, kBlock = 2, kNan = 3, kHang = 4 };

REGISTER_OP("GenrecallTest>Fault")
    .Input("x: float")
    .Input("kind: int32")
    .Output("y: float")
    .Attr("block_ms: int = 10000")
    .SetIsStateful()
    .SetShapeFn(shape_inference::UnchangedShape)
    .Doc(
        "kind 0: y = x; 1: fails with FAILED_PRECONDITION; 2: blocks its thread for block_ms; 3: y = NaN; 4: "
        "ends "
        "when cancelled.");

class FaultOp : public AsyncOpKernel {
 public:
  explicit FaultOp(OpKernelConstruction* ctx) : AsyncOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("block_ms", &block_ms_));
  }

  void ComputeAsync(OpKernelContext* ctx, DoneCallback done) override {
    const int kind = ctx->input(1).scalar<int32_t>()();
    OP_REQUIRES_ASYNC(ctx, kind != kError, absl::FailedPreconditionError("injected fault"), done);
    if (kind == kHang) {
      CancellationManager* cancel = ctx->cancellation_manager();
      const CancellationToken token = cancel->get_cancellation_token();
      auto end = [ctx, done] {
        ctx->SetStatus(absl::CancelledError("hung until cancelled"));
        done();
      };
      if (!cancel->RegisterCallback(token, [end] { std::thread(end).detach(); })) end();
      return;
    }
    if (kind == kBlock) std::this_thread::sleep_for(std::chrono::milliseconds(block_ms_));
    Tensor y = ctx->input(0);
    if (kind == kNan) {
      y = Tensor(DT_FLOAT, ctx->input(0).shape());
      y.flat<float>().setConstant(std::numeric_limits<float>::quiet_NaN());
    }
    ctx->set_output(0, y);
    done();
  }

 private:
  int block_ms_;
};

REGISTER_KERNEL_BUILDER(Name("GenrecallTest>Fault").Device(DEVICE_CPU), FaultOp);

}  // namespace
