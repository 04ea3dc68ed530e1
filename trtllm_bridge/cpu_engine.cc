#include "trtllm_bridge/cpu_engine.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "trtllm_bridge/compute_pool.h"
#include "trtllm_bridge/scheduler.h"
#include "trtllm_bridge/step_runner.h"

namespace genrecall {
namespace {

constexpr size_t kMaxStepRecords = 100000;  // a log that nobody takes forgets its oldest steps

Status CheckOption(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return Status();
  return InvalidArgument(name, " = ", value, ": expected ", min, "..", max);
}

Status CheckOptions(const EngineOptions& o) {
  GENRECALL_RETURN_IF_ERROR(CheckOption("num_threads", o.num_threads, 0, 1024));
  GENRECALL_RETURN_IF_ERROR(CheckOption("max_queue", o.max_queue, 1, 1 << 20));
  GENRECALL_RETURN_IF_ERROR(CheckOption("max_step_rows", o.max_step_rows, 1, 1 << 16));
  GENRECALL_RETURN_IF_ERROR(CheckOption("prefill_chunk", o.prefill_chunk, 1, 1 << 16));
  return CheckOption("max_prompt_tokens", o.max_prompt_tokens, 1, 1 << 20);
}

Status CheckPrompt(const std::vector<int32_t>& prompt, int max_tokens, int vocab) {
  if (prompt.empty() || prompt.size() > static_cast<size_t>(max_tokens)) {
    return InvalidArgument("prompt: ", prompt.size(), " tokens: expected 1..", max_tokens);
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab) {
      return InvalidArgument("prompt[", i, "] = ", prompt[i], ": expected 0..V-1 = ", vocab - 1);
    }
  }
  return Status();
}

std::string SizesText(const std::vector<int32_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

Status CheckIndex(const RecallIndex* index, const SidSpace& space) {
  if (index == nullptr) return InvalidArgument("index = null: expected a recall index");
  const SidSpace& other = index->sid_space();
  if (other.level_sizes != space.level_sizes) {
    return InvalidArgument("index: level_sizes = ", SizesText(other.level_sizes), ": expected the weights' ",
                           SizesText(space.level_sizes));
  }
  if (!other.digest.empty() && !space.digest.empty() && other.digest != space.digest) {
    return InvalidArgument("index: sid_space_digest = '", other.digest, "': expected the weights' '",
                           space.digest, "'");
  }
  return Status();
}

Status CheckBeam(const BeamOptions& beam) {
  GENRECALL_RETURN_IF_ERROR(CheckOption("beam_width", beam.width, 1, kMaxBeamWidth));
  if (!(beam.temperature > 0) || !std::isfinite(beam.temperature)) {
    return InvalidArgument("temperature = ", beam.temperature, ": expected > 0 and finite");
  }
  return Status();
}

DecodeResult Failure(Status status) {
  DecodeResult result;
  result.status = std::move(status);
  return result;
}

// Results on their way to their callbacks: a slow callback delays other callbacks, never a step.
class Mailbox {
 public:
  void Post(DecodeCallback callback, DecodeResult result) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      box_.emplace_back(std::move(callback), std::move(result));
    }
    changed_.notify_one();
  }
  void Close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_one();
  }
  // Delivers until closed and empty.
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return closed_ || !box_.empty(); });
      if (box_.empty()) return;
      auto [callback, result] = std::move(box_.front());
      box_.pop_front();
      lock.unlock();
      callback(std::move(result));
      callback = nullptr;  // what it captured goes before the lock is taken again
      lock.lock();
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<DecodeCallback, DecodeResult>> box_;
  bool closed_ = false;
};

}  // namespace

