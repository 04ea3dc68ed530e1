#include "trtllm_bridge/cpu_engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "trtllm_bridge/compute_pool.h"
#include "trtllm_bridge/engine_checks.h"
#include "trtllm_bridge/kv_budget.h"
#include "trtllm_bridge/mailbox.h"
#include "trtllm_bridge/scheduler.h"
#include "trtllm_bridge/step_cost.h"
#include "trtllm_bridge/step_runner.h"

namespace genrecall {
namespace {

// How often a request that waits for memory which another engine's requests hold looks for it.
constexpr std::chrono::milliseconds kMemoryPoll{2};
constexpr size_t kMaxStepRecords = 100000;  // a log that nobody takes forgets its oldest steps

DecodeResult Failure(Status status) {
  DecodeResult result;
  result.status = std::move(status);
  return result;
}

}  // namespace

// What the threads share. Lock order: mutex_ is a leaf; steps and callbacks run without it.
class CpuEngine::Core {
 public:
  Core(std::shared_ptr<const DecoderWeights> weights, const EngineOptions& options, const TransformerOps* ops,
       std::shared_ptr<ComputePool> pool, std::shared_ptr<KvBudget> budget)
      : weights_(std::move(weights)),
        ops_(ops),
        pool_(std::move(pool)),
        max_prompt_tokens_(std::max(
            1, std::min(options.max_prompt_tokens, weights_->config().context_length - levels() + 1))),
        scheduler_({options.max_queue, SchedulerOptions().max_running, options.max_step_rows,
                    options.prefill_chunk}),
        runner_(weights_, ops, std::move(budget), options.max_step_rows, max_prompt_tokens_ + levels()) {}

  RequestId Submit(DecodeRequest request, DecodeCallback callback);
  Status Enqueue(std::unique_ptr<LiveRequest> live);
  void Cancel(RequestId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    scheduler_.Cancel(id);
  }
  void Stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
  }
  void RunSteps();
  void RunCallbacks() { mailbox_.Run(); }

  EngineStats stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    EngineStats stats = stats_;
    stats.queued = scheduler_.waiting();
    stats.running = scheduler_.running();
    runner_.AddMemoryStats(&stats);
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
  // These hold mutex_.
  void EndExpired();
  void PlanStep();
  int64_t Admit(RequestId id);
  void AdoptPrefixes();
  void NoLongerPrompt(const LiveRequest* request);
  void SettleStep();
  void Deliver(RequestId id, DecodeResult result);

  void RunStep();
  const SidSpace& sid_space() const { return weights_->sid_tokens().space; }

  const std::shared_ptr<const DecoderWeights> weights_;
  const TransformerOps* const ops_;
  const std::shared_ptr<ComputePool> pool_;
  const int max_prompt_tokens_;
  Mailbox mailbox_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Scheduler scheduler_;
  // Entered by Submit, left by the step thread only, which therefore may use a request without the lock.
  std::map<RequestId, std::unique_ptr<LiveRequest>> live_;
  // Step thread only: what is left of delivered requests. A request may hold the last reference to a large
  // index, which is then let go without the lock.
  std::vector<std::unique_ptr<LiveRequest>> ended_;
  std::atomic<RequestId> next_id_{1};
  EngineStats stats_;
  bool stopping_ = false;
  bool recording_ = false;
  std::deque<StepRecord> step_log_;

  // Step thread only.
  StepRunner runner_;
  std::vector<StepRunner::Work> work_;
  std::vector<LiveRequest*> running_prompts_;  // admitted, with rows of the prompt left
  StepCostMeter cost_;
};

RequestId CpuEngine::Core::Submit(DecodeRequest request, DecodeCallback callback) {
  const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
  int64_t tail_bytes = 0;
  Status status = CheckRequest(request, max_prompt_tokens_, weights_->config().vocab, sid_space());
  if (status.ok()) status = runner_.CheckKv(request, &tail_bytes);
  if (status.ok()) {
    status = Enqueue(std::make_unique<LiveRequest>(id, std::move(request), callback, tail_bytes));
  }
  if (status.ok()) return id;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++stats_.rejected;
  }
  callback(Failure(std::move(status)));
  return id;
}

Status CpuEngine::Core::Enqueue(std::unique_ptr<LiveRequest> live) {
  const DecodeRequest& request = live->request;
  Scheduler::Request entry;
  entry.priority = request.priority;
  entry.deadline = request.deadline;
  entry.prompt_rows = static_cast<int64_t>(request.prompt.size());
  entry.decode_rows = DecodeRowsBound(*request.index, request.beam.width);
  entry.passes = levels();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return Status(Code::kUnavailable, "the engine is shutting down");
    if (!scheduler_.Enqueue(live->id, entry)) {
      return Status(Code::kResourceExhausted,
                    Cat("queue full: ", scheduler_.waiting(), " requests are waiting (max_queue)"));
    }
    ++stats_.submitted;
    const RequestId id = live->id;
    live_.emplace(id, std::move(live));
  }
  wake_.notify_one();
  return Status();
}

