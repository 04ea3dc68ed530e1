// What becomes of a gemm's results in tiles: sums in rows for the common epilogue, or SwiGLU where they lie.
#ifndef GENRECALL_KERNELS_AMX_RESULTS_H_
#define GENRECALL_KERNELS_AMX_RESULTS_H_

#include "kernels/amx_bf16.h"
#include "kernels/amx_tile.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/gemm_epilogue_simd.h"

namespace genrecall {
namespace {

constexpr int kSumsStride = 2 * kTileDim;

// A tile of results -> sums[row][0..16): floats [outputs, rows].
inline void StoreResultTransposed(const float* c, float* sums) {
  Vec v[kTileDim];
  for (int i = 0; i < kTileDim; ++i) v[i] = Load(c + i * kTileDim);
  Transpose(v);
  for (int i = 0; i < kTileDim; ++i) Store(sums + i * kSumsStride, v[i]);
}

// The same of int32 [rows, outputs].
inline void StoreInt32Result(const float* c, float* sums) {
  for (int r = 0; r < kTileDim; ++r) {
    Store(sums + r * kSumsStride, _mm512_cvtepi32_ps(_mm512_loadu_si512(c + r * kTileDim)));
  }
}

// Rows of outputs from their pairs, [8 pairs of outputs, 16 rows] bf16: `count` outputs of `rows` rows.
inline void StoreTransposed(Vec (&pairs)[kTileDim / 2], int64_t rows, int count, bf16* y, int64_t ldy) {
  TransposeFours(pairs);
  const auto store = [&](int row, __m512i v) {
    if (row < rows) _mm256_mask_storeu_epi16(y + row * ldy, FirstLanes(count), _mm512_castsi512_si256(v));
    if (row + 4 < rows) {
      _mm256_mask_storeu_epi16(y + (row + 4) * ldy, FirstLanes(count), _mm512_extracti64x4_epi64(v, 1));
    }
  };
  // 128-bit lanes 0 and 1, then 2 and 3, of two vectors that hold halves of four rows each.
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_castps_si512(pairs[c]), b = _mm512_castps_si512(pairs[4 + c]);
    store(c, _mm512_permutex2var_epi64(a, low, b));
    store(8 + c, _mm512_permutex2var_epi64(a, high, b));
  }
}

// SwiGLU of results of bf16 tiles, [16 outputs, 16 rows]: a vector holds one output's rows. So only what
// comes of it is transposed, and as bf16: a quarter of the shuffles.
inline void FinishSwiGlu(const GemmArgs& args, const float* gate, const float* up, int64_t row, int64_t first,
                         int count) {
  const int64_t half = args.w.rows / 2;
  const auto output = [&](const float* c, int i, int64_t column) {
    Vec sum = Load(c + i * kTileDim);
    if (args.w.scale != nullptr) sum = Mul(sum, Set1(args.w.scale[column + i]));
    return args.bias == nullptr ? sum : Add(sum, Set1(args.bias[column + i]));
  };
  const auto swiglu = [&](int i) {
    if (i >= count) return Zero();
    return Mul(SiluForBf16(output(gate, i, first)), output(up, i, half + first));
  };
  Vec pairs[kTileDim / 2];
  for (int i = 0; i < kTileDim; i += 2) {
    pairs[i / 2] = _mm512_castsi512_ps(PairOfBf16(swiglu(i), swiglu(i + 1)));
  }
  StoreTransposed(pairs, args.n - row, count, static_cast<bf16*>(args.y_t) + row * half + first, half);
}

// Results of two tiles' outputs, `count` columns from `first` on, and of up to two blocks of 16 rows from
// `row` on: tiles [of outputs][of rows], or the first of each.
struct TileResults {
  float (*c)[kTileFloats];  // [4]
  int64_t row, first;
  int count;
};

// Their epilogue. Tiles: see gemm_amx.cc. x_scale [n]: of quantised rows, else null.
template <typename Tiles>
void FinishTiles(const GemmArgs& args, const float* x_scale, const TileResults& results) {
  const auto [c, row, first, count] = results;
  const int64_t rows = args.n - row < 2 * kTileDim ? args.n - row : 2 * kTileDim;
  const int blocks = rows > kTileDim ? 2 : 1, tiles = count > kTileDim ? 2 : 1;
  if (args.epilogue == Epilogue::kSwiGlu && Tiles::kOutputsFirst) {
    for (int b = 0; b < blocks; ++b) FinishSwiGlu(args, c[b], c[2 + b], row + b * kTileDim, first, count);
    return;
  }
  alignas(64) float sums[2 * kTileDim * kSumsStride];
  for (int b = 0; b < blocks; ++b) {
    float* block = sums + b * kTileDim * kSumsStride;
    Tiles::StoreResult(c[b], block);
    if (tiles > 1 || args.epilogue == Epilogue::kSwiGlu) Tiles::StoreResult(c[2 + b], block + kTileDim);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float scale = x_scale == nullptr ? 1.0f : x_scale[row + i];
    Finish(args, row + i, scale, first, count, sums + i * kSumsStride, sums + i * kSumsStride + kTileDim);
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_AMX_RESULTS_H_