// What the threads share. Lock order: mutex_ is a leaf; steps and callbacks run without it.
class CpuEngine::Core {
 public:
  Core(std::shared_ptr<const DecoderWeights> weights, const EngineOptions& options, const TransformerOps* ops,
       std::shared_ptr<ComputePool> pool)
      : weights_(std::move(weights)),
        ops_(ops),
        pool_(std::move(pool)),
        max_prompt_tokens_(std::max(
            1, std::min(options.max_prompt_tokens, weights_->config().context_length - levels() + 1))),
        scheduler_({options.max_queue, SchedulerOptions().max_running, options.max_step_rows,
                    options.prefill_chunk}),
        runner_(weights_, ops, options.max_step_rows, max_prompt_tokens_ + levels()) {}

  RequestId Submit(DecodeRequest request, DecodeCallback callback);
  void Cancel(RequestId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    scheduler_.Cancel(id);
  }
  void Stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    work_.notify_one();
  }
  void RunSteps();
  void RunCallbacks() { mailbox_.Run(); }

  EngineStats stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    EngineStats stats = stats_;
    stats.queued = scheduler_.waiting();
    stats.running = scheduler_.running();
    stats.kv_bytes = runner_.kv_bytes();
    stats.weight_bytes = weights_->bytes();
    return stats;
  }
  void RecordSteps(bool on) {
    std::lock_guard<std::mutex> lock(mutex_);
    recording_ = on;
    if (!on) step_log_.clear();
  }
  std::vector<StepRecord> TakeStepLog() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<StepRecord> log(step_log_.begin(), step_log_.end());
    step_log_.clear();
    return log;
  }

  int levels() const { return static_cast<int>(weights_->sid_tokens().space.level_sizes.size()); }
  const DecoderWeights& weights() const { return *weights_; }
  const TransformerOps* ops() const { return ops_; }
  ComputePool* pool() const { return pool_.get(); }
  int max_prompt_tokens() const { return max_prompt_tokens_; }
  std::shared_ptr<const DecoderWeights> shared_weights() const { return weights_; }

 private:
  Status Check(const DecodeRequest& request) const {
    GENRECALL_RETURN_IF_ERROR(CheckPrompt(request.prompt, max_prompt_tokens_, weights_->config().vocab));
    GENRECALL_RETURN_IF_ERROR(CheckBeam(request.beam));
    return CheckIndex(request.index.get(), weights_->sid_tokens().space);
  }
  // These four hold mutex_.
  void EndExpired();
  std::vector<StepRunner::Work> PlanStep();
  void SettleStep(const std::vector<StepRunner::Work>& work);
  void Deliver(RequestId id, DecodeResult result);

  const std::shared_ptr<const DecoderWeights> weights_;
  const TransformerOps* const ops_;
  const std::shared_ptr<ComputePool> pool_;
  const int max_prompt_tokens_;
  Mailbox mailbox_;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  Scheduler scheduler_;
  // Entered by Submit, left by the step thread only, which therefore may use a request without the lock.
  std::map<RequestId, std::unique_ptr<LiveRequest>> live_;
  // Step thread only: what is left of delivered requests. A request may hold the last reference to a large
  // index, which is then let go without the lock.
  std::vector<std::unique_ptr<LiveRequest>> ended_;
  RequestId next_id_ = 1;
  EngineStats stats_;
  bool stopping_ = false;
  bool recording_ = false;
  std::deque<StepRecord> step_log_;

  StepRunner runner_;  // step thread only
};

RequestId CpuEngine::Core::Submit(DecodeRequest request, DecodeCallback callback) {
  Status status = Check(request);
  std::unique_lock<std::mutex> lock(mutex_);
  const RequestId id = next_id_++;
  if (status.ok() && stopping_) status = Status(Code::kUnavailable, "the engine is shutting down");
  if (status.ok()) {
    Scheduler::Request entry;
    entry.priority = request.priority;
    entry.deadline = request.deadline;
    entry.prompt_rows = static_cast<int64_t>(request.prompt.size());
    entry.decode_rows = DecodeRowsBound(*request.index, request.beam.width);
    if (!scheduler_.Enqueue(id, entry)) {
      status = Status(Code::kResourceExhausted,
                      Cat("queue full: ", scheduler_.waiting(), " requests are waiting (max_queue)"));
    }
  }
  if (!status.ok()) {
    ++stats_.rejected;
    lock.unlock();
    callback(Failure(std::move(status)));
    return id;
  }
  ++stats_.submitted;
  live_.emplace(id, std::make_unique<LiveRequest>(id, std::move(request), std::move(callback)));
  lock.unlock();
  work_.notify_one();
  return id;
}

