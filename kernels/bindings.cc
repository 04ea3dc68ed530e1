// The Python module genrecall.kernels._kernels: the core's functions for NumPy. Needs no TensorFlow.
#include "kernels/bindings.h"

namespace genrecall {

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The C++ core of genrecall; import genrecall.kernels instead.";
  m.attr("DataLossError") = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "genrecall.kernels.DataLossError", "A file is truncated, corrupt or not what it says.",
      PyExc_RuntimeError, nullptr));
  m.attr("FailedPreconditionError") = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "genrecall.kernels.FailedPreconditionError", "A file is sound but of another version or SID space.",
      PyExc_RuntimeError, nullptr));
  BindGguf(m);
  BindIndex(m);
  BindPrompt(m);
  BindTopk(m);
  BindNumeric(m);
}

}  // namespace genrecall
