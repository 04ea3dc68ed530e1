// The core's Status as TensorFlow's.
#ifndef GENRECALL_TF_OPS_STATUS_H_
#define GENRECALL_TF_OPS_STATUS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/status.h"

namespace genrecall {

// Same code (both use the canonical numbers), same message.
inline absl::Status ToAbsl(const Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.code()), status.message());
}

// The same, saying which row of the batch it is about.
inline absl::Status RowError(int64_t row, const Status& status) {
  if (status.ok()) return absl::OkStatus();
  return ToAbsl(Status(status.code(), Cat("row ", row, ": ", status.message())));
}

// The int32 that a row_status tensor carries.
inline int32_t RowStatus(const Status& status) { return static_cast<int32_t>(status.code()); }

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_STATUS_H_
