// One call of a branch's function, which may outlive the step that asked for it.
#ifndef GENRECALL_TF_OPS_BRANCH_RUN_H_
#define GENRECALL_TF_OPS_BRANCH_RUN_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/function.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/partial_tensor_shape.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tf_ops/branch_function.h"
#include "tf_ops/branch_threads.h"
#include "tf_ops/deadline_timer.h"
#include "tf_ops/device_runs.h"

namespace genrecall {

// What all runs of one TryBranch kernel share. Outlives the kernel through the runs that hold it.
struct BranchState {
  explicit BranchState(int max_threads) : threads(std::make_shared<BranchThreads>(max_threads)) {}

  std::string name;                                    // in metrics and log lines
  std::vector<tensorflow::PartialTensorShape> shapes;  // of the outputs, [num outputs]
  std::vector<bool> is_score;                          // outputs that must not hold NaN, [num outputs]
  BranchFunction function;
  std::shared_ptr<BranchThreads> threads;

  std::mutex mu;
  int abandoned = 0;  // runs not yet destroyed that were answered without waiting for f
};

class BranchRun : public std::enable_shared_from_this<BranchRun> {
 public:
  // ctx's inputs: `num_args` args, then the fallback, then deadline_ms. `done` ends the op.
  BranchRun(DeviceRuns::Token device, std::shared_ptr<BranchState> state, tensorflow::OpKernelContext* ctx,
            int num_args, tensorflow::AsyncOpKernel::DoneCallback done);
  ~BranchRun();

  // Starts the state's function, which has been instantiated, and arranges that the op ends exactly once:
  // with f's outputs, with the fallback and a status, or as CANCELLED. budget_ms <= 0: no deadline.
  void Start(int budget_ms);

  // Ends the op with the fallback and the canonical code of `why`.
  void AnswerFallback(const absl::Status& why);

 private:
  // True for the one caller that may end the op; `abandon`: f has not ended yet.
  bool Claim(bool abandon);
  void OnFunctionDone(const absl::Status& status);
  void OnDeadline();
  void OnStepCancelled();
  void AnswerCancelled();
  absl::Status CheckOutputs() const;
  void Finish(int code);

  // The first member, so the last to go: all below may lie on the device, and with the state goes f.
  const DeviceRuns::Token device_;
  // Counted as abandoned, once it is, for as long as any member below lives.
  struct Token {
    explicit Token(std::shared_ptr<BranchState> s) : state(std::move(s)) {}
    ~Token();
    std::shared_ptr<BranchState> state;
    bool abandoned = false;
  } token_;

  std::mutex mu_;
  bool answered_ = false;
  // Valid until the op has ended, that is, only for the claimant.
  tensorflow::OpKernelContext* ctx_;
  tensorflow::AsyncOpKernel::DoneCallback done_;
  const int num_args_;
  tensorflow::CancellationManager* const step_cancel_;
  tensorflow::CancellationToken step_token_;
  bool timed_ = false;
  DeadlineTimer::Key timer_key_;
  int budget_ms_ = 0;
  const DeadlineTimer::Clock::time_point start_;

  // What f runs on. Nothing of it belongs to the step.
  std::vector<tensorflow::Tensor> args_;
  std::vector<tensorflow::Tensor> fallback_;
  std::vector<tensorflow::Tensor> outputs_;
  tensorflow::CancellationManager cancel_;
  std::function<void(std::function<void()>)> runner_;
  tensorflow::FunctionLibraryRuntime::Options options_;
  tensorflow::ScopedStepContainer step_container_;
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_BRANCH_RUN_H_
