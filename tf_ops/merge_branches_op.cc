// Branches -> one answer.
#include "kernels/expand_items.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/item_rows.h"

namespace genrecall {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

constexpr int kMaxBranches = 31;  // bits of branch_mask

REGISTER_OP("Genrecall>MergeBranches")
    .Input("items: num_branches * int64")
    .Input("scores: num_branches * float")
    .Input("num_items: int32")
    .Input("row_status: int32")
    .Attr("num_branches: int >= 1")
    .Attr("quotas: list(int)")
    .Attr("k: int >= 1")
    .Output("item_id: int64")
    .Output("score: float")
    .Output("branch_mask: int32")
    .Output("source: int32")
    .Output("num_merged: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      int k, branches;
      TF_RETURN_IF_ERROR(c->GetAttr("k", &k));
      TF_RETURN_IF_ERROR(c->GetAttr("num_branches", &branches));
      dims.Bind('k', k);
      TF_RETURN_IF_ERROR(dims.Input("num_items", "B"));
      TF_RETURN_IF_ERROR(dims.Input("row_status", "B"));
      DimensionHandle rows = c->Dim(dims.Shape("B"), 0);
      for (int i = 0; i < branches; ++i) {  // k differs from branch to branch, so only pairs merge
        ShapeHandle pair;
        TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 2, &pair));
        TF_RETURN_IF_ERROR(c->Merge(pair, c->input(branches + i), &pair));
        TF_RETURN_IF_ERROR(c->Merge(rows, c->Dim(pair, 0), &rows));
      }
      c->set_output(4, c->Vector(rows));
      for (int i = 0; i < 4; ++i) c->set_output(i, c->Matrix(rows, k));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Merges branches by quotas, each item once, with its provenance. Rows with row_status != 0 give no items.

Branch b first places up to quotas[b] items, in branch order; places left over are filled from the branches in order.

items: num_branches * <int64>[B, k_b], best first; -1 entries are skipped.
scores: num_branches * <float>[B, k_b].
num_items: <int32>[B], 1..k: items wanted.
row_status: <int32>[B], 0 or the code for which a row is to be empty.
quotas: one number per branch; negative: no limit.
k: items returned per row.
item_id: <int64>[B, k], -1 pads.
score: <float>[B, k], given by the branch that placed the item; -inf pads.
branch_mask: <int32>[B, k], bit b: branch b proposed the item; 0 pads.
source: <int32>[B, k], the branch that placed the item; -1 pads.
num_merged: <int32>[B], items of the row.
)doc");

class MergeBranchesOp : public tensorflow::OpKernel {
 public:
  explicit MergeBranchesOp(OpKernelConstruction* c) : OpKernel(c) {
    int branches = 0;
    OP_REQUIRES_OK(c, c->GetAttr("k", &k_));
    OP_REQUIRES_OK(c, c->GetAttr("quotas", &quotas_));
    OP_REQUIRES_OK(c, c->GetAttr("num_branches", &branches));
    OP_REQUIRES(
        c, branches <= kMaxBranches,
        absl::InvalidArgumentError(absl::StrCat(branches, " branches: expected at most ", kMaxBranches)));
    OP_REQUIRES(c, static_cast<int>(quotas_.size()) == branches,
                absl::InvalidArgumentError(absl::StrCat("quotas has ", quotas_.size(),
                                                        " numbers: expected num_branches = ", branches)));
  }

  void Compute(OpKernelContext* ctx) override {
    InputDims dims;
    const int32_t *num_items = nullptr, *row_status = nullptr;
    OP_REQUIRES_OK(ctx, dims.Input(ctx, "num_items", "B", &num_items));
    OP_REQUIRES_OK(ctx, dims.Input(ctx, "row_status", "B", &row_status));
    OpInputList items, scores;
    OP_REQUIRES_OK(ctx, ctx->input_list("items", &items));
    OP_REQUIRES_OK(ctx, ctx->input_list("scores", &scores));
    for (int i = 0; i < items.size(); ++i) {
      InputDims pair;
      pair.Bind('B', dims['B']);
      OP_REQUIRES_OK(ctx, pair.Check(absl::StrCat("items[", i, "]"), items[i], "Bk"));
      OP_REQUIRES_OK(ctx, pair.Check(absl::StrCat("scores[", i, "]"), scores[i], "Bk"));
    }
    Answer out;
    OP_REQUIRES_OK(ctx, out.Allocate(ctx, dims['B'], k_));
    for (int64_t b = 0; b < dims['B']; ++b) {
      MergedItems merged;
      if (row_status[b] == 0) {
        OP_REQUIRES_OK(ctx, CheckRange("num_items", b, num_items[b], 1, k_, "k"));
        const std::vector<BranchItems> rows = Rows(items, scores, b);
        MergeBranches(rows.data(), quotas_.data(), static_cast<int>(rows.size()), num_items[b], &merged);
      }
      out.Write(merged, b, k_);
    }
  }

 private:
  struct Answer {
    int64_t* item_id = nullptr;
    float* score = nullptr;
    int32_t *branch_mask = nullptr, *source = nullptr, *num_merged = nullptr;

    absl::Status Allocate(OpKernelContext* ctx, int64_t rows, int64_t k) {
      TF_RETURN_IF_ERROR(Output(ctx, "item_id", {rows, k}, &item_id));
      TF_RETURN_IF_ERROR(Output(ctx, "score", {rows, k}, &score));
      TF_RETURN_IF_ERROR(Output(ctx, "branch_mask", {rows, k}, &branch_mask));
      TF_RETURN_IF_ERROR(Output(ctx, "source", {rows, k}, &source));
      return Output(ctx, "num_merged", {rows}, &num_merged);
    }
    void Write(const MergedItems& merged, int64_t b, int64_t k) {
      WriteRow(merged.item, b, k, int64_t{-1}, item_id);
      WriteRow(merged.score, b, k, -std::numeric_limits<float>::infinity(), score);
      WriteRow(merged.branch_mask, b, k, int32_t{0}, branch_mask);
      WriteRow(merged.source, b, k, int32_t{-1}, source);
      num_merged[b] = static_cast<int32_t>(merged.item.size());
    }
  };

  static std::vector<BranchItems> Rows(const OpInputList& items, const OpInputList& scores, int64_t b) {
    std::vector<BranchItems> rows;
    for (int i = 0; i < items.size(); ++i) {
      const int64_t width = items[i].dim_size(1);
      rows.push_back({items[i].flat<int64_t>().data() + b * width, scores[i].flat<float>().data() + b * width,
                      static_cast<int>(width)});
    }
    return rows;
  }

  int64_t k_ = 0;
  std::vector<int> quotas_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>MergeBranches").Device(tensorflow::DEVICE_CPU), MergeBranchesOp);

}  // namespace
}  // namespace genrecall
