// int8 x int8 on AVX-512 VNNI.
#include "kernels/simd_avx512.h"

namespace genrecall {
namespace {

using IntVec = __m512i;
constexpr int kPanelVecs = 1, kTilePanels = 2;
constexpr int kPanelTileRows = 12;  // x 2 panels: 24 accumulators, 2 operands, 1 broadcast of 32 registers

inline void StoreQuads(uint8_t* to, int64_t stride, Vec x) {
  const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)), _mm_set1_epi8(-128));
  _mm_storeu_si32(to, bytes);
  _mm_storeu_si32(to + stride, _mm_shuffle_epi32(bytes, 1));
  _mm_storeu_si32(to + 2 * stride, _mm_shuffle_epi32(bytes, 2));
  _mm_storeu_si32(to + 3 * stride, _mm_shuffle_epi32(bytes, 3));
}

inline IntVec LoadBytes(const int8_t* p) { return _mm512_load_si512(p); }
inline IntVec BroadcastQuad(int32_t quad) { return _mm512_set1_epi32(quad); }
inline IntVec LoadSums(const int32_t* p, int count) { return _mm512_maskz_loadu_epi32(FirstLanes(count), p); }
inline IntVec NegatedBy128(IntVec x) {
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(x, 7));
}
inline void StoreSums(float* to, IntVec acc) { Store(to, _mm512_cvtepi32_ps(acc)); }

// Not the intrinsic: GCC 12 takes it for a call that may read memory, and stores all accumulators before
// each.
inline IntVec DotStep(IntVec acc, IntVec x, IntVec w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
  return acc;
}

}  // namespace
}  // namespace genrecall

// What is written over the above.
#include "kernels/gemm_int8_bytes_simd.h"
#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kVnniInt8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1,
                                  /*column_grain=*/2 * kPanelOutputs};

}  // namespace genrecall
