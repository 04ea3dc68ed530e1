// The Python module genrecall.trtllm_bridge._engine: the engine for NumPy. Needs no TensorFlow.
#include "kernels/bindings.h"

#include "trtllm_bridge/bindings_parts.h"

namespace genrecall {

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The decoder engine of genrecall; import genrecall.trtllm_bridge instead.";
  py::module_::import("genrecall.kernels._kernels");  // registers RecallIndex and the exceptions
  BindEngine(m);
  BindParts(m);
}

}  // namespace genrecall
