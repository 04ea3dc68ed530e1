// The gate: what is malformed in a request is named here, so that no later op has to trust a client.
#include <cmath>
#include <limits>

#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/metrics.h"
#include "tf_ops/status.h"

namespace genrecall {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

// Inputs of CheckRequest but the features, with their shapes.
constexpr std::pair<const char*, const char*> kInputs[] = {
    {"user_id", "B"},          {"behavior_item", "BT"},
    {"behavior_action", "BT"}, {"behavior_domain", "BT"},
    {"behavior_time", "BT"},   {"behavior_length", "B"},
    {"request_time", "B"},     {"exclude_item", "BE"},
    {"exclude_length", "B"},   {"beam_width", "B"},
    {"num_items", "B"},        {"deadline_ms", "B"},
    {"priority", "B"},         {"seed", "B"}};

constexpr int kMaxPriority = 1000;  // in magnitude; warm-up has the lowest

REGISTER_OP("Genrecall>CheckRequest")
    .Input("user_id: int64")
    .Input("behavior_item: int64")
    .Input("behavior_action: int32")
    .Input("behavior_domain: int32")
    .Input("behavior_time: int64")
    .Input("behavior_length: int32")
    .Input("request_time: int64")
    .Input("exclude_item: int64")
    .Input("exclude_length: int32")
    .Input("beam_width: int32")
    .Input("num_items: int32")
    .Input("deadline_ms: int32")
    .Input("priority: int32")
    .Input("seed: int32")
    .Input("features: num_features * float")
    .Attr("num_features: int >= 0")
    .Attr("feature_names: list(string)")
    .Attr("max_beam_width: int >= 1")
    .Attr("max_items: int >= 1")
    .Output("request_status: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      for (const auto& [name, letters] : kInputs) TF_RETURN_IF_ERROR(dims.Input(name, letters));
      TF_RETURN_IF_ERROR(dims.Input("features", "B"));
      return dims.Output("request_status", "B");
    })
    .Doc(R"doc(
Checks a batch of requests. A wrong shape or an empty batch fails the op; a malformed row gets status 3 (INVALID_ARGUMENT)
and its neighbours go on, unless it is alone: then the op fails with the reason.

What behaviours hold is not checked: events that make no sense are dropped when they are cleaned.

user_id: <int64>[B], B >= 1.
behavior_item: <int64>[B, T].
behavior_action: <int32>[B, T].
behavior_domain: <int32>[B, T].
behavior_time: <int64>[B, T].
behavior_length: <int32>[B], 0..T.
request_time: <int64>[B], >= 0.
exclude_item: <int64>[B, E].
exclude_length: <int32>[B], 0..E.
beam_width: <int32>[B], 1..max_beam_width.
num_items: <int32>[B], 1..max_items.
deadline_ms: <int32>[B], any.
priority: <int32>[B], -1000..1000.
seed: <int32>[B], any.
features: num_features * <float>[B], finite or -inf (missing).
feature_names: names of `features` for messages.
request_status: <int32>[B], 0 or 3.
)doc");

class CheckRequestOp : public tensorflow::OpKernel {
 public:
  explicit CheckRequestOp(OpKernelConstruction* c) : OpKernel(c) {
    int features = 0;
    OP_REQUIRES_OK(c, c->GetAttr("num_features", &features));
    OP_REQUIRES_OK(c, c->GetAttr("feature_names", &feature_names_));
    OP_REQUIRES_OK(c, c->GetAttr("max_beam_width", &max_beam_width_));
    OP_REQUIRES_OK(c, c->GetAttr("max_items", &max_items_));
    OP_REQUIRES(c, static_cast<int>(feature_names_.size()) == features,
                absl::InvalidArgumentError(absl::StrCat("feature_names has ", feature_names_.size(),
                                                        " names: expected num_features = ", features)));
  }

  void Compute(OpKernelContext* ctx) override {
    Request request{};
    OP_REQUIRES_OK(ctx, request.Read(ctx, feature_names_));
    int32_t* request_status = nullptr;
    OP_REQUIRES_OK(ctx, Output(ctx, "request_status", {request.rows}, &request_status));
    for (int64_t b = 0; b < request.rows; ++b) {
      const absl::Status status = CheckRow(request, b);
      metrics::CountChecked(static_cast<Code>(status.code()));
      OP_REQUIRES(ctx, status.ok() || request.rows > 1, status);
      request_status[b] = static_cast<int32_t>(status.code());
    }
  }

 private:
  // The inputs whose values are checked.
  struct Request {
    int64_t rows, max_behaviors, max_excluded;
    const int32_t *behavior_length, *exclude_length, *beam_width, *num_items, *priority;
    const int64_t* request_time;
    OpInputList features;

    absl::Status Read(OpKernelContext* ctx, const std::vector<std::string>& feature_names) {
      InputDims dims;
      for (const auto& [name, letters] : kInputs) {
        const tensorflow::Tensor* tensor = nullptr;
        TF_RETURN_IF_ERROR(ctx->input(name, &tensor));
        TF_RETURN_IF_ERROR(dims.Check(name, *tensor, letters));
      }
      TF_RETURN_IF_ERROR(ctx->input_list("features", &features));
      for (int f = 0; f < features.size(); ++f) {
        TF_RETURN_IF_ERROR(dims.Check(feature_names[f], features[f], "B"));
      }
      rows = dims['B'], max_behaviors = dims['T'], max_excluded = dims['E'];
      if (rows == 0) return absl::InvalidArgumentError("user_id: expected at least one row");
      TF_RETURN_IF_ERROR(dims.Input(ctx, "behavior_length", "B", &behavior_length));
      TF_RETURN_IF_ERROR(dims.Input(ctx, "exclude_length", "B", &exclude_length));
      TF_RETURN_IF_ERROR(dims.Input(ctx, "beam_width", "B", &beam_width));
      TF_RETURN_IF_ERROR(dims.Input(ctx, "num_items", "B", &num_items));
      TF_RETURN_IF_ERROR(dims.Input(ctx, "priority", "B", &priority));
      return dims.Input(ctx, "request_time", "B", &request_time);
    }
  };

  absl::Status CheckRow(const Request& r, int64_t b) const {
    TF_RETURN_IF_ERROR(CheckLength("behavior_length", b, r.behavior_length[b], 'T', r.max_behaviors));
    TF_RETURN_IF_ERROR(CheckLength("exclude_length", b, r.exclude_length[b], 'E', r.max_excluded));
    TF_RETURN_IF_ERROR(CheckRange("beam_width", b, r.beam_width[b], 1, max_beam_width_, "max_beam_width"));
    TF_RETURN_IF_ERROR(CheckRange("num_items", b, r.num_items[b], 1, max_items_, "max_items"));
    TF_RETURN_IF_ERROR(CheckRange("priority", b, r.priority[b], -kMaxPriority, kMaxPriority, "max_priority"));
    if (r.request_time[b] < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("request_time[", b, "] = ", r.request_time[b], ": expected >= 0"));
    }
    for (int f = 0; f < r.features.size(); ++f) {
      const float value = r.features[f].flat<float>().data()[b];
      if (std::isnan(value) || value == std::numeric_limits<float>::infinity()) {
        return absl::InvalidArgumentError(
            absl::StrCat(feature_names_[f], "[", b, "] = ", value,
                         ": expected a finite number, or -inf for a missing one"));
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::string> feature_names_;
  int max_beam_width_ = 0, max_items_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>CheckRequest").Device(tensorflow::DEVICE_CPU), CheckRequestOp);

}  // namespace
}  // namespace genrecall
