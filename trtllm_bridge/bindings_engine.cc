// Python door of the engine: blocking decode of a batch, and requests in flight. No callback ever runs
// Python: results wait in C++ until somebody asks, so engine threads need no GIL.
#include <algorithm>
#include <condition_variable>
#include <limits>
#include <mutex>

#include "trtllm_bridge/bindings_parts.h"
#include "trtllm_bridge/cpu_engine.h"

namespace genrecall {
namespace {

using Clock = std::chrono::steady_clock;

const char* CodeName(Code code) {
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
[[noreturn]] void ThrowRequestStatus(const Status& status, const std::string& where) {
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

py::dict ResultDict(const DecodeResult& r, py::ssize_t levels) {
  const py::ssize_t width = r.width;
  py::dict out;
  out["sids"] = ToArray(r.sids, {width, levels});
  out["score"] = ToArray(r.score, {width});
  out["step_score"] = ToArray(r.step_score, {width, levels});
  out["user_state"] = ToArray(r.user_state, {static_cast<py::ssize_t>(r.user_state.size())});
  out["beams"] = r.beams;
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
  std::vector<int> width;  // [B]
  Normalize normalize;
  float temperature;
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
      request.beam.width = options.width[b];
      request.beam.normalize = options.normalize;
      request.beam.temperature = options.temperature;
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

// beam_width: one number, or one per row.
std::vector<int> Widths(const py::object& beam_width, py::ssize_t batch) {
  const Array<int32_t> widths = IntArray<int32_t>(beam_width, "beam_width", -1);
  if (widths.ndim() == 0) return std::vector<int>(batch, *widths.data());
  if (widths.ndim() != 1 || widths.shape(0) != batch) {
    throw py::value_error(
        Cat("beam_width: expected a number or shape [", batch, "], got ", ShapeString(widths)));
  }
  return std::vector<int>(widths.data(), widths.data() + batch);
}

py::dict Decode(CpuEngine& engine, const py::object& tokens_in, const py::object& length_in,
                std::shared_ptr<RecallIndex> index, const py::object& beam_width,
                const std::string& normalize, float temperature) {
  const Array<int32_t> tokens = IntArray<int32_t>(tokens_in, "tokens", 2);
  const Array<int32_t> length = IntArray<int32_t>(length_in, "length", 1);
  const py::ssize_t batch = tokens.shape(0);
  if (length.shape(0) != batch) {
    throw py::value_error(Cat("length: expected shape [", batch, "], got ", ShapeString(length)));
  }
  const DecodeOptions options{Widths(beam_width, batch), ParseNormalize(normalize), temperature};
  const auto slots = BatchDecode(&engine, std::move(index)).Run(tokens, length, options);

  const py::ssize_t levels = static_cast<py::ssize_t>(engine.sid_space().level_sizes.size());
  const py::ssize_t width = batch > 0 ? *std::max_element(options.width.begin(), options.width.end()) : 0;
  const py::ssize_t hidden = engine.hidden_size();
  const float worst = -std::numeric_limits<float>::infinity();
  py::array_t<int32_t> sids({batch, width, levels}), beams(std::vector<py::ssize_t>{batch});
  py::array_t<float> score({batch, width}), step_score({batch, width, levels}), user_state({batch, hidden});
  std::fill_n(sids.mutable_data(), sids.size(), -1);
  std::fill_n(score.mutable_data(), score.size(), worst);
  std::fill_n(step_score.mutable_data(), step_score.size(), worst);
  for (py::ssize_t b = 0; b < batch; ++b) {
    const DecodeResult& r = slots[b]->result();
    std::copy(r.sids.begin(), r.sids.end(), sids.mutable_data() + b * width * levels);
    std::copy(r.score.begin(), r.score.end(), score.mutable_data() + b * width);
    std::copy(r.step_score.begin(), r.step_score.end(), step_score.mutable_data() + b * width * levels);
    std::copy(r.user_state.begin(), r.user_state.end(), user_state.mutable_data() + b * hidden);
    beams.mutable_data()[b] = r.beams;
  }
  py::dict out;
  out["sids"] = sids;
  out["score"] = score;
  out["step_score"] = step_score;
  out["user_state"] = user_state;
  out["beams"] = beams;
  return out;
}

PyRequest SubmitRequest(const std::shared_ptr<CpuEngine>& engine, const py::object& tokens_in,
                        std::shared_ptr<RecallIndex> index, int beam_width, const std::string& normalize,
                        float temperature, int priority, int64_t deadline_ms) {
  const Array<int32_t> tokens = IntArray<int32_t>(tokens_in, "tokens", 1);
  DecodeRequest request;
  request.prompt.assign(tokens.data(), tokens.data() + tokens.size());
  request.index = std::move(index);
  request.beam.width = beam_width;
  request.beam.normalize = ParseNormalize(normalize);
  request.beam.temperature = temperature;
  request.priority = priority;
  if (deadline_ms > 0) request.deadline = Clock::now() + std::chrono::milliseconds(deadline_ms);
  return PyRequest(engine, std::move(request));
}

py::dict StatsDict(const CpuEngine& engine) {
  const EngineStats s = engine.stats();
  py::dict out;
  out["submitted"] = s.submitted;
  out["completed"] = s.completed;
  out["failed"] = s.failed;
  out["cancelled"] = s.cancelled;
  out["deadline_exceeded"] = s.deadline_exceeded;
  out["rejected"] = s.rejected;
  out["queued"] = s.queued;
  out["running"] = s.running;
  out["steps"] = s.steps;
  out["prefill_tokens"] = s.prefill_tokens;
  out["decode_rows"] = s.decode_rows;
  out["kv_bytes"] = s.kv_bytes;
  out["weight_bytes"] = s.weight_bytes;
  return out;
}

// [{"step": 3, "rows": [{"request": 7, "prefill": True, "level": 0, "rows": 12}, ...]}, ...]
py::list StepLog(CpuEngine& engine) {
  py::list log;
  for (const StepRecord& record : engine.TakeStepLog()) {
    py::list rows;
    for (const StepRecord::Rows& r : record.rows) {
      py::dict row;
      row["request"] = r.request;
      row["prefill"] = r.prefill;
      row["level"] = r.level;
      row["rows"] = r.rows;
      rows.append(row);
    }
    py::dict step;
    step["step"] = record.step;
    step["rows"] = rows;
    log.append(step);
  }
  return log;
}

std::shared_ptr<CpuEngine> Acquire(const py::object& path, const EngineOptions& options,
                                   const std::string& engine) {
  const std::string weights_path = py::module_::import("os").attr("fspath")(path).cast<std::string>();
  Result<std::shared_ptr<Engine>> acquired = [&] {
    py::gil_scoped_release release;
    return AcquireEngine(engine, weights_path, options);
  }();
  ThrowIfError(acquired.status());
  return std::dynamic_pointer_cast<CpuEngine>(acquired.value());
}

py::array_t<float> Forward(CpuEngine& engine, const py::object& tokens_in) {
  const Array<int32_t> array = IntArray<int32_t>(tokens_in, "tokens", 1);
  const std::vector<int32_t> tokens(array.data(), array.data() + array.size());
  Result<std::vector<float>> logits = [&] {
    py::gil_scoped_release release;
    return engine.ForwardLogits(tokens);
  }();
  ThrowIfError(logits.status());
  return ToArray(logits.value(), {static_cast<py::ssize_t>(tokens.size()), engine.weights().config().vocab});
}

}  // namespace

void BindEngine(py::module_& m) {
  py::class_<PyRequest>(m, "Request", "A request in flight.")
      .def_property_readonly("id", &PyRequest::id)
      .def("done", &PyRequest::done)
      .def("cancel", &PyRequest::Cancel)
      .def("result", &PyRequest::ResultWithin, py::arg("timeout_s") = py::none());

  py::class_<CpuEngine, std::shared_ptr<CpuEngine>>(m, "Engine")
      .def(py::init([](const py::object& weights_path, int num_threads, int max_queue, int max_step_rows,
                       int prefill_chunk, int max_prompt_tokens, const std::string& engine) {
             EngineOptions options;
             options.num_threads = num_threads;
             options.max_queue = max_queue;
             options.max_step_rows = max_step_rows;
             options.prefill_chunk = prefill_chunk;
             options.max_prompt_tokens = max_prompt_tokens;
             return Acquire(weights_path, options, engine);
           }),
           py::arg("weights_path"), py::kw_only(), py::arg("num_threads") = 0, py::arg("max_queue") = 256,
           py::arg("max_step_rows") = 512, py::arg("prefill_chunk") = 128,
           py::arg("max_prompt_tokens") = 4096, py::arg("engine") = "cpu")
      .def("decode", &Decode, py::arg("tokens"), py::arg("length"), py::arg("index"), py::kw_only(),
           py::arg("beam_width") = 50, py::arg("normalize") = "level", py::arg("temperature") = 1.0f)
      .def("submit", &SubmitRequest, py::arg("tokens"), py::arg("index"), py::kw_only(),
           py::arg("beam_width") = 50, py::arg("normalize") = "level", py::arg("temperature") = 1.0f,
           py::arg("priority") = 0, py::arg("deadline_ms") = 0)
      .def("forward", &Forward, py::arg("tokens"))
      .def("stats", &StatsDict)
      .def("record_steps", &CpuEngine::RecordSteps, py::arg("on"))
      .def("take_step_log", &StepLog)
      .def(
          "shares_with", [](const CpuEngine& a, const CpuEngine& b) { return &a == &b; }, py::arg("other"))
      .def_property_readonly("hidden_size", &CpuEngine::hidden_size)
      .def_property_readonly("vocab_size", [](const CpuEngine& e) { return e.weights().config().vocab; })
      .def_property_readonly("max_prompt_tokens", &CpuEngine::max_prompt_tokens)
      .def_property_readonly("num_threads", &CpuEngine::num_threads)
      .def_property_readonly("weights_digest", [](const CpuEngine& e) { return e.weights().digest(); })
      .def_property_readonly(
          "level_sizes", [](const CpuEngine& e) { return py::tuple(py::cast(e.sid_space().level_sizes)); })
      .def_property_readonly("sid_space_digest", [](const CpuEngine& e) { return e.sid_space().digest; })
      .def_property_readonly(
          "dtype",
          [](const CpuEngine& e) { return e.weights().dtype() == DType::kF32 ? "float32" : "bfloat16"; })
      .def_property_readonly("isa", [](const CpuEngine& e) { return CpuIsaName(e.isa()); });
}

}  // namespace genrecall
