// The dtypes of weights, activations and keys/values, and the bf16 conversions (round to nearest even).
// `static`: each file has its own copy, so that one compiled for a newer instruction set cannot be linked
// into all.
#ifndef GENRECALL_KERNELS_DTYPE_H_
#define GENRECALL_KERNELS_DTYPE_H_

#include <cstdint>
#include <cstring>

namespace genrecall {

// kI8 numbers mean something only with the scale that lies beside them.
enum class DType : int { kF32 = 0, kBF16 = 1, kI8 = 2 };

static inline int DTypeSize(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kBF16 ? 2 : 1; }

// A bf16 number: the upper half of a float32. A plain struct, so that it may be read straight from a file.
struct bf16 {
  uint16_t bits;
};

static inline float ToFloat(bf16 x) {
  uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

// Round to nearest, ties to even; NaN stays NaN (quieted).
static inline bf16 ToBf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  u += 0x7fffu + ((u >> 16) & 1u);
  return bf16{static_cast<uint16_t>(u >> 16)};
}

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_DTYPE_H_
