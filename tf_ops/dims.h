// Shapes by letters: "BT" is a matrix whose dimensions are called B and T, "" a scalar. One letter means one
// size in all inputs of an op, when shapes are inferred (ShapeDims) and before data is read (InputDims).
#ifndef GENRECALL_TF_OPS_DIMS_H_
#define GENRECALL_TF_OPS_DIMS_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace genrecall {

// Shape inference.
//   ShapeDims dims(c);
//   TF_RETURN_IF_ERROR(dims.Input("item", "BT"));
//   return dims.Output("length", "B");
class ShapeDims {
 public:
  explicit ShapeDims(tensorflow::shape_inference::InferenceContext* c) : c_(c) {}

  // Gives a letter a known size, such as an attribute's.
  void Bind(char letter, int64_t size) { dims_[letter] = c_->MakeDim(size); }
  // Merges every tensor of the named input (a list input may have none) with what its letters are known to
  // be.
  absl::Status Input(absl::string_view name, absl::string_view letters);
  // Sets the named output's shape; unbound letters are unknown.
  absl::Status Output(absl::string_view name, absl::string_view letters);
  // A shape of this op's letters.
  tensorflow::shape_inference::ShapeHandle Shape(absl::string_view letters);

 private:
  tensorflow::shape_inference::InferenceContext* c_;
  std::map<char, tensorflow::shape_inference::DimensionHandle> dims_;
};

// The same check on real tensors, before anything of them is read.
class InputDims {
 public:
  void Bind(char letter, int64_t size) { sizes_[letter] = size; }
  int64_t operator[](char letter) const { return sizes_.at(letter); }

  // INVALID_ARGUMENT "action: expected shape [B = 4, T = 40], got [4,39]".
  absl::Status Check(absl::string_view name, const tensorflow::Tensor& tensor, absl::string_view letters);

  // Checks the named input and gives its row-major data. Its dtype was checked by the op's signature.
  template <typename T>
  absl::Status Input(tensorflow::OpKernelContext* ctx, absl::string_view name, absl::string_view letters,
                     const T** data) {
    const tensorflow::Tensor* tensor = nullptr;
    absl::Status status = ctx->input(name, &tensor);
    if (status.ok()) status = Check(name, *tensor, letters);
    if (status.ok()) *data = tensor->flat<T>().data();
    return status;
  }

 private:
  std::map<char, int64_t> sizes_;
};

// INVALID_ARGUMENT "behavior_length[3] = 41: expected 0..T = 40" unless 0 <= value <= limit.
inline absl::Status CheckLength(absl::string_view name, int64_t row, int64_t value, char letter,
                                int64_t limit) {
  if (value >= 0 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, "[", row, "] = ", value, ": expected 0..", std::string(1, letter), " = ", limit));
}

// INVALID_ARGUMENT "beam_width[0] = 0: expected 1..max_beam_width = 256" unless low <= value <= high.
inline absl::Status CheckRange(absl::string_view name, int64_t row, int64_t value, int64_t low, int64_t high,
                               absl::string_view high_name) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, "[", row, "] = ", value, ": expected ", low, "..", high_name, " = ", high));
}

// Allocates the named output and gives its data.
template <typename T>
absl::Status Output(tensorflow::OpKernelContext* ctx, absl::string_view name,
                    const tensorflow::TensorShape& shape, T** data) {
  tensorflow::Tensor* tensor = nullptr;
  absl::Status status = ctx->allocate_output(name, shape, &tensor);
  if (status.ok()) *data = tensor->flat<T>().data();
  return status;
}

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_DIMS_H_
