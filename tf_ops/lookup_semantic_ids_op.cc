// Items -> their semantic IDs and facets.
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/index_variant.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("Genrecall>LookupSemanticIds")
    .Input("index: variant")
    .Input("item: int64")
    .Attr("levels: int >= 1")
    .Attr("facets: int >= 0")
    .Output("sids: int32")
    .Output("facet_values: int16")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      TF_RETURN_IF_ERROR(dims.Input("index", ""));
      int levels, facets;
      TF_RETURN_IF_ERROR(c->GetAttr("levels", &levels));
      TF_RETURN_IF_ERROR(c->GetAttr("facets", &facets));
      ShapeHandle out;
      TF_RETURN_IF_ERROR(c->Concatenate(c->input(1), c->Vector(levels), &out));
      c->set_output(0, out);
      TF_RETURN_IF_ERROR(c->Concatenate(c->input(1), c->Vector(facets), &out));
      c->set_output(1, out);
      return absl::OkStatus();
    })
    .Doc(R"doc(
Semantic IDs and facets of items, -1 throughout for an item that is not in the index.

index: <variant>[], of AcquireIndex.
item: <int64>[...].
levels: L of the index.
facets: F of the index.
sids: <int32>[..., L].
facet_values: <int16>[..., F], value index or -1.
)doc");

class LookupSemanticIdsOp : public tensorflow::OpKernel {
 public:
  explicit LookupSemanticIdsOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("levels", &levels_));
    OP_REQUIRES_OK(c, c->GetAttr("facets", &facets_));
  }

  void Compute(OpKernelContext* ctx) override {
    std::shared_ptr<const RecallIndex> index;
    OP_REQUIRES_OK(ctx, IndexInput(ctx, levels_, facets_, &index));
    const Tensor* items = nullptr;
    OP_REQUIRES_OK(ctx, ctx->input("item", &items));
    TensorShape sids_shape = items->shape(), facets_shape = items->shape();
    sids_shape.AddDim(levels_);
    facets_shape.AddDim(facets_);
    int32_t* sids = nullptr;
    int16_t* facets = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "sids", sids_shape, &sids));
    OP_REQUIRES_OK(ctx, Output(ctx, "facet_values", facets_shape, &facets));
    const int64_t* item = items->flat<int64_t>().data();
    for (int64_t i = 0; i < items->NumElements(); ++i, sids += levels_, facets += facets_) {
      const uint32_t position = index->FindItem(item[i]);
      const bool known = position != kNoNode;
      if (known) index->SidCodes(index->SidOfPosition(position), sids);
      if (!known) std::fill_n(sids, levels_, -1);
      for (int f = 0; f < facets_; ++f) facets[f] = known ? index->facet(position, f) : int16_t{-1};
    }
  }

 private:
  int levels_ = 0, facets_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>LookupSemanticIds").Device(tensorflow::DEVICE_CPU),
                        LookupSemanticIdsOp);

}  // namespace
}  // namespace genrecall
