// A branch's function in a function runtime of its own.
#ifndef GENRECALL_TF_OPS_BRANCH_FUNCTION_H_
#define GENRECALL_TF_OPS_BRANCH_FUNCTION_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/core/common_runtime/process_function_library_runtime.h"
#include "tensorflow/core/framework/function.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/protobuf/config.pb.h"

namespace genrecall {

// A late run may outlive the kernel that called it, and the runtime that kernel lives in: a session's
// functions are taken down in any order, its threads before its devices; an eager function goes with its last
// reference. So this runtime shares nothing but the device with the one it is made from.
class BranchFunction {
 public:
  // Makes f ready, of the definitions and on the device of the op in ctx. The first OK is final.
  absl::Status Instantiate(tensorflow::OpKernelContext* ctx, const tensorflow::NameAttrList& f);

  // Runs f; Instantiate has returned OK. `options` names the runner: there is no other.
  void Run(const tensorflow::FunctionLibraryRuntime::Options& options,
           const std::vector<tensorflow::Tensor>& args, std::vector<tensorflow::Tensor>* outputs,
           tensorflow::FunctionLibraryRuntime::DoneCallback done) {
    library_->Run(options, handle_, args, outputs, std::move(done));
  }

 private:
  absl::Status MakeRuntime(tensorflow::OpKernelContext* ctx, const std::string& name);

  std::mutex mu_;
  bool instantiated_ = false;  // guarded by mu_; when true, what follows does not change
  tensorflow::FunctionLibraryRuntime::Handle handle_ = 0;
  std::unique_ptr<const tensorflow::FunctionLibraryDefinition> definitions_;
  std::unique_ptr<const tensorflow::SessionMetadata> metadata_;  // null: the session has none
  std::unique_ptr<tensorflow::ProcessFunctionLibraryRuntime> runtime_;
  tensorflow::FunctionLibraryRuntime* library_ = nullptr;  // owned by runtime_
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_BRANCH_FUNCTION_H_
