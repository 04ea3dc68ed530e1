// Status and Result<T>: how every C++ function of genrecall reports failure. Knows no TensorFlow, no Python.
//
// Codes are the canonical gRPC / absl numbers, so a door converts by a cast:
//   TensorFlow: absl::Status(static_cast<absl::StatusCode>(s.code()), s.message())
//   Python:     ValueError for kInvalidArgument, RuntimeError (or a named subclass) otherwise.
// Messages name the input, its value and what was expected: "behavior_length[3] = 41: expected 0..T = 40".
#ifndef GENRECALL_KERNELS_STATUS_H_
#define GENRECALL_KERNELS_STATUS_H_

#include <sstream>
#include <string>
#include <utility>

namespace genrecall {

enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// Joins its arguments as operator<< prints them.
template <typename... Args>
std::string Cat(const Args&... args) {
  std::ostringstream out;
  (void)(out << ... << args);
  return out.str();
}

template <typename... Args>
Status InvalidArgument(const Args&... args) {
  return Status(Code::kInvalidArgument, Cat(args...));
}

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: status must not be OK
  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() { return value_; }
  const T& value() const { return value_; }

 private:
  Status status_;
  T value_{};
};

}  // namespace genrecall

#define GENRECALL_RETURN_IF_ERROR(expr)                    \
  do {                                                     \
    ::genrecall::Status genrecall_status_ = (expr);        \
    if (!genrecall_status_.ok()) return genrecall_status_; \
  } while (0)

#endif  // GENRECALL_KERNELS_STATUS_H_
