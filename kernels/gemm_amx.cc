// The gemm on AMX tiles, for bf16; float32 goes to AVX-512.
//
// Weights are the tiles' row operand (A), straight from their row-major memory: 16 outputs x 32 numbers of k.
// Activations are packed once per gemm as the other operand (B): 16 pairs of k x 16 rows. So a tile of
// results is [outputs, rows], and is transposed when it is stored. Two by two of them share each loaded
// operand.
//
// Order of accumulation: an output is one chain over k in steps of kTileDepth, whatever tiles surround it.
#include "kernels/amx_tile.h"
#include "kernels/gemm.h"
#include "kernels/scratch.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/gemm_epilogue_simd.h"

namespace genrecall {
namespace {

// k that two blocks of packed activations take of the first-level cache (32 KiB) while the weights of a
// column block pass by.
constexpr int64_t kDepthSteps = 16;
constexpr int64_t kPackedStep = kTileDim * kTileDim;  // 32-bit elements of one B tile
constexpr int kBlockRows = 2 * kTileDim, kBlockOutputs = 2 * kTileDim;
constexpr int kSumsStride = kGemmBlock + kBlockOutputs;

int64_t Steps(int64_t cols) { return (cols + kTileDepth - 1) / kTileDepth; }
int64_t RowBlocks(int64_t n) { return (n + kTileDim - 1) / kTileDim; }

int64_t PackedBytes(const GemmArgs& args) {
  if (args.w.dtype == DType::kF32) return kAvx512Gemm.packed_bytes(args);
  return RowBlocks(args.n) * Steps(args.w.cols) * kPackedStep * 4;
}

// packed: [row blocks, steps, 16 pairs of k, 16 rows] pairs of bf16; rows and k past the end are 0.
void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  if (args.w.dtype == DType::kF32) return kAvx512Gemm.pack(args, first, last, packed);
  const int64_t cols = args.w.cols, steps = Steps(cols);
  for (int64_t r = first; r < last; r += kTileDim) {
    float* block = static_cast<float*>(packed) + r / kTileDim * steps * kPackedStep;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t left = cols - s * kTileDepth;
      const __mmask32 mask = left >= kTileDepth ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      Vec v[kTileDim];
      for (int i = 0; i < kTileDim; ++i) {
        const bf16* x = static_cast<const bf16*>(args.x) + (r + i) * cols + s * kTileDepth;
        v[i] = r + i < args.n ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, x)) : Zero();
      }
      Transpose(v);  // of 32-bit elements: the pairs stay together
      for (int i = 0; i < kTileDim; ++i) Store(block + s * kPackedStep + i * kTileDim, v[i]);
    }
  }
}

// Loads 16 weight rows x 32 numbers of k; what lies past the matrix is 0.
template <int kTile>
inline void LoadWeights(const WeightMatrix& w, int64_t row, int64_t k) {
  const bf16* data = static_cast<const bf16*>(w.data) + row * w.cols + k;
  if (row + kTileDim <= w.rows && k + kTileDepth <= w.cols) {
    TileLoad<kTile>(data, w.cols * 2);
    return;
  }
  alignas(64) bf16 edge[kTileDim * kTileDepth] = {};
  for (int64_t r = 0; r < kTileDim && row + r < w.rows; ++r) {
    for (int64_t i = 0; i < kTileDepth && k + i < w.cols; ++i)
      edge[r * kTileDepth + i] = data[r * w.cols + i];
  }
  TileLoad<kTile>(edge, kTileDepth * 2);
}

// The activations of one or two blocks of 16 rows.
struct PackedRows {
  const float* data;     // [blocks, steps, 16, 16]
  int64_t block_stride;  // floats
};

// c[2 o + r] (+)= weights [row + 16 o, ..] x rows block r over steps [first, last): kOutputs and kRows are 1
// or 2.
template <int kOutputs, int kRows>
void DotTiles(const WeightMatrix& w, int64_t row, PackedRows x, int64_t first, int64_t last,
              float (*c)[kTileFloats]) {
  constexpr int64_t kStride = kTileDim * 4;
  if (first == 0) {
    TileZero<0>();
    if constexpr (kRows > 1) TileZero<1>();
    if constexpr (kOutputs > 1) TileZero<2>();
    if constexpr (kOutputs > 1 && kRows > 1) TileZero<3>();
  } else {
    TileLoad<0>(c[0], kStride);
    if constexpr (kRows > 1) TileLoad<1>(c[1], kStride);
    if constexpr (kOutputs > 1) TileLoad<2>(c[2], kStride);
    if constexpr (kOutputs > 1 && kRows > 1) TileLoad<3>(c[3], kStride);
  }
  for (int64_t s = first; s < last; ++s) {
    LoadWeights<4>(w, row, s * kTileDepth);
    TileLoad<6>(x.data + s * kPackedStep, kStride);
    TileDot<0, 4, 6>();
    if constexpr (kRows > 1) {
      TileLoad<7>(x.data + x.block_stride + s * kPackedStep, kStride);
      TileDot<1, 4, 7>();
    }
    if constexpr (kOutputs > 1) {
      LoadWeights<5>(w, row + kTileDim, s * kTileDepth);
      TileDot<2, 5, 6>();
    }
    if constexpr (kOutputs > 1 && kRows > 1) TileDot<3, 5, 7>();
  }
  TileStore<0>(c[0], kStride);
  if constexpr (kRows > 1) TileStore<1>(c[1], kStride);
  if constexpr (kOutputs > 1) TileStore<2>(c[2], kStride);
  if constexpr (kOutputs > 1 && kRows > 1) TileStore<3>(c[3], kStride);
}

