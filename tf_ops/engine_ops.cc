// The engine's resource ops.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/engine_resource.h"
#include "tf_ops/resource_init.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>EngineHandle")
    .Attr("container: string = ''")
    .Attr("shared_name: string = ''")
    .Output("handle: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Names an engine; InitializeEngine starts it.

handle: <resource>[].
)doc");

REGISTER_OP("Genrecall>InitializeEngine")
    .Input("handle: resource")
    .Input("path: string")
    .Attr("engine: string = 'cpu'")
    .Attr("num_threads: int >= 0 = 0")
    .Attr("max_queue: int >= 1 = 256")
    .Attr("max_step_rows: int >= 1 = 512")
    .Attr("prefill_chunk: int >= 1 = 160")
    .Attr("max_prompt_tokens: int >= 1 = 4096")
    .Attr("kv_bytes: int >= 0 = 0")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      TF_RETURN_IF_ERROR(dims.Input("handle", ""));
      return dims.Input("path", "");
    })
    .Doc(R"doc(
Starts the engine of a weights file, or joins the one that the process already runs for the same weights and options.

handle: <resource>[], of EngineHandle.
path: <string>[], weights written by trtllm_bridge/checkpoint.py.
engine: name of the implementation.
num_threads: 0: GENRECALL_CPU_THREADS, else the CPUs of the process, at most its container's quota.
max_queue: waiting requests; more are refused with RESOURCE_EXHAUSTED.
max_step_rows: rows of a scheduler step.
prefill_chunk: prompt rows of one request per step at most, while others are live.
max_prompt_tokens: longest prompt accepted.
kv_bytes: bytes of keys and values, kept prefixes included, of all engines of this number in the process; 0:
  GENRECALL_KV_BYTES, else 1 GiB.
)doc");

class InitializeEngineOp : public tensorflow::OpKernel {
 public:
  explicit InitializeEngineOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("engine", &engine_));
    OP_REQUIRES_OK(c, c->GetAttr("num_threads", &options_.num_threads));
    OP_REQUIRES_OK(c, c->GetAttr("max_queue", &options_.max_queue));
    OP_REQUIRES_OK(c, c->GetAttr("max_step_rows", &options_.max_step_rows));
    OP_REQUIRES_OK(c, c->GetAttr("prefill_chunk", &options_.prefill_chunk));
    OP_REQUIRES_OK(c, c->GetAttr("max_prompt_tokens", &options_.max_prompt_tokens));
    OP_REQUIRES_OK(c, c->GetAttr("kv_bytes", &options_.kv_bytes));
  }

  void Compute(OpKernelContext* ctx) override {
    OP_REQUIRES_OK(ctx, InitializeFromPath<EngineResource>(ctx, [this](const std::string& path) {
                     return EngineResource::Create(engine_, path, options_);
                   }));
  }

 private:
  std::string engine_;
  EngineOptions options_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>EngineHandle").Device(tensorflow::DEVICE_CPU),
                        tensorflow::ResourceHandleOp<EngineResource>);
REGISTER_KERNEL_BUILDER(Name("Genrecall>InitializeEngine").Device(tensorflow::DEVICE_CPU),
                        InitializeEngineOp);

}  // namespace
}  // namespace genrecall
