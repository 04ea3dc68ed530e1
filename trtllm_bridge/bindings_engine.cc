// Python door of the engine: blocking decode of a batch, requests in flight, what the engine says of itself.
#include "trtllm_bridge/beam_search.h"
#include "trtllm_bridge/bindings_requests.h"

namespace genrecall {
namespace {

const char* DTypeName(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kBF16 ? "bfloat16" : "int8";
}

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

BeamOptions ToBeamOptions(const CpuEngine& engine, const std::string& normalize, float temperature,
                          uint64_t seed, const std::vector<int32_t>& prefix_caps) {
  BeamOptions beam;
  beam.normalize = ParseNormalize(normalize);
  beam.temperature = temperature;
  beam.seed = seed;
  ThrowIfError(SetPrefixCaps(prefix_caps, static_cast<int>(engine.sid_space().level_sizes.size()), &beam));
  return beam;
}

py::dict Decode(CpuEngine& engine, const py::object& tokens_in, const py::object& length_in,
                std::shared_ptr<RecallIndex> index, const py::object& beam_width,
                const std::string& normalize, float temperature, uint64_t seed,
                const std::vector<int32_t>& prefix_caps, std::vector<std::vector<int64_t>> exclude) {
  const Array<int32_t> tokens = IntArray<int32_t>(tokens_in, "tokens", 2);
  const Array<int32_t> length = IntArray<int32_t>(length_in, "length", 1);
  const py::ssize_t batch = tokens.shape(0);
  if (length.shape(0) != batch) {
    throw py::value_error(Cat("length: expected shape [", batch, "], got ", ShapeString(length)));
  }
  if (!exclude.empty() && static_cast<py::ssize_t>(exclude.size()) != batch) {
    throw py::value_error(
        Cat("exclude: expected one list of items for each of ", batch, " rows, got ", exclude.size()));
  }
  const DecodeOptions options{Widths(beam_width, batch),
                              ToBeamOptions(engine, normalize, temperature, seed, prefix_caps),
                              std::move(exclude)};
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
                        float temperature, int priority, int64_t deadline_ms, uint64_t seed,
                        const std::vector<int32_t>& prefix_caps, std::vector<int64_t> exclude,
                        int stable_prefix) {
  const Array<int32_t> tokens = IntArray<int32_t>(tokens_in, "tokens", 1);
  DecodeRequest request;
  request.prompt.assign(tokens.data(), tokens.data() + tokens.size());
  request.index = std::move(index);
  request.beam = ToBeamOptions(*engine, normalize, temperature, seed, prefix_caps);
  request.beam.width = beam_width;
  request.exclude = std::move(exclude);
  request.priority = priority;
  request.stable_prefix = stable_prefix;
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
  out["prefix_hits"] = s.prefix_hits;
  out["prefix_misses"] = s.prefix_misses;
  out["prefix_hit_tokens"] = s.prefix_hit_tokens;
  out["kv_bytes"] = s.kv_bytes;
  out["kv_cached_bytes"] = s.kv_cached_bytes;
  out["kv_resident_bytes"] = s.kv_resident_bytes;
  out["kv_budget_bytes"] = s.kv_budget_bytes;
  out["kv_evicted_pages"] = s.kv_evicted_pages;
  out["weight_bytes"] = s.weight_bytes;
  out["step_bytes"] = s.step_bytes;
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

// {"attn_norm": float32 [layers, dim], ...}: the largest magnitude of each channel over the prompt's tokens.
py::dict InputMaxima(CpuEngine& engine, const py::object& tokens_in) {
  const Array<int32_t> array = IntArray<int32_t>(tokens_in, "tokens", 1);
  const std::vector<int32_t> tokens(array.data(), array.data() + array.size());
  const DecoderConfig& config = engine.weights().config();
  const bool f32 = engine.weights().dtype() == DType::kF32;
  const int64_t dims[kGemmInputs] = {config.hidden, config.q_dim(), config.hidden, config.ffn};
  std::vector<float> maxima[kGemmInputs];
  for (int i = 0; i < kGemmInputs; ++i) maxima[i].assign(config.layers * dims[i], 0.0f);
  const Status status = [&] {
    py::gil_scoped_release release;
    return engine.ObserveForward(tokens, [&](int layer, GemmInput input, const void* x, int64_t n,
                                             int64_t dim) {
      float* largest = maxima[static_cast<int>(input)].data() + layer * dim;
      for (int64_t i = 0; i < n * dim; ++i) {
        const float value = f32 ? static_cast<const float*>(x)[i] : ToFloat(static_cast<const bf16*>(x)[i]);
        largest[i % dim] = std::max(largest[i % dim], std::abs(value));
      }
    });
  }();
  ThrowIfError(status);
  py::dict out;
  const char* const names[kGemmInputs] = {"attn_norm", "attn_output", "ffn_norm", "ffn_down"};
  for (int i = 0; i < kGemmInputs; ++i) out[names[i]] = ToArray(maxima[i], {config.layers, dims[i]});
  return out;
}

}  // namespace

namespace {

constexpr char kEngineDoc[] = R"(The decoder engine of a weights file.

Engines of the same weights and options in a process are one. Thread-safe; the GIL is released while it works.

Args:
  weights_path: model.gguf, as checkpoint.convert writes it.
  num_threads: 0: GENRECALL_CPU_THREADS, else the CPUs this process may run on, at most its container's quota.
  max_queue: requests that may wait; more are refused with RESOURCE_EXHAUSTED.
  max_step_rows: rows of one step.
  prefill_chunk: rows of one request per step at most, while others of its priority are live.
  max_prompt_tokens: longer prompts are refused.
  kv_bytes: bytes of keys and values, kept prefixes included, of all engines of this number in the process.
    0: GENRECALL_KV_BYTES, else 1 GiB. Requests wait for room; one that never fits is refused.

Raises:
  ValueError, RuntimeError: weights or options that cannot be run; names the tensor, key or option.
  FileNotFoundError; kernels.DataLossError: a damaged file.)";

constexpr char kDecodeDoc[] = R"(Decodes a batch and waits for it. A batch may be larger than the queue.

Args:
  tokens: int32 [B, P], prompts, padded with anything.
  length: int32 [B], tokens of each prompt, 1..P.
  index: RecallIndex of the weights' SID space.
  beam_width: one number or int32 [B], each 1..4096; W is the largest.
  normalize: "level" (softmax over the level's codes), "legal" (over the allowed ones), "vocab" (over all).
  temperature: > 0; logits are divided by it.
  seed: 0: the best beams. Else the seed of a sample of beams without replacement (Gumbel top-k), in the order
    of the draw, from the distribution over legal SIDs.
  prefix_caps: at most L - 1 ints; at most prefix_caps[l] beams share their first l + 1 codes, 0: no cap.
  exclude: B lists of item ids that the row must not get, or none; a SID with no other items gets no beam.

Returns:
  dict: sids int32 [B, W, L] (-1 pads), score float32 [B, W] (-inf pads), step_score float32 [B, W, L],
  user_state float32 [B, D], beams int32 [B] (real beams of each row).

Raises:
  ValueError: names the row, the input and what was expected. RuntimeError: the request failed ("INTERNAL: ...").)";

constexpr char kSubmitDoc[] = R"(Puts one request in flight.

Args:
  tokens: int32 [P], the prompt.
  index, beam_width, normalize, temperature, seed, prefix_caps: as for decode. exclude: item ids.
  priority: higher goes first; -1000 is warm-up's.
  deadline_ms: from now; past it the request ends with DEADLINE_EXCEEDED, or as soon as it cannot be met. 0:
    none.
  stable_prefix: leading tokens that will come again: their whole pages of keys and values are kept.

Returns:
  a Request. What is wrong with the request is raised by its result().)";

constexpr char kResultDoc[] = R"(Waits for the request, without the GIL.

Args:
  timeout_s: seconds; None waits for ever.

Returns:
  dict as decode's without the batch dimension; beams is an int. Also cached_tokens, an int: tokens of the
  prompt that had not to be computed.

Raises:
  TimeoutError: not done yet; the request goes on. ValueError: a bad request. RuntimeError: "CANCELLED: ...",
  "DEADLINE_EXCEEDED: ...", "RESOURCE_EXHAUSTED: ...", "UNAVAILABLE: ...", "INTERNAL: ...".)";

}  // namespace

