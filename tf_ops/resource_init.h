// What the resources' handle and initialize ops share.
#ifndef GENRECALL_TF_OPS_RESOURCE_INIT_H_
#define GENRECALL_TF_OPS_RESOURCE_INIT_H_

#include <functional>
#include <string>

#include "kernels/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/tensor_shape.h"
#include "tensorflow/core/platform/tstring.h"
#include "tf_ops/status.h"

namespace genrecall {

// Makes a resource from the file named by input "path" and puts it at input "handle", in the place of what
// was there. Loads before taking the resource manager's lock, so that other resources can be looked up
// meanwhile.
template <typename T>
absl::Status InitializeFromPath(tensorflow::OpKernelContext* ctx,
                                const std::function<Result<T*>(const std::string& path)>& create) {
  const tensorflow::Tensor* path = nullptr;
  TF_RETURN_IF_ERROR(ctx->input("path", &path));
  if (path->dims() != 0) {
    return absl::InvalidArgumentError("path: expected a scalar, got shape " + path->shape().DebugString());
  }
  tensorflow::ResourceHandle handle;
  TF_RETURN_IF_ERROR(tensorflow::HandleFromInput(ctx, "handle", &handle));
  Result<T*> made = create(path->scalar<tensorflow::tstring>()());
  if (!made.ok()) return ToAbsl(made.status());
  tensorflow::DeleteResource<T>(ctx, handle).IgnoreError();  // NOT_FOUND but when initialized again
  return tensorflow::CreateResource(ctx, handle, made.value());
}

// The resource at input `name`; FAILED_PRECONDITION "recall_index: not initialized" instead of the manager's
// own words.
template <typename T>
absl::Status ResourceInput(tensorflow::OpKernelContext* ctx, const char* name,
                           tensorflow::core::RefCountPtr<T>* resource) {
  tensorflow::ResourceHandle handle;
  TF_RETURN_IF_ERROR(tensorflow::HandleFromInput(ctx, name, &handle));
  absl::Status status = tensorflow::LookupResource(ctx, handle, resource);
  if (!absl::IsNotFound(status)) return status;
  return absl::FailedPreconditionError(std::string(name) + ": resource '" + handle.name() +
                                       "' is not initialized");
}

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_RESOURCE_INIT_H_
