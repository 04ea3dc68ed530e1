// Constants of the polynomial exp (Cephes' expf), shared by all ISAs so that they agree to an ulp or two.
#ifndef GENRECALL_KERNELS_EXP_CONSTANTS_H_
#define GENRECALL_KERNELS_EXP_CONSTANTS_H_

namespace genrecall {

inline constexpr float kExpLow = -87.3365f;   // below: 0 (the result would be subnormal)
inline constexpr float kExpHigh = 88.37626f;  // above: capped, so that 2^n stays finite
inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kLn2High = 0.693359375f;  // few bits: n * kLn2High is exact
inline constexpr float kLn2Low = -2.12194440e-4f;
// e^r = 1 + r + r^2 (p[0] r^5 + ... + p[5]).
inline constexpr float kExpPoly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                      4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_EXP_CONSTANTS_H_