void CpuEngine::Core::RunSteps() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || !scheduler_.idle(); });
    if (stopping_) break;
    EndExpired();
    const std::vector<StepRunner::Work> work = PlanStep();
    lock.unlock();
    if (!work.empty()) {
      ComputePool::Turn turn(pool_.get());
      runner_.Run(work, pool_->threads());
    }
    lock.lock();
    SettleStep(work);
    lock.unlock();
    ended_.clear();
    lock.lock();
  }
  while (!live_.empty()) {
    Deliver(live_.begin()->first, Failure(Status(Code::kUnavailable, "the engine is shutting down")));
  }
  mailbox_.Close();
}

void CpuEngine::Core::EndExpired() {
  for (const Scheduler::Ended& ended : scheduler_.Expire(std::chrono::steady_clock::now())) {
    const bool cancelled = ended.code == Code::kCancelled;
    ++(cancelled ? stats_.cancelled : stats_.deadline_exceeded);
    Deliver(ended.id,
            Failure(Status(ended.code, cancelled ? "cancelled" : "deadline exceeded while decoding")));
  }
}

std::vector<StepRunner::Work> CpuEngine::Core::PlanStep() {
  std::vector<StepRunner::Work> work;
  StepRecord record;
  for (const Scheduler::Grant& grant : scheduler_.Plan()) {
    LiveRequest* r = live_.at(grant.id).get();
    work.push_back({r, grant.rows});
    (r->prefill ? stats_.prefill_tokens : stats_.decode_rows) += grant.rows;
    record.rows.push_back({r->id, r->prefill, r->prefill ? 0 : r->search.level(), grant.rows});
  }
  if (work.empty()) return work;
  record.step = stats_.steps++;
  if (recording_) {
    if (step_log_.size() == kMaxStepRecords) step_log_.pop_front();
    step_log_.push_back(std::move(record));
  }
  return work;
}

void CpuEngine::Core::SettleStep(const std::vector<StepRunner::Work>& work) {
  for (const StepRunner::Work& w : work) {
    LiveRequest* r = w.request;
    if (r->finished()) {
      ++(r->result.status.ok() ? stats_.completed : stats_.failed);
      scheduler_.Remove(r->id);
      Deliver(r->id, std::move(r->result));
    } else if (r->done_rows == 0) {
      // Every later level has at least as many prefixes as W or as this one's children: the bound stays
      // one of W per level.
      const int64_t levels_left = levels() - 1 - r->search.level();
      scheduler_.BeginPass(r->id, r->pass_rows, levels_left * r->search.options().width);
    }
  }
}

void CpuEngine::Core::Deliver(RequestId id, DecodeResult result) {
  const auto it = live_.find(id);
  it->second->kv.reset();
  mailbox_.Post(std::move(it->second->callback), std::move(result));
  ended_.push_back(std::move(it->second));
  live_.erase(it);
}

Result<std::shared_ptr<CpuEngine>> CpuEngine::Create(std::shared_ptr<const DecoderWeights> weights,
                                                     const EngineOptions& options) {
  GENRECALL_RETURN_IF_ERROR(CheckOptions(options));
  Result<CpuIsa> isa = ActiveCpuIsa();
  if (!isa.ok()) return isa.status();
  const TransformerOps* ops = TransformerOpsFor(isa.value());
  if (ops == nullptr) {
    return Status(Code::kUnimplemented,
                  Cat("this build has no kernels for CPU ISA '", CpuIsaName(isa.value()), "'"));
  }
  int threads = options.num_threads;
  try {
    if (threads == 0) threads = DefaultNumThreads();
  } catch (const std::exception& e) {
    return InvalidArgument(e.what());
  }
  auto core = std::make_shared<Core>(std::move(weights), options, ops, ComputePool::Shared(threads));
  return std::shared_ptr<CpuEngine>(new CpuEngine(std::move(core)));
}

