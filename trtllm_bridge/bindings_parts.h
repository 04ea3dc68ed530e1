// The parts of the module _engine, each in bindings_<part>.cc, and what they share.
#ifndef GENRECALL_TRTLLM_BRIDGE_BINDINGS_PARTS_H_
#define GENRECALL_TRTLLM_BRIDGE_BINDINGS_PARTS_H_

#include <string>

#include "kernels/bindings.h"
#include "kernels/constrained_topk.h"

namespace genrecall {

void BindEngine(py::module_& m);  // Engine, Request
void BindParts(py::module_& m);   // the beam search and the scheduler alone, for tests

inline Normalize ParseNormalize(const std::string& word) {
  if (word == "level") return Normalize::kLevel;
  if (word == "legal") return Normalize::kLegal;
  if (word == "vocab") return Normalize::kVocab;
  throw py::value_error("normalize = '" + word + "': expected level|legal|vocab");
}

// A result's beams as arrays of the given width: sids [W, L], score [W], step_score [W, L].
template <typename T>
py::array_t<T> ToArray(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  py::array_t<T> out(shape);
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_BINDINGS_PARTS_H_
