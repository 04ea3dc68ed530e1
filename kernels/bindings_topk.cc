// Python door of the constrained top-k: for tests, and for training code that searches without an engine.
#include "kernels/bindings.h"
#include "kernels/constrained_topk.h"

namespace genrecall {

namespace {

Normalize ParseNormalize(const std::string& name) {
  if (name == "level") return Normalize::kLevel;
  if (name == "legal") return Normalize::kLegal;
  if (name == "vocab") return Normalize::kVocab;
  throw py::value_error(Cat("normalize = '", name, "': expected level, legal or vocab"));
}

template <typename T>
py::array_t<T> ToArray(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict ConstrainedTopkArrays(std::shared_ptr<RecallIndex> index, int level, const py::object& node,
                               const py::object& beam_score, const py::object& logits, int width,
                               const std::string& normalize, const py::object& log_normalizer,
                               float temperature) {
  const auto nodes = IntArray<uint32_t>(node, "node", 1);
  const auto scores = FloatArray(beam_score, "beam_score", 1);
  const auto values = FloatArray(logits, "logits", 2);
  Array<float> normalizers;
  TopkArgs args;
  args.index = index.get();
  args.level = level;
  args.rows = static_cast<int>(nodes.shape(0));
  args.node = nodes.data();
  args.beam_score = scores.data();
  args.logits = values.data();
  args.stride = values.shape(1);
  args.normalize = ParseNormalize(normalize);
  args.temperature = temperature;
  args.width = width;
  if (level < 0 || level >= index->levels()) {
    throw py::value_error(Cat("level = ", level, ": expected 0..", index->levels() - 1));
  }
  if (scores.shape(0) != args.rows) {
    throw py::value_error(Cat("beam_score has shape ", ShapeString(scores), ": expected [", args.rows, "]"));
  }
  if (values.shape(0) != args.rows || values.shape(1) != index->level_size(level)) {
    throw py::value_error(Cat("logits has shape ", ShapeString(values), ": expected [", args.rows, ", ",
                              index->level_size(level), "]"));
  }
  if (!log_normalizer.is_none()) {
    normalizers = FloatArray(log_normalizer, "log_normalizer", 1);
    if (normalizers.shape(0) != args.rows) {
      throw py::value_error(
          Cat("log_normalizer has shape ", ShapeString(normalizers), ": expected [", args.rows, "]"));
    }
    args.log_normalizer = normalizers.data();
  }
  TopkBeams beams;
  Status status;
  {
    py::gil_scoped_release release;
    status = ConstrainedTopk(args, &beams);
  }
  ThrowIfError(status);
  py::dict out;
  out["parent"] = ToArray(beams.parent);
  out["code"] = ToArray(beams.code);
  out["node"] = ToArray(beams.node);
  out["score"] = ToArray(beams.score);
  out["step_score"] = ToArray(beams.step_score);
  return out;
}

}  // namespace

void BindTopk(py::module_& m) {
  m.def(
      "constrained_topk", &ConstrainedTopkArrays, py::arg("index"), py::arg("level"), py::arg("node"),
      py::arg("beam_score"), py::arg("logits"), py::arg("width"), py::arg("normalize") = "level",
      py::arg("log_normalizer") = py::none(), py::arg("temperature") = 1.0f,
      R"(One step of trie-constrained beam search: the best (beam, allowed child) pairs by summed log-probability.

Args:
  index: the RecallIndex whose trie constrains.
  level: trie level being expanded, 0..L-1; C is its size.
  node: uint32 [rows], distinct nodes of `level`, one per live beam.
  beam_score: float32 [rows], sums so far.
  logits: float32 [rows, C]; -inf ranks last.
  width: W >= 1.
  normalize: "level" (softmax over C), "legal" (over the node's children), "vocab" (by log_normalizer).
  log_normalizer: float32 [rows], for "vocab": log-sum-exp of logits / temperature over the whole vocabulary.
  temperature: > 0; logits are divided by it first.

Returns:
  dict of arrays [min(W, candidates)], best first, ties to the smaller node: parent int32 (row), code int32, node uint32
  (of level + 1), score float32, step_score float32.

Raises:
  ValueError: arguments out of bounds. RuntimeError: a NaN or +inf logit, with row and code.)");
}

}  // namespace genrecall
