#include "kernels/bindings.h"

namespace genrecall {

void BindNumeric(py::module_&) {}

}  // namespace genrecall
