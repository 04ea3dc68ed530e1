// int8 x int8 on AVX-VNNI, the byte products of processors without AVX-512.
#include "kernels/simd_avx2.h"

namespace genrecall {
namespace {

using IntVec = __m256i;
constexpr int kPanelVecs = 2, kTilePanels = 1;
constexpr int kPanelTileRows = 6;  // x 2 vectors: 12 accumulators, 2 operands, 1 broadcast of 16 registers

inline void StoreQuads(uint8_t* to, int64_t stride, Vec x) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(-128));
  _mm_storeu_si32(to, bytes);
  _mm_storeu_si32(to + stride, _mm_shuffle_epi32(bytes, 1));
}

inline IntVec LoadBytes(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline IntVec BroadcastQuad(int32_t quad) { return _mm256_set1_epi32(quad); }
inline IntVec LoadSums(const int32_t* p, int count) { return _mm256_maskload_epi32(p, FirstLanes(count)); }
inline IntVec NegatedBy128(IntVec x) {
  return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(x, 7));
}
inline void StoreSums(float* to, IntVec acc) { Store(to, _mm256_cvtepi32_ps(acc)); }

// Not the intrinsic: see gemm_int8_vnni.cc.
inline IntVec DotStep(IntVec acc, IntVec x, IntVec w) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(w));
  return acc;
}

}  // namespace
}  // namespace genrecall

// What is written over the above.
#include "kernels/gemm_int8_bytes_simd.h"
#include "kernels/gemm_int8_simd.h"

namespace genrecall {

const GemmKernel kAvxVnniInt8Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1,
                                     /*column_grain=*/2 * kPanelOutputs};

}  // namespace genrecall
