// Constants of the polynomial exp (Cephes' expf), shared by all ISAs so that they agree to an ulp or two, and
// of the coarser one behind results that are stored as bf16.
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

// 2^f = p[0] f^4 + ... + p[4] within 2^-18.5 of it, |f| <= 1/2. These and the next are minimax in the
// relative error (Lawson's algorithm).
inline constexpr float kExp2Poly[5] = {9.5701000e-3f, 5.5917860e-2f, 2.4024745e-1f, 6.9312181e-1f,
                                       9.9999926e-1f};
// 1 / d, 0 < d finite: y = the float whose bits are kReciprocalBits less those of d, within 5.06 % of it;
// then y (p[0] e^2 + p[1] e + p[2]) with e = 1 - d y, within 2^-14.9.
inline constexpr int kReciprocalBits = 0x7ef31000;
inline constexpr float kReciprocalPoly[3] = {1.0020157f, 1.0019168f, 9.9999994e-1f};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_EXP_CONSTANTS_H_
