// The popular branch.
#include "kernels/expand_items.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/index_variant.h"
#include "tf_ops/item_rows.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>PopularItems")
    .Input("index: variant")
    .Input("exclude_item: int64")
    .Input("exclude_length: int32")
    .Input("num_items: int32")
    .Input("row_status: int32")
    .Attr("k: int >= 1")
    .Output("item_id: int64")
    .Output("score: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      int k;
      TF_RETURN_IF_ERROR(c->GetAttr("k", &k));
      dims.Bind('k', k);
      TF_RETURN_IF_ERROR(dims.Input("index", ""));
      TF_RETURN_IF_ERROR(dims.Input("exclude_item", "BE"));
      TF_RETURN_IF_ERROR(dims.Input("exclude_length", "B"));
      TF_RETURN_IF_ERROR(dims.Input("num_items", "B"));
      TF_RETURN_IF_ERROR(dims.Input("row_status", "B"));
      TF_RETURN_IF_ERROR(dims.Output("item_id", "Bk"));
      return dims.Output("score", "Bk");
    })
    .Doc(R"doc(
The heaviest items of the index, less the excluded. Rows with row_status != 0 give none.

index: <variant>[], of AcquireIndex.
exclude_item: <int64>[B, E].
exclude_length: <int32>[B], 0..E.
num_items: <int32>[B], 1..k: items wanted.
row_status: <int32>[B], 0 or the code for which a row is to be empty.
k: items returned per row.
item_id: <int64>[B, k], -1 pads.
score: <float>[B, k], the item's weight; -inf pads.
)doc");

class PopularItemsOp : public tensorflow::OpKernel {
 public:
  explicit PopularItemsOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, c->GetAttr("k", &k_)); }

  void Compute(OpKernelContext* ctx) override {
    std::shared_ptr<const RecallIndex> index;
    OP_REQUIRES_OK(ctx, IndexInput(ctx, &index));
    InputDims dims;
    AnswerOptions options;
    const int32_t* row_status = nullptr;
    OP_REQUIRES_OK(ctx, options.Read(ctx, k_, &dims));
    OP_REQUIRES_OK(ctx, dims.Input(ctx, "row_status", "B", &row_status));
    int64_t* item_id = nullptr;
    float* score = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "item_id", {dims['B'], k_}, &item_id));
    OP_REQUIRES_OK(ctx, Output(ctx, "score", {dims['B'], k_}, &score));
    for (int64_t b = 0; b < dims['B']; ++b) {
      ItemList items;
      if (row_status[b] == 0) {
        OP_REQUIRES_OK(ctx, options.CheckRow(b));
        PopularItems(*index, options.excluded(b), options.exclude_length[b], options.num_items[b], &items);
      }
      WriteRow(items.item, b, k_, int64_t{-1}, item_id);
      WriteRow(items.score, b, k_, -std::numeric_limits<float>::infinity(), score);
    }
  }

 private:
  int64_t k_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>PopularItems").Device(tensorflow::DEVICE_CPU), PopularItemsOp);

}  // namespace
}  // namespace genrecall
