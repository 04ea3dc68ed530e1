// The recall index as a TensorFlow resource, and the snapshot that one request takes of it.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/index_resource.h"
#include "tf_ops/index_variant.h"
#include "tf_ops/resource_init.h"

namespace genrecall {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>RecallIndexHandle")
    .Attr("container: string = ''")
    .Attr("shared_name: string = ''")
    .Output("handle: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Names a recall index; InitializeRecallIndex gives it its content.

handle: <resource>[].
)doc");

REGISTER_OP("Genrecall>InitializeRecallIndex")
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
Loads the index, then the newest valid file of the directory GENRECALL_INDEX_DIR, which it goes on watching.

handle: <resource>[], of RecallIndexHandle.
path: <string>[], the SavedModel's own index file.
sid_space_digest: SID space of the model; an index of another one is refused. Empty: any.
)doc");

REGISTER_OP("Genrecall>AcquireIndex")
    .Input("handle: resource")
    .Output("index: variant")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      TF_RETURN_IF_ERROR(dims.Input("handle", ""));
      return dims.Output("index", "");
    })
    .Doc(R"doc(
The index that serves now, for all ops of one step: they see one catalogue even while it is being replaced.

handle: <resource>[], of RecallIndexHandle.
index: <variant>[], holds the index for as long as the tensor lives.
)doc");

class InitializeRecallIndexOp : public OpKernel {
 public:
  explicit InitializeRecallIndexOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("sid_space_digest", &sid_space_digest_));
  }

  void Compute(OpKernelContext* ctx) override {
    OP_REQUIRES_OK(ctx, InitializeFromPath<IndexResource>(ctx, [this](const std::string& path) {
                     return IndexResource::Create(path, sid_space_digest_);
                   }));
  }

 private:
  std::string sid_space_digest_;
};

class AcquireIndexOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    tensorflow::core::RefCountPtr<IndexResource> resource;
    OP_REQUIRES_OK(ctx, ResourceInput(ctx, "handle", &resource));
    tensorflow::Variant* index = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "index", {}, &index));
    *index = IndexVariant{resource->snapshot()};
  }

  bool IsExpensive() override { return false; }
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>RecallIndexHandle").Device(tensorflow::DEVICE_CPU),
                        tensorflow::ResourceHandleOp<IndexResource>);
REGISTER_KERNEL_BUILDER(Name("Genrecall>InitializeRecallIndex").Device(tensorflow::DEVICE_CPU),
                        InitializeRecallIndexOp);
REGISTER_KERNEL_BUILDER(Name("Genrecall>AcquireIndex").Device(tensorflow::DEVICE_CPU), AcquireIndexOp);

}  // namespace
}  // namespace genrecall
