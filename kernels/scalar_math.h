// The scalar specification of the functions that every ISA approximates alike.
#ifndef GENRECALL_KERNELS_SCALAR_MATH_H_
#define GENRECALL_KERNELS_SCALAR_MATH_H_

#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"
#include "kernels/exp_constants.h"

namespace genrecall {

// e^x within 2 ulp: 2^n e^r with n = round(x / ln 2), |r| <= ln(2)/2, and a polynomial in r. exp(0) is
// exactly 1, which the online softmax relies on. x < kExpLow (-inf too) gives 0; x is capped at kExpHigh; NaN
// stays NaN.
static inline float Exp(float x) {
  if (x != x) return x;
  if (x < kExpLow) return 0.0f;
  if (x > kExpHigh) x = kExpHigh;
  constexpr float kRoundToInt =
      12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  const float n = (x * kLog2e + kRoundToInt) - kRoundToInt;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = kExpPoly[0];
  for (int i = 1; i < 6; ++i) p = p * r + kExpPoly[i];
  const float y = (p * r * r + r) + 1.0f;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float two_to_n;
  std::memcpy(&two_to_n, &bits, sizeof two_to_n);
  return y * two_to_n;
}

static inline float Silu(float x) { return x / (1.0f + Exp(-x)); }

static inline float Load(float x) { return x; }
static inline float Load(bf16 x) { return ToFloat(x); }
static inline float Load(int8_t x) { return static_cast<float>(x); }
static inline void Store(float x, float* y) { *y = x; }
static inline void Store(float x, bf16* y) { *y = ToBf16(x); }

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_SCALAR_MATH_H_
