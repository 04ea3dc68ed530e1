// Vectors of floats to pairs of bf16, as tiles take them: by AVX512_BF16, which every machine with AMX has,
// or, compiled without it (tests/test_amx_emulation.py), by AVX-512 alone. Subnormals become 0, as in tiles.
#ifndef GENRECALL_KERNELS_AMX_BF16_H_
#define GENRECALL_KERNELS_AMX_BF16_H_

#include "kernels/simd_avx512.h"

namespace genrecall {
namespace {

// Lane by lane the nearest bf16 numbers, ties to even: of `even` in the lower halves, of `odd` in the upper.
inline __m512i PairOfBf16(Vec even, Vec odd) {
#if defined(__AVX512BF16__)
  const __m512i order =
      _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                       0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
#else
  const auto flush = [](Vec x) {
    constexpr int kZeroOrSubnormal = 0x26;  // +0, -0, subnormal
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(1u << 31));
    return _mm512_mask_mov_ps(x, _mm512_fpclass_ps_mask(x, kZeroOrSubnormal), _mm512_castsi512_ps(sign));
  };
  return _mm512_or_si512(_mm512_srli_epi32(RoundToBf16(flush(even)), 16), RoundToBf16(flush(odd)));
#endif
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_AMX_BF16_H_
