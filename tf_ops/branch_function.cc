#include "tf_ops/branch_function.h"

#include "absl/strings/str_cat.h"
#include "tensorflow/core/common_runtime/rendezvous_mgr.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/rendezvous.h"

namespace genrecall {

using tensorflow::FunctionLibraryRuntime;
using tensorflow::OpKernelContext;

namespace {

absl::Status LocalRendezvous(int64_t step_id, const tensorflow::DeviceMgr* devices,
                             tensorflow::core::RefCountPtr<tensorflow::Rendezvous>* made) {
  made->reset(new tensorflow::IntraProcessRendezvous(devices));
  return absl::OkStatus();
}

}  // namespace

absl::Status BranchFunction::Instantiate(OpKernelContext* ctx, const tensorflow::NameAttrList& f) {
  if (ctx->function_library() == nullptr) return absl::InternalError("no function library in this runtime");
  std::lock_guard<std::mutex> lock(mu_);
  if (instantiated_) return absl::OkStatus();
  if (library_ == nullptr) TF_RETURN_IF_ERROR(MakeRuntime(ctx, f.name()));
  TF_RETURN_IF_ERROR(library_->Instantiate(f.name(), tensorflow::AttrSlice(&f.attr()), &handle_));
  instantiated_ = true;
  return absl::OkStatus();
}

// FunctionLibraryRuntime::Clone would do, but for what it shares: the session's inter-op threads and
// metadata, and the Python objects among the definitions.
absl::Status BranchFunction::MakeRuntime(OpKernelContext* ctx, const std::string& name) {
  FunctionLibraryRuntime* from = ctx->function_library();
  const tensorflow::ConfigProto* config = from->config_proto();
  const tensorflow::FunctionLibraryDefinition& all = *from->GetFunctionLibraryDefinition();
  const tensorflow::FunctionDef* f = all.Find(name);
  if (f == nullptr) return absl::NotFoundError(absl::StrCat("no function '", name, "' in this runtime"));
  // By way of a proto, which leaves behind the stack traces of the Python code: they would take Python's lock
  // when they go, which at the end of the process nobody gets any more.
  tensorflow::FunctionDefLibrary needed = all.ReachableDefinitions(*f).ToProto();
  *needed.add_function() = *f;
  definitions_ = std::make_unique<tensorflow::FunctionLibraryDefinition>(all.default_registry(), needed);
  if (ctx->session_metadata() != nullptr) {
    metadata_ = std::make_unique<tensorflow::SessionMetadata>(*ctx->session_metadata());
  }
  runtime_ = std::make_unique<tensorflow::ProcessFunctionLibraryRuntime>(
      from->device_mgr(), from->env(), config, from->graph_def_version(), definitions_.get(),
      config != nullptr ? config->graph_options().optimizer_options() : tensorflow::OptimizerOptions(),
      /*thread_pool=*/nullptr, /*parent=*/nullptr, metadata_.get(),
      tensorflow::Rendezvous::Factory(LocalRendezvous));
  library_ = runtime_->GetFLR(from->device()->name());
  return absl::OkStatus();
}

}  // namespace genrecall
