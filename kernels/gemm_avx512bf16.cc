// The gemm of bf16 by bf16 on AVX512_BF16, whose instruction multiplies pairs: twice the products a cycle of
// what widening gives, and activations are read as they are. What multiplies anything else goes to AVX-512.
//
// Order of accumulation: step by step along k an output's accumulator takes the odd products of 32 numbers,
// then the even ones, as the instruction does; it reads and leaves subnormals as zero.
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/gemm_tile_simd.h"

namespace genrecall {
namespace {

constexpr int64_t kStep = 2 * kLanes;

inline Vec DotStep(Vec acc, __m512i x, __m512i w) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
}

struct Bf16Dot {
  using Weight = bf16;
  using Input = bf16;
  using Acc = Vec;
  static constexpr int64_t kDepth = 1536;  // leaves a cache of 32 KiB room for weights
  static void Finish(const Vec (&acc)[kTileVecs], float* sums) { SumTile(acc, sums); }

  template <int kRows, Ahead kAhead>
  static inline void Accumulate(const bf16* x, int64_t stride, const WeightTile<bf16>& w, int64_t cols,
                                Vec (&acc)[kRows][kTileVecs]) {
    __m512i b[kTileVecs];
    int64_t k = 0;
    for (; k + kStep <= cols; k += kStep) {
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) {
        b[c] = _mm512_loadu_si512(w.data + c * w.stride + k);
        Prefetch<kAhead>(w.next + c * w.stride + k);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i a = _mm512_loadu_si512(x + r * stride + k);
#pragma GCC unroll 8
        for (int c = 0; c < kTileVecs; ++c) acc[r][c] = DotStep(acc[r][c], a, b[c]);
      }
    }
    const int left = static_cast<int>(cols - k);
    if (left == 0) return;
    const __mmask32 mask = (__mmask32{1} << left) - 1;
#pragma GCC unroll 8
    for (int c = 0; c < kTileVecs; ++c) b[c] = _mm512_maskz_loadu_epi16(mask, w.data + c * w.stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_maskz_loadu_epi16(mask, x + r * stride + k);
#pragma GCC unroll 8
      for (int c = 0; c < kTileVecs; ++c) acc[r][c] = DotStep(acc[r][c], a, b[c]);
    }
  }
};

bool MultipliesBf16(const GemmArgs& args) {
  return args.x_dtype == DType::kBF16 && args.w.dtype == DType::kBF16;
}

int64_t PackedBytes(const GemmArgs& args) {
  return MultipliesBf16(args) ? 0 : kAvx512Gemm.packed_bytes(args);
}

void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  kAvx512Gemm.pack(args, first, last, packed);
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  if (!MultipliesBf16(args)) return kAvx512Gemm.columns(args, packed, first, last);
  ColumnsOf<Bf16Dot>(args, {static_cast<const bf16*>(args.x), args.w.cols}, first, last);
}

}  // namespace

const GemmKernel kAvx512Bf16Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1, /*column_grain=*/kTileVecs};

}  // namespace genrecall
