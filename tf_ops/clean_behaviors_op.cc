// Raw events -> the events a prompt is written from.
#include "kernels/behaviors.h"
#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/item_rows.h"

namespace genrecall {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>CleanBehaviors")
    .Input("item: int64")
    .Input("action: int32")
    .Input("domain: int32")
    .Input("time: int64")
    .Input("length: int32")
    .Input("request_time: int64")
    .Input("row_status: int32")
    .Attr("max_events: int >= 1")
    .Attr("attribution_window_s: int >= 0")
    .Attr("repeat_window_s: int >= 0")
    .Attr("block: int >= 1 = 1")
    .Attr("actions: int >= 0")
    .Attr("domains: int >= 0")
    .Output("clean_item: int64")
    .Output("clean_action: int32")
    .Output("clean_domain: int32")
    .Output("clean_time: int64")
    .Output("clean_length: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      int max_events;
      TF_RETURN_IF_ERROR(c->GetAttr("max_events", &max_events));
      dims.Bind('N', max_events);
      for (const char* name : {"item", "action", "domain", "time"})
        TF_RETURN_IF_ERROR(dims.Input(name, "BT"));
      for (const char* name : {"length", "request_time", "row_status"}) {
        TF_RETURN_IF_ERROR(dims.Input(name, "B"));
      }
      for (const char* name : {"clean_item", "clean_action", "clean_domain", "clean_time"}) {
        TF_RETURN_IF_ERROR(dims.Output(name, "BN"));
      }
      return dims.Output("clean_length", "B");
    })
    .Doc(R"doc(
Orders each row's events by time, drops future and invalid ones, folds the click that a conversion is attributed to into that
conversion, folds repeats, keeps the latest N = max_events. Rows with row_status != 0 give no events.

item: <int64>[B, T].
action: <int32>[B, T].
domain: <int32>[B, T].
time: <int64>[B, T], Unix seconds.
length: <int32>[B], 0..T events of the row.
request_time: <int64>[B], Unix seconds.
row_status: <int32>[B], 0 or the code for which a row is to be empty.
max_events: N.
block: the oldest beyond N are dropped in whole blocks of this many, 1..N.
attribution_window_s: a conversion absorbs the clicks on its item at most this much older.
repeat_window_s: an event repeats the kept one of the same item and action this recent.
actions: bit a: events of action a are kept.
domains: bit d: events of domain d are kept.
clean_item: <int64>[B, N], oldest first, -1 pads, as in the next three.
clean_action: <int32>[B, N].
clean_domain: <int32>[B, N].
clean_time: <int64>[B, N].
clean_length: <int32>[B].
)doc");

class CleanBehaviorsOp : public tensorflow::OpKernel {
 public:
  explicit CleanBehaviorsOp(OpKernelConstruction* c) : OpKernel(c) {
    int actions = 0, domains = 0;
    OP_REQUIRES_OK(c, c->GetAttr("max_events", &options_.max_events));
    OP_REQUIRES_OK(c, c->GetAttr("attribution_window_s", &options_.attribution_window_s));
    OP_REQUIRES_OK(c, c->GetAttr("repeat_window_s", &options_.repeat_window_s));
    OP_REQUIRES_OK(c, c->GetAttr("block", &options_.block));
    OP_REQUIRES(c, options_.block <= options_.max_events,
                absl::InvalidArgumentError(absl::StrCat("block = ", options_.block,
                                                        ": expected 1..max_events = ", options_.max_events)));
    OP_REQUIRES_OK(c, c->GetAttr("actions", &actions));
    OP_REQUIRES_OK(c, c->GetAttr("domains", &domains));
    options_.actions = static_cast<uint32_t>(actions);
    options_.domains = static_cast<uint32_t>(domains);
  }

  void Compute(OpKernelContext* ctx) override {
    Events in{};
    InputDims dims;
    OP_REQUIRES_OK(ctx, in.Read(ctx, &dims));
    Answer out{};
    const int64_t rows = dims['B'], width = dims['T'], kept = options_.max_events;
    OP_REQUIRES_OK(ctx, out.Allocate(ctx, rows, kept));
    for (int64_t b = 0; b < rows; ++b) {
      CleanedBehaviors cleaned;
      if (in.row_status[b] == 0) {
        OP_REQUIRES_OK(ctx, CheckLength("length", b, in.length[b], 'T', width));
        CleanBehaviors(in.Row(b, width), in.request_time[b], options_, &cleaned);
      }
      out.Write(cleaned, b, kept);
    }
  }

 private:
  struct Events {
    const int64_t *item, *time, *request_time;
    const int32_t *action, *domain, *length, *row_status;

    absl::Status Read(OpKernelContext* ctx, InputDims* dims) {
      TF_RETURN_IF_ERROR(dims->Input(ctx, "item", "BT", &item));
      TF_RETURN_IF_ERROR(dims->Input(ctx, "action", "BT", &action));
      TF_RETURN_IF_ERROR(dims->Input(ctx, "domain", "BT", &domain));
      TF_RETURN_IF_ERROR(dims->Input(ctx, "time", "BT", &time));
      TF_RETURN_IF_ERROR(dims->Input(ctx, "length", "B", &length));
      TF_RETURN_IF_ERROR(dims->Input(ctx, "request_time", "B", &request_time));
      return dims->Input(ctx, "row_status", "B", &row_status);
    }
    BehaviorView Row(int64_t b, int64_t width) const {
      const int64_t at = b * width;
      return {item + at, action + at, domain + at, time + at, length[b]};
    }
  };
  struct Answer {
    int64_t *item, *time;
    int32_t *action, *domain, *length;

    absl::Status Allocate(OpKernelContext* ctx, int64_t rows, int64_t kept) {
      TF_RETURN_IF_ERROR(Output(ctx, "clean_item", {rows, kept}, &item));
      TF_RETURN_IF_ERROR(Output(ctx, "clean_action", {rows, kept}, &action));
      TF_RETURN_IF_ERROR(Output(ctx, "clean_domain", {rows, kept}, &domain));
      TF_RETURN_IF_ERROR(Output(ctx, "clean_time", {rows, kept}, &time));
      return Output(ctx, "clean_length", {rows}, &length);
    }
    void Write(const CleanedBehaviors& cleaned, int64_t b, int64_t kept) {
      WriteRow(cleaned.item, b, kept, int64_t{-1}, item);
      WriteRow(cleaned.action, b, kept, int32_t{-1}, action);
      WriteRow(cleaned.domain, b, kept, int32_t{-1}, domain);
      WriteRow(cleaned.time, b, kept, int64_t{-1}, time);
      length[b] = static_cast<int32_t>(cleaned.item.size());
    }
  };

  CleanOptions options_;
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>CleanBehaviors").Device(tensorflow::DEVICE_CPU), CleanBehaviorsOp);

}  // namespace
}  // namespace genrecall
