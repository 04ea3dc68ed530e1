// Python door of the engine's parts that know no model, for tests against brute force.
#include "trtllm_bridge/bindings_parts.h"

#include <pybind11/functional.h>

#include "trtllm_bridge/beam_search.h"
#include "trtllm_bridge/scheduler.h"
#include "trtllm_bridge/step_cost.h"

namespace genrecall {
namespace {

// logits(level, prefixes int32 [rows, level]) -> float32 [rows, C_level], or a pair of that and
// log_normalizer [rows].
py::dict Search(std::shared_ptr<RecallIndex> index, int beam_width, const py::function& logits_of,
                const std::string& normalize, float temperature, uint64_t seed,
                const std::vector<int32_t>& prefix_caps, const std::vector<int64_t>& exclude) {
  BeamOptions options;
  options.width = beam_width;
  options.normalize = ParseNormalize(normalize);
  options.temperature = temperature;
  options.seed = seed;
  ThrowIfError(SetPrefixCaps(prefix_caps, index->levels(), &options));
  BeamSearch search(index, options, exclude);
  py::list ancestors, live;
  while (!search.done()) {
    const py::ssize_t rows = search.live(), level = search.level();
    live.append(rows);
    py::object answer = logits_of(level, ToArray(search.prefixes(), {rows, level}));
    Array<float> normalizer(std::vector<py::ssize_t>{0});
    if (py::isinstance<py::tuple>(answer)) {
      const py::tuple pair(answer);
      normalizer = FloatArray(pair[1], "log_normalizer", 1);
      answer = pair[0];
    }
    const Array<float> logits = FloatArray(answer, "logits", 2);
    if (logits.shape(0) != rows || logits.shape(1) != index->level_size(level)) {
      throw py::value_error(Cat("logits: got shape ", ShapeString(logits)));
    }
    ThrowIfError(
        search.Advance(logits.data(), logits.shape(1), normalizer.size() ? normalizer.data() : nullptr));
    ancestors.append(ToArray(search.ancestors(), {level + 1, search.live()}));
  }
  DecodeResult result;
  search.Finish(&result);
  const py::ssize_t width = beam_width, levels = index->levels();
  py::dict out;
  out["sids"] = ToArray(result.sids, {width, levels});
  out["score"] = ToArray(result.score, {width});
  out["step_score"] = ToArray(result.step_score, {width, levels});
  out["beams"] = result.beams;
  out["live"] = live;
  out["ancestors"] = ancestors;
  return out;
}

Scheduler::Time Seconds(double s) {
  return Scheduler::Time(
      std::chrono::duration_cast<Scheduler::Time::duration>(std::chrono::duration<double>(s)));
}

void BindScheduler(py::module_& m) {
  py::class_<Scheduler>(m, "Scheduler",
                        "The engine's policy alone. Times are seconds on the test's own clock.")
      .def(py::init([](int max_queue, int max_running, int max_step_rows, int prefill_chunk) {
             return Scheduler({max_queue, max_running, max_step_rows, prefill_chunk});
           }),
           py::kw_only(), py::arg("max_queue") = 256, py::arg("max_running") = 64,
           py::arg("max_step_rows") = 512, py::arg("prefill_chunk") = 160)
      .def(
          "enqueue",
          [](Scheduler& s, uint64_t id, int64_t prompt_rows, int64_t decode_rows, int priority,
             double deadline_s, int passes) {
            Scheduler::Request request;
            request.priority = priority;
            request.prompt_rows = prompt_rows;
            request.decode_rows = decode_rows;
            request.passes = passes;
            if (deadline_s < 1e9) request.deadline = Seconds(deadline_s);
            return s.Enqueue(id, request);
          },
          py::arg("id"), py::arg("prompt_rows"), py::arg("decode_rows") = 0, py::arg("priority") = 0,
          py::arg("deadline_s") = 1e9, py::arg("passes") = 1)
      .def("cancel", &Scheduler::Cancel)
      .def(
          "expire",
          [](Scheduler& s, double now_s, double step_s, double row_s) {
            const Scheduler::StepCost cost{Seconds(step_s).time_since_epoch(),
                                           Seconds(row_s).time_since_epoch()};
            std::vector<std::tuple<uint64_t, int, bool>> ended;
            for (const auto& e : s.Expire(Seconds(now_s), cost)) {
              ended.emplace_back(e.id, static_cast<int>(e.code), e.early);
            }
            return ended;
          },
          py::arg("now_s"), py::arg("step_s") = 0.0, py::arg("row_s") = 0.0)
      .def(
          "plan",
          // admit(id): rows of the prompt that are there already, or None: no room now.
          [](Scheduler& s, const std::function<std::optional<int64_t>(uint64_t)>& admit) {
            std::vector<std::pair<uint64_t, int>> grants;
            const auto rows_there = [&](Scheduler::Id id) {
              return admit ? admit(id).value_or(Scheduler::kNoRoom) : 0;
            };
            for (const auto& g : s.Plan(rows_there)) grants.emplace_back(g.id, g.rows);
            return grants;
          },
          py::arg("admit") = py::none())
      .def("skip_rows", &Scheduler::SkipRows)
      .def("rows_left_in_pass", &Scheduler::rows_left_in_pass)
      .def("begin_pass", &Scheduler::BeginPass)
      .def("remove", &Scheduler::Remove)
      .def_property_readonly_static("max_skipped_steps",
                                    [](const py::object&) { return Scheduler::kMaxSkippedSteps; })
      .def_property_readonly("waiting", &Scheduler::waiting)
      .def_property_readonly("running", &Scheduler::running);
}

void BindStepCost(py::module_& m) {
  py::class_<StepCostMeter>(m, "StepCostMeter", "What a step takes at least; in seconds.")
      .def(py::init<>())
      .def("record", [](StepCostMeter& meter, int64_t rows,
                        double took_s) { meter.Record(rows, Seconds(took_s).time_since_epoch()); })
      .def("doubt", &StepCostMeter::Doubt)
      .def("cost", [](const StepCostMeter& meter) {
        const auto seconds = [](Scheduler::Time::duration d) {
          return std::chrono::duration<double>(d).count();
        };
        const Scheduler::StepCost cost = meter.cost();
        return std::make_pair(seconds(cost.step), seconds(cost.row));
      });
}

}  // namespace

void BindParts(py::module_& m) {
  m.def("beam_search", &Search, py::arg("index"), py::arg("beam_width"), py::arg("logits"), py::kw_only(),
        py::arg("normalize") = "level", py::arg("temperature") = 1.0f, py::arg("seed") = 0,
        py::arg("prefix_caps") = std::vector<int32_t>(), py::arg("exclude") = std::vector<int64_t>());
  BindScheduler(m);
  BindStepCost(m);
}

}  // namespace genrecall