CpuEngine::CpuEngine(std::shared_ptr<Core> core)
    : core_(std::move(core)),
      step_thread_([core = core_] { core->RunSteps(); }),
      callback_thread_([core = core_] { core->RunCallbacks(); }) {}

CpuEngine::~CpuEngine() {
  core_->Stop();
  step_thread_.join();
  if (callback_thread_.get_id() == std::this_thread::get_id()) {
    callback_thread_
        .detach();  // the last reference went with a callback: that thread finishes its box by itself
  } else {
    callback_thread_.join();
  }
}

const std::string& CpuEngine::name() const {
  static const auto* kName = new std::string("cpu");
  return *kName;
}
const SidSpace& CpuEngine::sid_space() const { return core_->weights().sid_tokens().space; }
int CpuEngine::hidden_size() const { return core_->weights().config().hidden; }
int CpuEngine::max_prompt_tokens() const { return core_->max_prompt_tokens(); }
RequestId CpuEngine::Submit(DecodeRequest request, DecodeCallback callback) {
  return core_->Submit(std::move(request), std::move(callback));
}
void CpuEngine::Cancel(RequestId id) { core_->Cancel(id); }
EngineStats CpuEngine::stats() const { return core_->stats(); }
void CpuEngine::RecordSteps(bool on) { core_->RecordSteps(on); }
std::vector<StepRecord> CpuEngine::TakeStepLog() { return core_->TakeStepLog(); }
const DecoderWeights& CpuEngine::weights() const { return core_->weights(); }
CpuIsa CpuEngine::isa() const { return core_->ops()->isa; }
int CpuEngine::num_threads() const { return core_->pool()->threads()->num_threads(); }

Status CpuEngine::Prefill(const std::vector<int32_t>& tokens, GemmObserver observer,
                          const std::function<void(Decoder*, ThreadPool*)>& after) {
  GENRECALL_RETURN_IF_ERROR(CheckPrompt(tokens, core_->max_prompt_tokens(), core_->weights().config().vocab));
  const int n = static_cast<int>(tokens.size());
  Decoder decoder(core_->shared_weights(), core_->ops(), n, n);
  decoder.Observe(std::move(observer));
  KvPool kv_pool(decoder.kv_shape());
  SequenceKv kv(&kv_pool, n);
  RowBlock block;
  block.tokens = tokens.data();
  block.n = n;
  block.kv = &kv;
  ComputePool::Turn turn(core_->pool());
  decoder.Forward({block}, core_->pool()->threads());
  after(&decoder, core_->pool()->threads());
  return Status();
}

Result<std::vector<float>> CpuEngine::ForwardLogits(const std::vector<int32_t>& tokens) {
  const int n = static_cast<int>(tokens.size());
  std::vector<int32_t> rows(n);
  for (int i = 0; i < n; ++i) rows[i] = i;
  std::vector<float> logits(static_cast<size_t>(n) * core_->weights().config().vocab);
  GENRECALL_RETURN_IF_ERROR(Prefill(tokens, nullptr, [&](Decoder* decoder, ThreadPool* pool) {
    decoder->SelectRows(rows.data(), n, pool);
    decoder->VocabLogits(0, n, logits.data(), pool);
  }));
  return logits;
}

Status CpuEngine::ObserveForward(const std::vector<int32_t>& tokens, GemmObserver observer) {
  return Prefill(tokens, std::move(observer), [](Decoder*, ThreadPool*) {});
}

}  // namespace genrecall
