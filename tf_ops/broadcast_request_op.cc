// BroadcastRequest: a request in which defaults and shared values have one row -> one row per user
// everywhere.
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("Genrecall>BroadcastRequest")
    .Input("inputs: T")
    .Output("outputs: T")
    .Attr("T: list({int32, int64, float, string}) >= 1")
    .Attr("names: list(string) >= 1")
    .Attr("dims: list(string) >= 1")
    .SetShapeFn([](InferenceContext* c) {
      std::vector<std::string> dims;
      TF_RETURN_IF_ERROR(c->GetAttr("dims", &dims));
      if (static_cast<int>(dims.size()) != c->num_inputs()) {
        return absl::InvalidArgumentError(
            absl::StrCat("dims has ", dims.size(), " entries: expected ", c->num_inputs()));
      }
      std::map<char, DimensionHandle> sizes;
      for (int i = 0; i < c->num_inputs(); ++i) {
        ShapeHandle shape;
        TF_RETURN_IF_ERROR(c->WithRank(c->input(i), dims[i].size(), &shape));
        std::vector<DimensionHandle> out;
        for (size_t d = 0; d < dims[i].size(); ++d) {
          out.push_back(sizes.emplace(dims[i][d], c->Dim(shape, d)).first->second);
        }
        c->set_output(i, c->MakeShape(out));
      }
      return absl::OkStatus();
    })
    .Doc(R"doc(
Repeats rows and columns of size 1 to the sizes of the request. An input that has them already is passed on, not copied.

inputs: the request's tensors.
names: of the inputs, for messages.
dims: of each input, one letter per dimension: "B", "BT". The first input with a letter gives its size; a later one
  must have that size or 1, else INVALID_ARGUMENT "behavior_time: got shape [4,39], expected [B = 4, T = 40]; ...".
)doc");

class BroadcastRequestOp : public tensorflow::OpKernel {
 public:
  explicit BroadcastRequestOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("names", &names_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("dims", &dims_));
    OP_REQUIRES(
        ctx, names_.size() == dims_.size() && static_cast<int>(dims_.size()) == ctx->num_inputs(),
        absl::InvalidArgumentError(absl::StrCat("names and dims have ", names_.size(), " and ", dims_.size(),
                                                " entries: expected ", ctx->num_inputs())));
  }

  void Compute(OpKernelContext* ctx) override {
    std::map<char, int64_t> sizes;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      TensorShape shape;
      OP_REQUIRES_OK(ctx, TargetShape(i, ctx->input(i), &sizes, &shape));
      if (ctx->input(i).shape() == shape) {
        ctx->set_output(i, ctx->input(i));
        continue;
      }
      Tensor* out = nullptr;
      OP_REQUIRES_OK(ctx, ctx->allocate_output(i, shape, &out));
      switch (ctx->input_dtype(i)) {
#define GENRECALL_CASE(type)                    \
  case tensorflow::DataTypeToEnum<type>::value: \
    Repeat<type>(ctx->input(i), out);           \
    break;
        TF_CALL_int32(GENRECALL_CASE) TF_CALL_int64(GENRECALL_CASE) TF_CALL_float(GENRECALL_CASE)
            TF_CALL_tstring(GENRECALL_CASE)
#undef GENRECALL_CASE
                default
            : OP_REQUIRES(ctx, false, absl::InternalError("unreachable: the op refuses other types"));
      }
    }
  }

 private:
  absl::Status TargetShape(int i, const Tensor& input, std::map<char, int64_t>* sizes,
                           TensorShape* shape) const {
    const std::string& dims = dims_[i];
    bool fits = input.dims() == static_cast<int>(dims.size());
    for (size_t d = 0; d < dims.size() && fits; ++d) {
      const int64_t size = sizes->emplace(dims[d], input.dim_size(d)).first->second;
      fits = input.dim_size(d) == size || input.dim_size(d) == 1;
      shape->AddDim(size);
    }
    if (fits) return absl::OkStatus();
    const std::string expected = absl::StrJoin(dims, ", ", [&](std::string* out, char letter) {
      absl::StrAppend(out, std::string(1, letter));
      const auto it = sizes->find(letter);
      if (it != sizes->end()) absl::StrAppend(out, " = ", it->second);
    });
    return absl::InvalidArgumentError(absl::StrCat(names_[i], ": got shape ", input.shape().DebugString(),
                                                   ", expected [", expected,
                                                   "]; a size of 1 stands for all rows or columns"));
  }

  // Rank 1 or 2; every dimension of `in` is out's or 1.
  template <typename T>
  static void Repeat(const Tensor& in, Tensor* out) {
    const int64_t rows = out->dim_size(0), columns = out->dims() > 1 ? out->dim_size(1) : 1;
    const int64_t in_columns = in.dims() > 1 ? in.dim_size(1) : 1;
    const int64_t row_step = in.dim_size(0) == 1 ? 0 : in_columns, column_step = in_columns == 1 ? 0 : 1;
    const T* from = in.flat<T>().data();
    T* to = out->flat<T>().data();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) *to++ = from[r * row_step + c * column_step];
    }
  }

  std::vector<std::string> names_, dims_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>BroadcastRequest").Device(tensorflow::DEVICE_CPU),
                        BroadcastRequestOp);

}  // namespace
}  // namespace genrecall
