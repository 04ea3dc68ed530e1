// Requests as Python waits for them. No callback ever runs Python: results wait in C++ until somebody asks,
// so engine threads need no GIL.
#ifndef GENRECALL_TRTLLM_BRIDGE_BINDINGS_REQUESTS_H_
#define GENRECALL_TRTLLM_BRIDGE_BINDINGS_REQUESTS_H_

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trtllm_bridge/bindings_parts.h"
#include "trtllm_bridge/cpu_engine.h"

namespace genrecall {

using Clock = std::chrono::steady_clock;

inline const char* CodeName(Code code) {
  switch (code) {
    case Code::kCancelled:
      return "CANCELLED";
    case Code::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Code::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::kUnimplemented:
      return "UNIMPLEMENTED";
    case Code::kUnavailable:
      return "UNAVAILABLE";
    default:
      return "INTERNAL";
  }
}

// Files' and arguments' errors as everywhere; a request's end as RuntimeError("CANCELLED: ...").
[[noreturn]] inline void ThrowRequestStatus(const Status& status, const std::string& where) {
  if (status.code() == Code::kInvalidArgument) throw py::value_error(where + status.message());
  throw std::runtime_error(Cat(CodeName(status.code()), ": ", where, status.message()));
}

// Where a request's result waits.
class Slot {
 public:
  void Put(DecodeResult result) {
    std::lock_guard<std::mutex> lock(mutex_);
    result_ = std::move(result);
    done_ = true;
    changed_.notify_all();
  }
  bool done() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_;
  }
  // Waits without the GIL, looking for Ctrl-C now and then. False: not done in time.
  bool Wait(Clock::time_point until) {
    for (;;) {
      {
        py::gil_scoped_release release;
        std::unique_lock<std::mutex> lock(mutex_);
        const auto slice = std::min(until, Clock::now() + std::chrono::milliseconds(200));
        if (changed_.wait_until(lock, slice, [&] { return done_; })) return true;
      }
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (Clock::now() >= until) return false;
    }
  }
  const DecodeResult& result() const { return result_; }  // once done

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  DecodeResult result_;
  bool done_ = false;
};

inline py::dict ResultDict(const DecodeResult& r, py::ssize_t levels) {
  const py::ssize_t width = r.width;
  py::dict out;
  out["sids"] = ToArray(r.sids, {width, levels});
  out["score"] = ToArray(r.score, {width});
  out["step_score"] = ToArray(r.step_score, {width, levels});
  out["user_state"] = ToArray(r.user_state, {static_cast<py::ssize_t>(r.user_state.size())});
  out["beams"] = r.beams;
  out["cached_tokens"] = r.cached_tokens;
  return out;
}

// A request in flight. Holds the engine weakly: an engine that is dropped ends its requests with UNAVAILABLE.
class PyRequest {
 public:
  PyRequest(const std::shared_ptr<CpuEngine>& engine, DecodeRequest request)
      : engine_(engine), levels_(static_cast<py::ssize_t>(engine->sid_space().level_sizes.size())) {
    id_ = engine->Submit(std::move(request), [slot = slot_](DecodeResult r) { slot->Put(std::move(r)); });
  }
  RequestId id() const { return id_; }
  bool done() const { return slot_->done(); }
  void Cancel() {
    if (const auto engine = engine_.lock()) engine->Cancel(id_);
  }
  py::dict ResultWithin(std::optional<double> timeout_s) {
    if (!slot_->Wait(Until(timeout_s))) {
      PyErr_SetString(PyExc_TimeoutError, Cat("request not done within ", *timeout_s, " s").c_str());
      throw py::error_already_set();
    }
    const DecodeResult& r = slot_->result();
    if (!r.status.ok()) ThrowRequestStatus(r.status, "");
    return ResultDict(r, levels_);
  }

 private:
  static Clock::time_point Until(std::optional<double> timeout_s) {
    if (!timeout_s || *timeout_s > 1e8) return Clock::time_point::max();
    return Clock::now() + std::chrono::microseconds(static_cast<int64_t>(std::max(0.0, *timeout_s) * 1e6));
  }

  std::weak_ptr<CpuEngine> engine_;
  py::ssize_t levels_;
  std::shared_ptr<Slot> slot_ = std::make_shared<Slot>();
  RequestId id_ = 0;
};

struct DecodeOptions {
  std::vector<int> width;                     // [B]
  BeamOptions beam;                           // of every row but for the width
  std::vector<std::vector<int64_t>> exclude;  // [B], or none
};

// Everything of a batch, in windows that the engine's queue can take: a batch may be larger than the queue.
class BatchDecode {
 public:
  BatchDecode(CpuEngine* engine, std::shared_ptr<const RecallIndex> index) : engine_(engine), index_(index) {}
  ~BatchDecode() {  // after an error or Ctrl-C: nobody wants the rest
    for (const InFlight& f : in_flight_) engine_->Cancel(f.id);
  }

  std::vector<std::shared_ptr<Slot>> Run(const Array<int32_t>& tokens, const Array<int32_t>& length,
                                         const DecodeOptions& options) {
    const py::ssize_t batch = tokens.shape(0), row_size = tokens.shape(1);
    for (py::ssize_t b = 0; b < batch; ++b) {
      const int32_t* row = tokens.data() + b * row_size;
      const int32_t n = length.data()[b];
      if (n < 0 || n > row_size) {
        throw py::value_error(Cat("length[", b, "] = ", n, ": expected 1..P = ", row_size));
      }
      DecodeRequest request;
      request.prompt.assign(row, row + n);
      request.index = index_;
      request.beam = options.beam;
      request.beam.width = options.width[b];
      if (!options.exclude.empty()) request.exclude = options.exclude[b];
      slots_.push_back(SubmitWaiting(request));
    }
    for (const auto& slot : slots_) slot->Wait(Clock::time_point::max());
    in_flight_.clear();
    for (size_t b = 0; b < slots_.size(); ++b) {
      const Status& status = slots_[b]->result().status;
      if (!status.ok()) ThrowRequestStatus(status, slots_.size() > 1 ? Cat("row ", b, ": ") : "");
    }
    return slots_;
  }

 private:
  struct InFlight {
    RequestId id;
    std::shared_ptr<Slot> slot;
  };

  // Submits; while the queue is full, waits for the oldest of the batch to end and tries again.
  std::shared_ptr<Slot> SubmitWaiting(const DecodeRequest& request) {
    for (;;) {
      auto slot = std::make_shared<Slot>();
      const RequestId id = engine_->Submit(request, [slot](DecodeResult r) { slot->Put(std::move(r)); });
      const bool refused = slot->done() && slot->result().status.code() == Code::kResourceExhausted;
      while (!in_flight_.empty() && in_flight_.front().slot->done()) in_flight_.erase(in_flight_.begin());
      if (!refused) {
        in_flight_.push_back({id, slot});
        return slot;
      }
      const auto soon = Clock::now() + std::chrono::milliseconds(5);
      if (in_flight_.empty()) {
        std::make_shared<Slot>()->Wait(soon);  // others fill the queue
      } else {
        in_flight_.front().slot->Wait(Clock::time_point::max());
      }
    }
  }

  CpuEngine* engine_;
  std::shared_ptr<const RecallIndex> index_;
  std::vector<InFlight> in_flight_;
  std::vector<std::shared_ptr<Slot>> slots_;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_BINDINGS_REQUESTS_H_
