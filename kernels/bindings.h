// What the Python modules _kernels and _engine share: the bindings' parts, Status -> exception, and checked
// NumPy input.
#ifndef GENRECALL_KERNELS_BINDINGS_H_
#define GENRECALL_KERNELS_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

namespace py = pybind11;

// Any module takes and returns an index as std::shared_ptr<RecallIndex>, and hands it to C++ as
// std::shared_ptr<const RecallIndex>.
using RecallIndexClass = py::class_<RecallIndex, std::shared_ptr<RecallIndex>>;

// Parts of _kernels, each in bindings_<part>.cc.
void BindIndex(py::module_& m);
void BindGguf(py::module_& m);
void BindExpand(py::module_& m, RecallIndexClass& type);  // called by BindIndex
void BindPrompt(py::module_& m);
void BindTopk(py::module_& m);
void BindNumeric(py::module_& m);

// RecallIndex is bound with holder std::shared_ptr<RecallIndex>: take and return that type in any module, and
// hand it to C++ as std::shared_ptr<const RecallIndex>.

// ValueError for INVALID_ARGUMENT, FileNotFoundError for NOT_FOUND, genrecall.kernels.DataLossError and
// FailedPreconditionError for theirs, else RuntimeError. Needs the GIL.
[[noreturn]] inline void ThrowStatus(const Status& status) {
  const char* name = nullptr;
  switch (status.code()) {
    case Code::kInvalidArgument:
      throw py::value_error(status.message());
    case Code::kNotFound:
      py::set_error(PyExc_FileNotFoundError, status.message().c_str());
      throw py::error_already_set();
    case Code::kDataLoss:
      name = "DataLossError";
      break;
    case Code::kFailedPrecondition:
      name = "FailedPreconditionError";
      break;
    default:
      throw std::runtime_error(status.message());
  }
  const py::object type = py::module_::import("genrecall.kernels._kernels").attr(name);
  py::set_error(type, status.message().c_str());
  throw py::error_already_set();
}

inline void ThrowIfError(const Status& status) {
  if (!status.ok()) ThrowStatus(status);
}

// The value, or the exception of its Status.
template <typename T>
T ValueOrThrow(Result<T> result) {
  ThrowIfError(result.status());
  return std::move(result.value());
}

// Runs C++ that touches no Python object while other Python threads go on.
template <typename F>
auto WithoutGil(F work) {
  py::gil_scoped_release release;
  return work();
}

// NumPy arrays as bindings take them: C-contiguous, of dtype T.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// "[3, 4]"
inline std::string ShapeString(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    text += (d > 0 ? ", " : "") + std::to_string(array.shape(d));
  }
  return text + "]";
}

// Anything array-like as integers of type T and rank `ndim` (-1: any). ValueError, with the name, for another
// rank, for numbers that are not integers, and for integers that T cannot hold: nothing is cut silently.
template <typename T>
Array<T> IntArray(const py::handle& value, const char* name, py::ssize_t ndim) {
  static_assert(std::is_integral<T>::value, "for integers");
  py::array array = py::module_::import("numpy").attr("asarray")(value);
  if (array.size() == 0) {
    array = array.attr("astype")(py::dtype::of<T>());  // an empty list has dtype float64
  }
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') {
    throw py::value_error(Cat(name, ": expected integers, got dtype ", std::string(py::str(array.dtype()))));
  }
  if (ndim >= 0 && array.ndim() != ndim) {
    throw py::value_error(Cat(name, ": expected rank ", ndim, ", got shape ", ShapeString(array)));
  }
  if (!array.dtype().equal(py::dtype::of<T>()) && array.size() > 0) {
    const py::int_ low(static_cast<long long>(std::numeric_limits<T>::min()));
    const py::int_ high(static_cast<unsigned long long>(std::numeric_limits<T>::max()));
    for (const py::object& extreme : {array.attr("min")(), array.attr("max")()}) {
      const py::int_ number(extreme);
      if (number < low || number > high) {
        throw py::value_error(Cat(name, " has value ", std::string(py::str(number)), ": expected ",
                                  std::string(py::str(low)), "..", std::string(py::str(high))));
      }
    }
  }
  return Array<T>(array);
}

// Anything array-like of numbers as float32 of rank `ndim` (-1: any).
inline Array<float> FloatArray(const py::handle& value, const char* name, py::ssize_t ndim) {
  const py::array array = py::module_::import("numpy").attr("asarray")(value);
  const char kind = array.dtype().kind();
  if (kind != 'f' && kind != 'i' && kind != 'u') {
    throw py::value_error(Cat(name, ": expected numbers, got dtype ", std::string(py::str(array.dtype()))));
  }
  if (ndim >= 0 && array.ndim() != ndim) {
    throw py::value_error(Cat(name, ": expected rank ", ndim, ", got shape ", ShapeString(array)));
  }
  return Array<float>(array);
}

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_BINDINGS_H_
