#include "tf_ops/dims.h"

#include <vector>

namespace genrecall {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::ShapeHandle;

absl::Status ShapeDims::Input(absl::string_view name, absl::string_view letters) {
  std::vector<ShapeHandle> shapes;
  TF_RETURN_IF_ERROR(c_->input(name, &shapes));
  for (ShapeHandle shape : shapes) {
    absl::Status status = c_->WithRank(shape, static_cast<int64_t>(letters.size()), &shape);
    for (size_t i = 0; status.ok() && i < letters.size(); ++i) {
      auto [known, is_new] = dims_.try_emplace(letters[i], c_->Dim(shape, i));
      if (!is_new) status = c_->Merge(known->second, c_->Dim(shape, i), &known->second);
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected shape [", letters, "]: ", status.message()));
    }
  }
  return absl::OkStatus();
}

ShapeHandle ShapeDims::Shape(absl::string_view letters) {
  std::vector<DimensionHandle> dims;
  for (char letter : letters) {
    dims.push_back(dims_.try_emplace(letter, c_->UnknownDim()).first->second);
  }
  return c_->MakeShape(dims);
}

absl::Status ShapeDims::Output(absl::string_view name, absl::string_view letters) {
  return c_->set_output(name, {Shape(letters)});
}

absl::Status InputDims::Check(absl::string_view name, const tensorflow::Tensor& tensor,
                              absl::string_view letters) {
  bool ok = tensor.dims() == static_cast<int>(letters.size());
  for (size_t i = 0; ok && i < letters.size(); ++i) {
    const auto known = sizes_.find(letters[i]);
    ok = known == sizes_.end() || known->second == tensor.dim_size(i);
  }
  if (ok) {
    for (size_t i = 0; i < letters.size(); ++i) sizes_[letters[i]] = tensor.dim_size(i);
    return absl::OkStatus();
  }
  std::string expected;
  for (char letter : letters) {
    absl::StrAppend(&expected, expected.empty() ? "" : ", ", std::string(1, letter));
    const auto known = sizes_.find(letter);
    if (known != sizes_.end()) absl::StrAppend(&expected, " = ", known->second);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected shape [", expected, "], got ", tensor.shape().DebugString()));
}

}  // namespace genrecall
