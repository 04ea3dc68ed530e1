#include "kernels/bindings.h"

namespace genrecall {

void BindPrompt(py::module_&) {}

}  // namespace genrecall
