// The process' metrics as text, for servers that have no such page of their own.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/metrics.h"

namespace genrecall {
namespace {

REGISTER_OP("Genrecall>MetricsText")
    .Output("text: string")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
All tensorflow::monitoring metrics of the process in Prometheus' text format, named as TF Serving names them.

text: <string>[].
)doc");

class MetricsTextOp : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tensorflow::OpKernelContext* ctx) override {
    tensorflow::tstring* text = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "text", {}, &text));
    *text = metrics::PrometheusText();
  }
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>MetricsText").Device(tensorflow::DEVICE_CPU), MetricsTextOp);

}  // namespace
}  // namespace genrecall
