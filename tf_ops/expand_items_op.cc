// Beams -> items.
#include "kernels/expand_items.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/index_variant.h"
#include "tf_ops/item_rows.h"
#include "tf_ops/status.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>ExpandItems")
    .Input("index: variant")
    .Input("sids: int32")
    .Input("score: float")
    .Input("exclude_item: int64")
    .Input("exclude_length: int32")
    .Input("num_items: int32")
    .Attr("k: int >= 1")
    .Attr("per_sid_cap: int >= 0 = 0")
    .Output("item_id: int64")
    .Output("item_score: float")
    .Output("beam: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      int k;
      TF_RETURN_IF_ERROR(c->GetAttr("k", &k));
      dims.Bind('k', k);
      TF_RETURN_IF_ERROR(dims.Input("index", ""));
      TF_RETURN_IF_ERROR(dims.Input("sids", "BWL"));
      TF_RETURN_IF_ERROR(dims.Input("score", "BW"));
      TF_RETURN_IF_ERROR(dims.Input("exclude_item", "BE"));
      TF_RETURN_IF_ERROR(dims.Input("exclude_length", "B"));
      TF_RETURN_IF_ERROR(dims.Input("num_items", "B"));
      TF_RETURN_IF_ERROR(dims.Output("item_id", "Bk"));
      TF_RETURN_IF_ERROR(dims.Output("item_score", "Bk"));
      return dims.Output("beam", "Bk");
    })
    .Doc(R"doc(
Items of each row's beams: round-robin over beams, by weight within a semantic ID, the excluded left out.

A row whose beams are all padding gives no items, and its other inputs are not looked at.

index: <variant>[], of AcquireIndex.
sids: <int32>[B, W, L], best beam first; rows of -1 are padding.
score: <float>[B, W].
exclude_item: <int64>[B, E].
exclude_length: <int32>[B], 0..E.
num_items: <int32>[B], 1..k: items wanted.
k: items returned per row.
per_sid_cap: at most this many items of one semantic ID; 0: no cap.
item_id: <int64>[B, k], -1 pads.
item_score: <float>[B, k], the score of the item's beam; -inf pads.
beam: <int32>[B, k], the beam each item came from; -1 pads.
)doc");

class ExpandItemsOp : public tensorflow::OpKernel {
 public:
  explicit ExpandItemsOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("k", &k_));
    OP_REQUIRES_OK(c, c->GetAttr("per_sid_cap", &per_sid_cap_));
  }

  void Compute(OpKernelContext* ctx) override {
    std::shared_ptr<const RecallIndex> index;
    OP_REQUIRES_OK(ctx, IndexInput(ctx, &index));
    InputDims dims;
    dims.Bind('L', index->levels());
    const int32_t* sids = nullptr;
    const float* score = nullptr;
    AnswerOptions options;
    OP_REQUIRES_OK(ctx, dims.Input(ctx, "sids", "BWL", &sids));
    OP_REQUIRES_OK(ctx, dims.Input(ctx, "score", "BW", &score));
    OP_REQUIRES_OK(ctx, options.Read(ctx, k_, &dims));
    int64_t* item_id = nullptr;
    float* item_score = nullptr;
    int32_t* beam = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "item_id", {dims['B'], k_}, &item_id));
    OP_REQUIRES_OK(ctx, Output(ctx, "item_score", {dims['B'], k_}, &item_score));
    OP_REQUIRES_OK(ctx, Output(ctx, "beam", {dims['B'], k_}, &beam));
    const int64_t row_codes = dims['W'] * dims['L'];
    for (int64_t b = 0; b < dims['B']; ++b) {
      const int32_t* row = sids + b * row_codes;
      ItemList items;
      if (std::any_of(row, row + row_codes, [](int32_t code) { return code != -1; })) {
        OP_REQUIRES_OK(ctx, options.CheckRow(b));
        const ExpandOptions expand{options.num_items[b], per_sid_cap_};
        OP_REQUIRES_OK(
            ctx, RowError(b, ExpandItems(*index, row, score + b * dims['W'], dims['W'], options.excluded(b),
                                         options.exclude_length[b], expand, &items)));
      }
      WriteRow(items.item, b, k_, int64_t{-1}, item_id);
      WriteRow(items.score, b, k_, -std::numeric_limits<float>::infinity(), item_score);
      WriteRow(items.beam, b, k_, int32_t{-1}, beam);
    }
  }

 private:
  int64_t k_ = 0;
  int per_sid_cap_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>ExpandItems").Device(tensorflow::DEVICE_CPU), ExpandItemsOp);

}  // namespace
}  // namespace genrecall
