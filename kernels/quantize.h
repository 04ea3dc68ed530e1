// Symmetric int8 with one scale per row: x ~ q scale, q = round(x (127 / max |x|)), ties to even. The scalar
// specification, which every ISA computes alike to the bit. Knows no layout.
// `static`: each file has its own copy, so that one compiled for a newer instruction set cannot be linked
// into all.
#ifndef GENRECALL_KERNELS_QUANTIZE_H_
#define GENRECALL_KERNELS_QUANTIZE_H_

#include <cstdint>
#include <cstring>

namespace genrecall {

struct Int8Scale {
  float scale;    // of one step
  float inverse;  // what numbers are multiplied by before they are rounded; 0: all become 0
};

// The scale of numbers of which `largest` is the largest magnitude. Rows below 1e-36 (127 / it must be
// finite) are taken as 0; a NaN or an infinity makes the scale NaN, and so all that the row is multiplied
// with.
static inline Int8Scale Int8ScaleOf(float largest) {
  if (!(largest <= 3.40282347e+38f)) return {__builtin_nanf(""), 0.0f};
  if (largest < 1e-36f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

// The bits of |x|: they order as magnitudes do, infinity after all numbers and NaN after infinity, so that a
// maximum over them loses no NaN in any order.
static inline uint32_t MagnitudeBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffffu;
}

static inline float FromMagnitudeBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

static inline int8_t QuantizeToInt8(float x, Int8Scale scale) {
  if (scale.inverse == 0.0f) return 0;
  constexpr float kRoundToInt =
      12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  return static_cast<int8_t>((x * scale.inverse + kRoundToInt) - kRoundToInt);
}

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_QUANTIZE_H_