void CpuEngine::Core::RunSteps() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || !scheduler_.idle(); });
    if (stopping_) break;
    EndExpired();
    PlanStep();
    if (work_.empty() && !scheduler_.idle()) wake_.wait_for(lock, kMemoryPoll);
    lock.unlock();
    if (!work_.empty()) RunStep();
    lock.lock();
    SettleStep();
    lock.unlock();
    ended_.clear();
    lock.lock();
  }
  while (!live_.empty()) {
    Deliver(live_.begin()->first, Failure(Status(Code::kUnavailable, "the engine is shutting down")));
  }
  mailbox_.Close();
}

void CpuEngine::Core::RunStep() {
  int64_t rows = 0;
  for (const StepRunner::Work& w : work_) rows += w.rows;
  const auto start = std::chrono::steady_clock::now();
  {
    ComputePool::Turn turn(pool_.get());
    runner_.Run(work_, pool_->threads());
  }
  cost_.Record(rows, std::chrono::steady_clock::now() - start);
}

void CpuEngine::Core::EndExpired() {
  for (const Scheduler::Ended& ended : scheduler_.Expire(std::chrono::steady_clock::now(), cost_.cost())) {
    const bool cancelled = ended.code == Code::kCancelled;
    ++(cancelled ? stats_.cancelled : stats_.deadline_exceeded);
    if (ended.early) cost_.Doubt();
    Deliver(ended.id, Failure(Status(ended.code, cancelled     ? "cancelled"
                                                 : ended.early ? "deadline cannot be met any more"
                                                               : "deadline exceeded while decoding")));
  }
}

void CpuEngine::Core::PlanStep() {
  work_.clear();
  AdoptPrefixes();
  for (const Scheduler::Grant& grant : scheduler_.Plan([this](RequestId id) { return Admit(id); })) {
    LiveRequest* r = live_.at(grant.id).get();
    work_.push_back({r, grant.rows});
    (r->prefill ? stats_.prefill_tokens : stats_.decode_rows) += grant.rows;
  }
  if (work_.empty()) return;
  const int64_t step = stats_.steps++;
  if (!recording_) return;
  StepRecord record;
  record.step = step;
  for (const StepRunner::Work& w : work_) {
    const LiveRequest* r = w.request;
    record.rows.push_back({r->id, r->prefill, r->prefill ? 0 : r->search.level(), w.rows});
  }
  if (step_log_.size() == kMaxStepRecords) step_log_.pop_front();
  step_log_.push_back(std::move(record));
}

int64_t CpuEngine::Core::Admit(RequestId id) {
  LiveRequest* r = live_.at(id).get();
  if (!runner_.Admit(r)) return Scheduler::kNoRoom;
  running_prompts_.push_back(r);
  ++(r->result.cached_tokens > 0 ? stats_.prefix_hits : stats_.prefix_misses);
  stats_.prefix_hit_tokens += r->result.cached_tokens;
  return r->result.cached_tokens;
}

// What others have computed since of prompts that are being computed.
void CpuEngine::Core::AdoptPrefixes() {
  for (LiveRequest* r : running_prompts_) {
    const int rows = runner_.Adopt(r);
    if (rows == 0) continue;
    scheduler_.SkipRows(r->id, rows);
    stats_.prefix_hit_tokens += rows;
  }
}

void CpuEngine::Core::SettleStep() {
  for (const StepRunner::Work& w : work_) {
    LiveRequest* r = w.request;
    if (r->finished()) {
      ++(r->result.status.ok() ? stats_.completed : stats_.failed);
      scheduler_.Remove(r->id);
      Deliver(r->id, std::move(r->result));
    } else if (r->done_rows == 0) {
      if (r->search.level() == 1) NoLongerPrompt(r);
      // Every later level has at least as many prefixes as W or as this one's children: the bound stays
      // one of W per level.
      const int64_t levels_left = levels() - 1 - r->search.level();
      scheduler_.BeginPass(r->id, r->pass_rows, levels_left * r->search.options().width);
    }
  }
}

void CpuEngine::Core::NoLongerPrompt(const LiveRequest* r) {
  running_prompts_.erase(std::remove(running_prompts_.begin(), running_prompts_.end(), r),
                         running_prompts_.end());
}

void CpuEngine::Core::Deliver(RequestId id, DecodeResult result) {
  const auto it = live_.find(id);
  NoLongerPrompt(it->second.get());
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
  int64_t kv_bytes = options.kv_bytes;
  try {
    if (threads == 0) threads = DefaultNumThreads();
    if (kv_bytes == 0) kv_bytes = DefaultKvBytes();
  } catch (const std::exception& e) {
    return InvalidArgument(e.what());
  }
  auto core = std::make_shared<Core>(std::move(weights), options, ops, ComputePool::Shared(threads),
                                     KvBudget::Shared(kv_bytes));
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
  KvPool kv_pool(decoder.kv_shape(), std::make_shared<KvBudget>(std::numeric_limits<int64_t>::max()));
  PrefixCache no_prefixes(&kv_pool);
  const auto kv = SequenceKv::Start(&kv_pool, &no_prefixes, {&tokens});
  kv->Extend(n);
  RowBlock block;
  block.tokens = tokens.data();
  block.n = n;
  block.kv = kv.get();
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
