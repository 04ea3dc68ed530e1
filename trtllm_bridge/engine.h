// The decoder engine as the rest of the system sees it: submit a prompt, get beams by callback. Knows no
// TensorFlow.
#ifndef GENRECALL_TRTLLM_BRIDGE_ENGINE_H_
#define GENRECALL_TRTLLM_BRIDGE_ENGINE_H_

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/constrained_topk.h"
#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

inline constexpr int kMaxBeamWidth = 4096;

struct BeamOptions {
  int width = 50;  // W in 1..kMaxBeamWidth
  Normalize normalize = Normalize::kLevel;
  float temperature = 1.0f;
  uint64_t seed = 0;  // 0: the best beams; else a sample without replacement (BeamSearch)
  // prefix_caps[l]: at most so many beams share their first l + 1 codes; 0: no cap. Beams past a cap make
  // room for the next best ones.
  std::array<int32_t, kMaxLevels> prefix_caps{};

  bool capped() const {
    return std::any_of(prefix_caps.begin(), prefix_caps.end(), [](int32_t cap) { return cap > 0; });
  }
};

struct DecodeRequest {
  std::vector<int32_t> prompt;  // token ids, at least one
  // Tokens that repeat over this user's requests: their whole pages are kept for the next one (prefix reuse).
  int stable_prefix = 0;
  std::shared_ptr<const RecallIndex> index;  // the request's snapshot
  BeamOptions beam;
  std::vector<int64_t> exclude;  // items: a SID with no other ones gets no beam
  // steady clock; max(): none. Past it the request ends with DEADLINE_EXCEEDED and its rows are freed at
  // the next step.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  int priority = 0;  // higher goes first; warm-up uses kWarmupPriority
};
inline constexpr int kWarmupPriority = -1000;

// Beams best first. Fewer SIDs than W: the rest is padding, SID codes -1 and score -inf.
struct DecodeResult {
  Status status;
  int width = 0;                  // W
  int beams = 0;                  // real beams, <= W
  std::vector<int32_t> sids;      // [W, L]
  std::vector<float> score;       // [W] sum of the step scores
  std::vector<float> step_score;  // [W, L]
  std::vector<float> user_state;  // [hidden] final-norm hidden state of the last prompt token
  int cached_tokens = 0;          // tokens of the prompt that had not to be computed
};

using DecodeCallback = std::function<void(DecodeResult)>;
using RequestId = uint64_t;

struct EngineStats {
  int64_t submitted = 0, completed = 0, failed = 0, cancelled = 0, deadline_exceeded = 0, rejected = 0;
  int64_t queued = 0, running = 0;  // now
  int64_t steps = 0, prefill_tokens = 0, decode_rows = 0;
  int64_t prefix_hits = 0, prefix_misses = 0;  // requests admitted, by whether a page of theirs was there
  int64_t prefix_hit_tokens = 0;               // prompt tokens that had not to be computed
  // Now: keys and values in use (running requests and kept prefixes), of them kept, the blocks held from the
  // system (spare ones too), the process' limit for the latter.
  int64_t kv_bytes = 0, kv_cached_bytes = 0, kv_resident_bytes = 0, kv_budget_bytes = 0;
  int64_t kv_evicted_pages = 0;              // since the start
  int64_t weight_bytes = 0, step_bytes = 0;  // memory of the weights, of a step's buffers
};

// What one scheduler step ran: for tests and the diagnosis console. Kept only while a log is being recorded.
struct StepRecord {
  struct Rows {
    RequestId request;
    bool prefill;  // else one decode row per live beam
    int level;     // decode: generated position
    int rows;
  };
  int64_t step;
  std::vector<Rows> rows;  // all of them went through the same gemms
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const std::string& name() const = 0;  // "cpu"
  virtual const SidSpace& sid_space() const = 0;
  virtual int hidden_size() const = 0;
  virtual int max_prompt_tokens() const = 0;

  // Never blocks. The callback is called exactly once, on an engine thread or, when the request is
  // refused, before Submit returns: INVALID_ARGUMENT (empty or too long prompt, token id out of range,
  // stable_prefix, width, index of another SID space, more keys and values than kv_bytes), RESOURCE_EXHAUSTED
  // (queue full), UNAVAILABLE (shutting down). It must not block for long.
  virtual RequestId Submit(DecodeRequest request, DecodeCallback callback) = 0;

  // The request's callback comes with CANCELLED at the next step; a finished or unknown id is ignored.
  virtual void Cancel(RequestId id) = 0;

  virtual EngineStats stats() const = 0;
  virtual void RecordSteps(bool on) = 0;
  virtual std::vector<StepRecord> TakeStepLog() = 0;
};

struct EngineOptions {
  int num_threads = 0;      // 0: DefaultNumThreads()
  int max_queue = 256;      // waiting requests; more are refused
  int max_step_rows = 512;  // rows of a step; a longer prefill is chunked
  int prefill_chunk = 160;  // rows of one request per step at most, while others of its priority are live
  int max_prompt_tokens = 4096;
  // Keys and values of all engines with this number together, kept prefixes included. 0: DefaultKvBytes().
  int64_t kv_bytes = 0;
};

// The engine for a weights file (GGUF, see trtllm_bridge/checkpoint.py). Two calls with the same weights
// digest and options share one engine for as long as either holds it; with other options, they share the
// weights. A slow load holds up only calls for the same file. Errors: "engine 'remote' is not built
// in; available: cpu"; whatever loading the weights says.
Result<std::shared_ptr<Engine>> AcquireEngine(const std::string& engine, const std::string& weights_path,
                                              const EngineOptions& options);

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_ENGINE_H_
