// The compiled prompt's resource ops.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/prompt_resource.h"
#include "tf_ops/resource_init.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>PromptHandle")
    .Attr("container: string = ''")
    .Attr("shared_name: string = ''")
    .Output("handle: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Names a compiled prompt; InitializePrompt gives it its content.

handle: <resource>[].
)doc");

REGISTER_OP("Genrecall>InitializePrompt")
    .Input("handle: resource")
    .Input("path: string")
    .Attr("sid_space_digest: string = ''")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      TF_RETURN_IF_ERROR(dims.Input("handle", ""));
      return dims.Input("path", "");
    })
    .Doc(R"doc(
Loads a compiled prompt.

handle: <resource>[], of PromptHandle.
path: <string>[], a file written by kernels/prompt_spec.py.
sid_space_digest: SID space of the model; a prompt of another one is refused. Empty: any.
)doc");

class InitializePromptOp : public tensorflow::OpKernel {
 public:
  explicit InitializePromptOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("sid_space_digest", &sid_space_digest_));
  }

  void Compute(OpKernelContext* ctx) override {
    OP_REQUIRES_OK(ctx, InitializeFromPath<PromptResource>(ctx, [this](const std::string& path) {
                     return PromptResource::Create(path, sid_space_digest_);
                   }));
  }

 private:
  std::string sid_space_digest_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>PromptHandle").Device(tensorflow::DEVICE_CPU),
                        tensorflow::ResourceHandleOp<PromptResource>);
REGISTER_KERNEL_BUILDER(Name("Genrecall>InitializePrompt").Device(tensorflow::DEVICE_CPU),
                        InitializePromptOp);

}  // namespace
}  // namespace genrecall