void DotTiles(int outputs, int rows, const WeightMatrix& w, int64_t row, PackedRows x, int64_t first,
              int64_t last, float (*c)[kTileFloats]) {
  if (outputs > 1) {
    rows > 1 ? DotTiles<2, 2>(w, row, x, first, last, c) : DotTiles<2, 1>(w, row, x, first, last, c);
  } else {
    rows > 1 ? DotTiles<1, 2>(w, row, x, first, last, c) : DotTiles<1, 1>(w, row, x, first, last, c);
  }
}

// A result tile [16 outputs, 16 rows] -> sums[r][0..16).
inline void StoreTransposed(const float* c, float* sums) {
  Vec v[kTileDim];
  for (int i = 0; i < kTileDim; ++i) v[i] = Load(c + i * kTileDim);
  Transpose(v);
  for (int i = 0; i < kTileDim; ++i) Store(sums + i * kSumsStride, v[i]);
}

// sums[r][o] = row r of x . weight row `row` + o, for row_blocks (1, 2) blocks of rows and o in [0, count).
// `depth` steps of k are taken for all outputs before the next ones; the results wait in `tiles`, four for
// every 32 outputs.
void DotRows(const WeightMatrix& w, int64_t row, int count, PackedRows x, int row_blocks, int64_t depth,
             float (*tiles)[kTileFloats], float* sums) {
  const int64_t steps = Steps(w.cols);
  for (int64_t s = 0; s < steps; s += depth) {
    const int64_t last = s + depth < steps ? s + depth : steps;
    for (int o = 0; o < count; o += kBlockOutputs) {
      const int output_blocks = count - o > kTileDim ? 2 : 1;
      DotTiles(output_blocks, row_blocks, w, row + o, x, s, last, tiles + o / kBlockOutputs * 4);
    }
  }
  for (int o = 0; o < count; o += kTileDim) {
    const float (*c)[kTileFloats] = tiles + o / kTileDim * 2;
    for (int r = 0; r < row_blocks; ++r) StoreTransposed(c[r], sums + r * kTileDim * kSumsStride + o);
  }
}

void Bf16Columns(const GemmArgs& args, const float* packed, int64_t first, int count) {
  constexpr int kTiles = kGemmBlock / kBlockOutputs * 4;
  constexpr int64_t kSums = int64_t{kBlockRows} * kSumsStride;
  float* scratch = static_cast<float*>(
      ThreadScratch(ScratchArea::kTask, (kTiles * kTileFloats + 2 * kSums) * int64_t{sizeof(float)}));
  float (*tiles)[kTileFloats] = reinterpret_cast<float (*)[kTileFloats]>(scratch);
  float *sums = scratch + kTiles * kTileFloats, *up = sums + kSums;

  const int64_t block_stride = Steps(args.w.cols) * kPackedStep, blocks = RowBlocks(args.n);
  const int64_t depth =
      blocks <= 2 ? Steps(args.w.cols) : kDepthSteps;  // few rows: weights are read once, in order
  for (int64_t b = 0; b < blocks; b += 2) {
    const PackedRows x = {packed + b * block_stride, block_stride};
    const int row_blocks = blocks - b > 1 ? 2 : 1;
    DotRows(args.w, first, count, x, row_blocks, depth, tiles, sums);
    if (args.epilogue == Epilogue::kSwiGlu) {
      DotRows(args.w, args.w.rows / 2 + first, count, x, row_blocks, depth, tiles, up);
    }
    const int64_t row = b * kTileDim, rows = args.n - row < kBlockRows ? args.n - row : kBlockRows;
    for (int64_t i = 0; i < rows; ++i) {
      Finish<bf16>(args, row + i, first, count, sums + i * kSumsStride, up + i * kSumsStride);
    }
  }
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  if (args.w.dtype == DType::kF32) return kAvx512Gemm.columns(args, packed, first, last);
  TileConfigure();
  Bf16Columns(args, static_cast<const float*>(packed), first, static_cast<int>(last - first));
  TileRelease();
}

}  // namespace

const GemmKernel kAmxGemm = {PackedBytes, Pack, Columns, /*pack_grain=*/kTileDim,
                             /*column_grain=*/kBlockOutputs};

}  // namespace genrecall
