// exp and SiLU for results that are stored as bf16, over the vectors of a simd_*.h, which the including file
// has included before it: half the operations, an error well below bf16's own 2^-8, no division. They are
// made of operations that every machine rounds alike, so that one ISA's answers are the same everywhere.
#ifndef GENRECALL_KERNELS_BF16_MATH_SIMD_H_
#define GENRECALL_KERNELS_BF16_MATH_SIMD_H_

namespace genrecall {
namespace {

constexpr float kExp2Limit = 126.0f;

// 2^t within 2^-18 of it, |t| <= kExp2Limit; NaN stays NaN.
[[maybe_unused]] inline Vec Exp2ForBf16(Vec t) {
  // Adding 1.5 * 2^23 leaves the nearest integer n in the low mantissa bits; 127 more make it an exponent.
  const Vec shift = Set1(12582912.0f + 127.0f);
  const Vec shifted = Add(t, shift);
  const Vec f = Sub(t, Sub(shifted, shift));
  Vec p = Set1(kExp2Poly[0]);
  for (int i = 1; i < 5; ++i) p = Fma(p, f, Set1(kExp2Poly[i]));
  return Mul(p, ShiftToExponent(shifted));
}

// x / (1 + e^-x) within 2^-14 of it for |x| <= 86. Beyond, x times the factor of 86.99 or -86.99: 1 and
// 10^-38. NaN stays NaN.
[[maybe_unused]] inline Vec SiluForBf16(Vec x) {
  const Vec t = ClampMagnitude(Mul(x, Set1(-kLog2e)), Set1(kExp2Limit - 0.5f));
  const Vec d = Add(Exp2ForBf16(t), Set1(1.0f));
  const Vec y = BitsLess(kReciprocalBits, d), e = NegFma(d, y, Set1(1.0f));
  const Vec p = Fma(Fma(Set1(kReciprocalPoly[0]), e, Set1(kReciprocalPoly[1])), e, Set1(kReciprocalPoly[2]));
  return Mul(x, Mul(y, p));
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_BF16_MATH_SIMD_H_
