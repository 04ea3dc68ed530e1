// The DT_VARIANT that AcquireIndex emits: one request's snapshot of the recall index.
#ifndef GENRECALL_TF_OPS_INDEX_VARIANT_H_
#define GENRECALL_TF_OPS_INDEX_VARIANT_H_

#include <memory>
#include <string>

#include "kernels/recall_index.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/variant.h"
#include "tensorflow/core/framework/variant_encode_decode.h"

namespace genrecall {

// Holds the index for as long as any op of the step holds the tensor. Cannot be serialized: it never leaves a
// process.
struct IndexVariant {
  std::shared_ptr<const RecallIndex> index;

  std::string TypeName() const { return "genrecall::IndexVariant"; }
  std::string DebugString() const { return "recall index snapshot"; }
  void Encode(tensorflow::VariantTensorData*) const {}
  bool Decode(tensorflow::VariantTensorData) { return false; }
};

// The snapshot in the op's input "index". INVALID_ARGUMENT: not a scalar, or a variant of something else.
inline absl::Status IndexInput(tensorflow::OpKernelContext* ctx, std::shared_ptr<const RecallIndex>* index) {
  const tensorflow::Tensor* tensor = nullptr;
  TF_RETURN_IF_ERROR(ctx->input("index", &tensor));
  if (tensor->dims() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("index: expected a scalar, got shape ", tensor->shape().DebugString()));
  }
  const IndexVariant* variant = tensor->scalar<tensorflow::Variant>()().get<IndexVariant>();
  if (variant == nullptr || variant->index == nullptr) {
    return absl::InvalidArgumentError("index: expected the output of AcquireIndex");
  }
  *index = variant->index;
  return absl::OkStatus();
}

// The snapshot, which must have `levels` levels and, unless negative, `facets` facets: the op's attributes.
inline absl::Status IndexInput(tensorflow::OpKernelContext* ctx, int levels, int facets,
                               std::shared_ptr<const RecallIndex>* index) {
  TF_RETURN_IF_ERROR(IndexInput(ctx, index));
  if ((*index)->levels() != levels) {
    return absl::InvalidArgumentError(
        absl::StrCat("index has ", (*index)->levels(), " levels: expected levels = ", levels));
  }
  if (facets >= 0 && (*index)->num_facets() != facets) {
    return absl::InvalidArgumentError(
        absl::StrCat("index has ", (*index)->num_facets(), " facets: expected facets = ", facets));
  }
  return absl::OkStatus();
}

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_INDEX_VARIANT_H_
