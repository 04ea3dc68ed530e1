#include "tf_ops/branch_run.h"

#include <cmath>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/lib/monitoring/counter.h"
#include "tensorflow/core/lib/monitoring/sampler.h"
#include "tensorflow/core/platform/logging.h"

namespace genrecall {

using tensorflow::DataTypeString;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

namespace {

auto* const g_answers = tensorflow::monitoring::Counter<2>::New(
    "/genrecall/branch_answers", "Answers of recall branches by canonical code (0: the branch's own answer).",
    "branch", "code");
auto* const g_latency = tensorflow::monitoring::Sampler<1>::New(
    {"/genrecall/branch_latency_ms", "Time to a branch's answer, fallbacks included, in milliseconds.",
     "branch"},
    tensorflow::monitoring::Buckets::Exponential(0.25, 2, 18));

// On a thread of its own, which no branch can occupy; on this one when the process is out of threads.
void OnOtherThread(const std::function<void()>& work) {
  try {
    std::thread(work).detach();
  } catch (const std::system_error&) {
    work();
  }
}

template <typename T>
bool HasNan(const Tensor& t) {
  const auto values = t.flat<T>();
  for (int64_t i = 0; i < values.size(); ++i) {
    if (std::isnan(static_cast<float>(values(i)))) return true;
  }
  return false;
}

bool HasNan(const Tensor& t) {
  switch (t.dtype()) {
    case tensorflow::DT_FLOAT:
      return HasNan<float>(t);
    case tensorflow::DT_DOUBLE:
      return HasNan<double>(t);
    case tensorflow::DT_BFLOAT16:
      return HasNan<tensorflow::bfloat16>(t);
    case tensorflow::DT_HALF:
      return HasNan<Eigen::half>(t);
    default:
      return false;
  }
}

}  // namespace

BranchRun::Token::~Token() {
  std::lock_guard<std::mutex> lock(state->mu);
  if (abandoned) --state->abandoned;
}

BranchRun::BranchRun(DeviceRuns::Token device, std::shared_ptr<BranchState> state, OpKernelContext* ctx,
                     int num_args, tensorflow::AsyncOpKernel::DoneCallback done)
    : device_(std::move(device)),
      token_(std::move(state)),
      ctx_(ctx),
      done_(std::move(done)),
      num_args_(num_args),
      step_cancel_(ctx->cancellation_manager()),
      step_token_(step_cancel_ ? step_cancel_->get_cancellation_token() : 0),
      start_(DeadlineTimer::Clock::now()),
      step_container_(options_.step_id, [resources = ctx->resource_manager()](const std::string& name) {
        resources->Cleanup(name).IgnoreError();
      }) {
  for (int i = 0; i < num_args; ++i) args_.push_back(ctx->input(i));
  for (int i = 0; i < ctx->num_outputs() - 1; ++i) fallback_.push_back(ctx->input(num_args + i));
  // Not the state: TensorFlow's copies of the runner may outlive the run, and f must go with it.
  runner_ = [threads = token_.state->threads](std::function<void()> work) {
    threads->Schedule(std::move(work));
  };
  options_.create_rendezvous = true;
  options_.cancellation_manager = &cancel_;
  options_.step_container = &step_container_;
  options_.runner = &runner_;
}

BranchRun::~BranchRun() = default;

bool BranchRun::Claim(bool abandon) {
  std::lock_guard<std::mutex> lock(mu_);
  if (answered_) return false;
  answered_ = true;
  if (abandon) {
    std::lock_guard<std::mutex> state_lock(token_.state->mu);
    token_.abandoned = true;
    ++token_.state->abandoned;
  }
  return true;
}

void BranchRun::Start(int budget_ms) {
  auto self = shared_from_this();
  budget_ms_ = budget_ms;
  // First the cancellation, then the timer: once the timer runs the op may end, and the step's manager with
  // it.
  if (step_cancel_ != nullptr) {
    // The callback runs inside StartCancel, which must not wait for anything of ours: the work goes to
    // another thread. That is not one of the branch's threads, since those may all be blocked by the branch.
    const bool registered = step_cancel_->RegisterCallback(
        step_token_, [self] { OnOtherThread([self] { self->OnStepCancelled(); }); });
    if (!registered) {
      if (Claim(/*abandon=*/false)) AnswerCancelled();
      return;
    }
  }
  if (budget_ms > 0) {
    std::lock_guard<std::mutex> lock(mu_);
    if (!answered_) {
      timed_ = true;
      timer_key_ = DeadlineTimer::Get().Add(start_ + std::chrono::milliseconds(budget_ms),
                                            [self] { self->OnDeadline(); });
    }
  }
  token_.state->function.Run(options_, args_, &outputs_,
                             [self](const absl::Status& status) { self->OnFunctionDone(status); });
}

void BranchRun::OnFunctionDone(const absl::Status& status) {
  if (!Claim(/*abandon=*/false)) return;
  if (status.ok()) {
    const absl::Status checked = CheckOutputs();
    if (checked.ok()) {
      for (size_t i = 0; i < outputs_.size(); ++i) ctx_->set_output(i, outputs_[i]);
      return Finish(0);
    }
    return AnswerFallback(checked);
  }
  if (step_cancel_ != nullptr && step_cancel_->IsCancelled()) return AnswerCancelled();
  AnswerFallback(status);
}

void BranchRun::OnDeadline() {
  if (!Claim(/*abandon=*/true)) return;
  AnswerFallback(absl::DeadlineExceededError(absl::StrCat("no answer within ", budget_ms_, " ms")));
  // What f registered for cancellation is not ours and may be slow: not on the thread of all deadlines.
  OnOtherThread([self = shared_from_this()] { self->cancel_.StartCancel(); });
}

void BranchRun::OnStepCancelled() {
  cancel_.StartCancel();
  if (!Claim(/*abandon=*/true)) return;
  // Wait until StartCancel of the step has left its callbacks: ending the op may end the step and free the
  // manager.
  step_cancel_->DeregisterCallback(step_token_);
  AnswerCancelled();
}

void BranchRun::AnswerCancelled() {
  ctx_->SetStatus(
      absl::CancelledError(absl::StrCat("branch '", token_.state->name, "': the step was cancelled")));
  Finish(static_cast<int>(absl::StatusCode::kCancelled));
}

void BranchRun::AnswerFallback(const absl::Status& why) {
  LOG_EVERY_N_SEC(WARNING, 10) << "genrecall: branch '" << token_.state->name
                               << "' answered with its fallback: " << why;
  for (size_t i = 0; i < fallback_.size(); ++i) ctx_->set_output(i, fallback_[i]);
  Finish(why.raw_code());
}

void BranchRun::Finish(int code) {
  if (timed_) DeadlineTimer::Get().Remove(timer_key_);
  if (step_cancel_ != nullptr) step_cancel_->TryDeregisterCallback(step_token_);
  g_answers->GetCell(token_.state->name, absl::StrCat(code))->IncrementBy(1);
  const std::chrono::duration<double, std::milli> took = DeadlineTimer::Clock::now() - start_;
  g_latency->GetCell(token_.state->name)->Add(took.count());
  if (ctx_->status().ok()) {
    Tensor status(tensorflow::DT_INT32, {});
    status.scalar<int32_t>()() = code;
    ctx_->set_output(ctx_->num_outputs() - 1, status);
  }
  // Copied out: the op's end may free the context, and the run may go on without it.
  auto done = std::move(done_);
  ctx_ = nullptr;
  done();
}

absl::Status BranchRun::CheckOutputs() const {
  if (outputs_.size() != fallback_.size()) {
    return absl::InternalError(
        absl::StrCat("the branch has ", outputs_.size(), " outputs: expected ", fallback_.size()));
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Tensor& got = outputs_[i];
    const Tensor& want = fallback_[i];
    if (got.dtype() != want.dtype()) {
      return absl::InternalError(absl::StrCat("output ", i, " of the branch is ", DataTypeString(got.dtype()),
                                              ": expected ", DataTypeString(want.dtype())));
    }
    const bool same_rows =
        got.dims() == want.dims() && (got.dims() == 0 || got.dim_size(0) == want.dim_size(0));
    if (!same_rows || !token_.state->shapes[i].IsCompatibleWith(got.shape())) {
      return absl::InternalError(absl::StrCat("output ", i, " of the branch has shape ",
                                              got.shape().DebugString(), ": expected ",
                                              token_.state->shapes[i].DebugString(),
                                              " with the rows of the fallback ", want.shape().DebugString()));
    }
    if (token_.state->is_score[i] && HasNan(got)) {
      return absl::InternalError(absl::StrCat("output ", i, " of the branch has a NaN: expected scores"));
    }
  }
  return absl::OkStatus();
}

}  // namespace genrecall