void BindEngine(py::module_& m) {
  py::class_<PyRequest>(m, "Request", "A request in flight.")
      .def_property_readonly("id", &PyRequest::id)
      .def("done", &PyRequest::done)
      .def("cancel", &PyRequest::Cancel,
           "Ends the request with CANCELLED at the next step, if it is not done.")
      .def("result", &PyRequest::ResultWithin, py::arg("timeout_s") = py::none(), kResultDoc);

  py::class_<CpuEngine, std::shared_ptr<CpuEngine>>(m, "Engine", kEngineDoc)
      .def(
          py::init([](const py::object& weights_path, int num_threads, int max_queue, int max_step_rows,
                      int prefill_chunk, int max_prompt_tokens, int64_t kv_bytes, const std::string& engine) {
            EngineOptions options;
            options.num_threads = num_threads;
            options.max_queue = max_queue;
            options.max_step_rows = max_step_rows;
            options.prefill_chunk = prefill_chunk;
            options.max_prompt_tokens = max_prompt_tokens;
            options.kv_bytes = kv_bytes;
            return Acquire(weights_path, options, engine);
          }),
          py::arg("weights_path"), py::kw_only(), py::arg("num_threads") = 0, py::arg("max_queue") = 256,
          py::arg("max_step_rows") = 512, py::arg("prefill_chunk") = 160, py::arg("max_prompt_tokens") = 4096,
          py::arg("kv_bytes") = 0, py::arg("engine") = "cpu")
      .def("decode", &Decode, py::arg("tokens"), py::arg("length"), py::arg("index"), py::kw_only(),
           py::arg("beam_width") = 50, py::arg("normalize") = "level", py::arg("temperature") = 1.0f,
           py::arg("seed") = 0, py::arg("prefix_caps") = std::vector<int32_t>(),
           py::arg("exclude") = std::vector<std::vector<int64_t>>(), kDecodeDoc)
      .def("submit", &SubmitRequest, py::arg("tokens"), py::arg("index"), py::kw_only(),
           py::arg("beam_width") = 50, py::arg("normalize") = "level", py::arg("temperature") = 1.0f,
           py::arg("priority") = 0, py::arg("deadline_ms") = 0, py::arg("seed") = 0,
           py::arg("prefix_caps") = std::vector<int32_t>(), py::arg("exclude") = std::vector<int64_t>(),
           py::arg("stable_prefix") = 0, kSubmitDoc)
      .def("forward", &Forward, py::arg("tokens"),
           "Logits float32 [T, V] of int32 [T] tokens: one prefill, no trie.")
      .def("input_maxima", &InputMaxima, py::arg("tokens"),
           "The largest magnitude of each channel that enters the layers' gemms, over int32 [T] tokens: dict "
           "of\n"
           "attn_norm, ffn_norm [layers, D], attn_output [layers, q_dim], ffn_down [layers, F], float32.")
      .def("stats", &StatsDict, "Counters since the start, and what is queued, running and held now.")
      .def("record_steps", &CpuEngine::RecordSteps, py::arg("on"), "Keeps a log of steps, or forgets it.")
      .def("take_step_log", &StepLog,
           "The steps since the last call: [{step, rows: [{request, prefill, level, rows}]}].")
      .def(
          "shares_with", [](const CpuEngine& a, const CpuEngine& b) { return &a == &b; }, py::arg("other"))
      .def(
          "shares_weights_with",
          [](const CpuEngine& a, const CpuEngine& b) { return &a.weights() == &b.weights(); },
          py::arg("other"))
      .def_property_readonly("hidden_size", &CpuEngine::hidden_size)
      .def_property_readonly("vocab_size", [](const CpuEngine& e) { return e.weights().config().vocab; })
      .def_property_readonly("max_prompt_tokens", &CpuEngine::max_prompt_tokens)
      .def_property_readonly("num_threads", &CpuEngine::num_threads)
      .def_property_readonly("weights_digest", [](const CpuEngine& e) { return e.weights().digest(); })
      .def_property_readonly(
          "level_sizes", [](const CpuEngine& e) { return py::tuple(py::cast(e.sid_space().level_sizes)); })
      .def_property_readonly("sid_space_digest", [](const CpuEngine& e) { return e.sid_space().digest; })
      .def_property_readonly(
          "dtype", [](const CpuEngine& e) { return DTypeName(e.weights().dtype()); },
          "of all that is not int8: float32 | bfloat16")
      .def_property_readonly(
          "kv_dtype", [](const CpuEngine& e) { return DTypeName(e.weights().kv_dtype()); },
          "of keys and values: float32 | bfloat16 | int8")
      .def_property_readonly(
          "quantization", [](const CpuEngine& e) { return QuantizationName(e.weights().quantization()); },
          "none | w8 | w8a8")
      .def_property_readonly("isa", [](const CpuEngine& e) { return CpuIsaName(e.isa()); });
}

}  // namespace genrecall
