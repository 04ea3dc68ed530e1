// The gemms on AMX tiles: bf16, int8 weights widened to bf16, and int8 by int8. What has float32 activations
// and multiplies floats goes to AVX-512.
//
// bf16 weights are the tiles' row operand (A), straight from their row-major memory: 16 outputs x 64 bytes of
// k. Activations are packed once per gemm as the other operand (B): 16 four-byte groups of k x 16 rows. So a
// tile of results is [outputs, rows], and is transposed when it is stored. int8 weights lie in panels
// (int8_panels.h), which are B operands as they are; activations are A, 16 rows x 64 k, and results [rows,
// outputs]. Two by two results share each loaded operand.
//
// Order of accumulation: an output is one chain over k in steps of 64 bytes, whatever tiles surround it.
#include "kernels/amx_tile.h"
#include "kernels/gemm.h"
#include "kernels/int8_panels.h"
#include "kernels/scratch.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/gemm_epilogue_simd.h"
#include "kernels/quantize_simd.h"

namespace genrecall {
namespace {

// k that two blocks of packed activations take of the first-level cache (32 KiB) while the weights of a
// column block pass by.
constexpr int64_t kDepthSteps = 16;
constexpr int64_t kPackedStep = kTileDim * kTileDim;  // 32-bit elements of one B tile
constexpr int kBlockRows = 2 * kTileDim, kBlockOutputs = 2 * kTileDim;
constexpr int kSumsStride = kGemmBlock + kBlockOutputs;

// A row-major matrix of weights, from some row on.
struct RowMajor {
  const bf16* data;
  int64_t rows, cols;
};

// Panels of weights, from some panel on.
struct Panels {
  const int8_t* data;
  int64_t cols;
};

// What tiles multiply. kDepth: numbers of k in a step. LoadWeights: of 16 outputs, one step. StoreResult: a
// tile of results -> sums[r][0..16).
struct Bf16Tiles {
  using Weights = RowMajor;
  static constexpr int64_t kDepth = kTileDepth;

  template <int kC, int kW, int kX>
  static inline void Dot() {
    TileDot<kC, kW, kX>();
  }
  template <int kTile>
  static inline void LoadWeights(const RowMajor& w, int64_t output, int64_t step);
  static inline void StoreResult(const float* c, float* sums);
};
struct Int8Tiles {
  using Weights = Panels;
  static constexpr int64_t kDepth = kTileBytes;

  template <int kC, int kW, int kX>
  static inline void Dot() {
    TileDotInt8<kC, kX, kW>();
  }
  template <int kTile>
  static inline void LoadWeights(const Panels& w, int64_t output, int64_t step) {
    const int64_t panel = output / kPanelOutputs * Int8PanelBytes(w.cols);
    TileLoad<kTile>(w.data + panel + step * kPackedStep * 4, kTileBytes);
  }
  static inline void StoreResult(const float* c, float* sums) {
    for (int r = 0; r < kTileDim; ++r) {
      Store(sums + r * kSumsStride, _mm512_cvtepi32_ps(_mm512_loadu_si512(c + r * kTileDim)));
    }
  }
};

template <typename Tiles>
int64_t Steps(int64_t cols) {
  return (cols + Tiles::kDepth - 1) / Tiles::kDepth;
}
int64_t RowBlocks(int64_t n) { return (n + kTileDim - 1) / kTileDim; }

template <typename Tiles>
int64_t PackedRowBytes(const GemmArgs& args) {
  return RowBlocks(args.n) * Steps<Tiles>(args.w.cols) * kPackedStep * 4;
}

bool MultipliesFloat32(const GemmArgs& args) { return args.x_dtype == DType::kF32; }

int64_t PackedBytes(const GemmArgs& args) {
  return MultipliesFloat32(args) ? kAvx512Gemm.packed_bytes(args) : PackedRowBytes<Bf16Tiles>(args);
}

// Sixteen rows x one step -> a B tile: their 32-bit groups of k, transposed.
inline void StorePacked(Vec (&rows)[kTileDim], float* tile) {
  Transpose(rows);
  for (int i = 0; i < kTileDim; ++i) Store(tile + i * kTileDim, rows[i]);
}

// packed: [row blocks, steps, 16 pairs of k, 16 rows] pairs of bf16; rows and k past the end are 0.
void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  if (MultipliesFloat32(args)) return kAvx512Gemm.pack(args, first, last, packed);
  const int64_t cols = args.w.cols, steps = Steps<Bf16Tiles>(cols);
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
      StorePacked(v, block + s * kPackedStep);
    }
  }
}

int64_t Int8PackedBytes(const GemmArgs& args) {
  return PackedRowBytes<Int8Tiles>(args) + args.n * int64_t{sizeof(float)};
}

// packed: [row blocks, steps, 16 rows, 64] int8, then the rows' scales. Rows past the end are left as they
// are: nobody reads what becomes of them.
template <typename T>
void Int8PackOf(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols, steps = Steps<Int8Tiles>(cols), tile = kTileDim * kTileBytes;
  float* scale = reinterpret_cast<float*>(static_cast<char*>(packed) + PackedRowBytes<Int8Tiles>(args));
  for (int64_t r = first; r < last; ++r) {
    int8_t* to = static_cast<int8_t*>(packed) + r / kTileDim * steps * tile + r % kTileDim * kTileBytes;
    const T* x = static_cast<const T*>(args.x) + r * cols;
    const Int8Scale row_scale = RowScale(x, cols);
    scale[r] = row_scale.scale;
    QuantizeRow(x, cols, 0, steps * kTileBytes, row_scale,
                [to, tile](int64_t k, Vec v) { Store(to + k / kTileBytes * tile + k % kTileBytes, v); });
  }
}

void Int8Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const auto pack = args.x_dtype == DType::kF32 ? Int8PackOf<float> : Int8PackOf<bf16>;
  pack(args, first, last, packed);
}

// What lies past the matrix is 0.
template <int kTile>
inline void Bf16Tiles::LoadWeights(const RowMajor& w, int64_t output, int64_t step) {
  const int64_t k = step * kDepth;
  const bf16* data = w.data + output * w.cols + k;
  if (output + kTileDim <= w.rows && k + kDepth <= w.cols) {
    TileLoad<kTile>(data, w.cols * int64_t{sizeof(bf16)});
    return;
  }
  alignas(64) bf16 edge[kTileDim * kDepth] = {};
  for (int64_t r = 0; r < kTileDim && output + r < w.rows; ++r) {
    for (int64_t i = 0; i < kDepth && k + i < w.cols; ++i) edge[r * kDepth + i] = data[r * w.cols + i];
  }
  TileLoad<kTile>(edge, kTileBytes);
}

inline void Bf16Tiles::StoreResult(const float* c, float* sums) {
  Vec v[kTileDim];
  for (int i = 0; i < kTileDim; ++i) v[i] = Load(c + i * kTileDim);
  Transpose(v);
  for (int i = 0; i < kTileDim; ++i) Store(sums + i * kSumsStride, v[i]);
}

// The activations of one or two blocks of 16 rows.
struct PackedRows {
  const float* data;     // [blocks, steps, 16, 16]
  int64_t block_stride;  // floats
};

// c[2 o + r] (+)= weights [row + 16 o, ..] x rows block r over steps [first, last): kOutputs and kRows are 1
// or 2.
template <typename Tiles, int kOutputs, int kRows>
void DotTiles(const typename Tiles::Weights& w, int64_t output, PackedRows x, int64_t first, int64_t last,
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
    Tiles::template LoadWeights<4>(w, output, s);
    TileLoad<6>(x.data + s * kPackedStep, kStride);
    Tiles::template Dot<0, 4, 6>();
    if constexpr (kRows > 1) {
      TileLoad<7>(x.data + x.block_stride + s * kPackedStep, kStride);
      Tiles::template Dot<1, 4, 7>();
    }
    if constexpr (kOutputs > 1) {
      Tiles::template LoadWeights<5>(w, output + kTileDim, s);
      Tiles::template Dot<2, 5, 6>();
    }
    if constexpr (kOutputs > 1 && kRows > 1) Tiles::template Dot<3, 5, 7>();
  }
  TileStore<0>(c[0], kStride);
  if constexpr (kRows > 1) TileStore<1>(c[1], kStride);
  if constexpr (kOutputs > 1) TileStore<2>(c[2], kStride);
  if constexpr (kOutputs > 1 && kRows > 1) TileStore<3>(c[3], kStride);
}

template <typename Tiles>
void DotTiles(int outputs, int rows, const typename Tiles::Weights& w, int64_t output, PackedRows x,
              int64_t first, int64_t last, float (*c)[kTileFloats]) {
  if (outputs > 1) {
    rows > 1 ? DotTiles<Tiles, 2, 2>(w, output, x, first, last, c)
             : DotTiles<Tiles, 2, 1>(w, output, x, first, last, c);
  } else {
    rows > 1 ? DotTiles<Tiles, 1, 2>(w, output, x, first, last, c)
             : DotTiles<Tiles, 1, 1>(w, output, x, first, last, c);
  }
}

// sums[r][o] = row r of x . output o of w, for row_blocks (1, 2) blocks of rows and o in [0, count).
// `depth` steps of k are taken for all outputs before the next ones; the results wait in `tiles`, four for
// every 32 outputs.
template <typename Tiles>
void DotRows(const typename Tiles::Weights& w, int count, PackedRows x, int row_blocks, int64_t depth,
             float (*tiles)[kTileFloats], float* sums) {
  const int64_t steps = Steps<Tiles>(w.cols);
  for (int64_t s = 0; s < steps; s += depth) {
    const int64_t last = s + depth < steps ? s + depth : steps;
    for (int o = 0; o < count; o += kBlockOutputs) {
      const int output_blocks = count - o > kTileDim ? 2 : 1;
      DotTiles<Tiles>(output_blocks, row_blocks, w, o, x, s, last, tiles + o / kBlockOutputs * 4);
    }
  }
  for (int o = 0; o < count; o += kTileDim) {
    const float (*c)[kTileFloats] = tiles + o / kTileDim * 2;
    for (int r = 0; r < row_blocks; ++r) Tiles::StoreResult(c[r], sums + r * kTileDim * kSumsStride + o);
  }
}

// Columns [first, first + count) of all rows; w: their weights, and w_up those of the second half (kSwiGlu),
// each from its own row on. x_scale [n]: of quantised rows, else null.
template <typename Tiles>
void TileColumns(const GemmArgs& args, const typename Tiles::Weights& w, const typename Tiles::Weights& w_up,
                 const float* packed, const float* x_scale, int64_t first, int count) {
  constexpr int kTiles = kGemmBlock / kBlockOutputs * 4;
  constexpr int64_t kSums = int64_t{kBlockRows} * kSumsStride;
  float* scratch = static_cast<float*>(
      ThreadScratch(ScratchArea::kTask, (kTiles * kTileFloats + 2 * kSums) * int64_t{sizeof(float)}));
  float (*tiles)[kTileFloats] = reinterpret_cast<float (*)[kTileFloats]>(scratch);
  float *sums = scratch + kTiles * kTileFloats, *up = sums + kSums;

  TileConfigure();
  const int64_t steps = Steps<Tiles>(args.w.cols), block_stride = steps * kPackedStep,
                blocks = RowBlocks(args.n);
  const int64_t depth = blocks <= 2 ? steps : kDepthSteps;  // few rows: weights are read once, in order
  for (int64_t b = 0; b < blocks; b += 2) {
    const PackedRows x = {packed + b * block_stride, block_stride};
    const int row_blocks = blocks - b > 1 ? 2 : 1;
    DotRows<Tiles>(w, count, x, row_blocks, depth, tiles, sums);
    if (args.epilogue == Epilogue::kSwiGlu) DotRows<Tiles>(w_up, count, x, row_blocks, depth, tiles, up);
    const int64_t row = b * kTileDim, rows = args.n - row < kBlockRows ? args.n - row : kBlockRows;
    for (int64_t i = 0; i < rows; ++i) {
      const float scale = x_scale == nullptr ? 1.0f : x_scale[row + i];
      Finish(args, row + i, scale, first, count, sums + i * kSumsStride, up + i * kSumsStride);
    }
  }
  TileRelease();
}

// count rows of int8 weights as bf16, which holds them exactly.
RowMajor Widen(const WeightMatrix& w, int64_t row, int64_t count, bf16* to) {
  const int8_t* from = static_cast<const int8_t*>(w.data) + row * w.cols;
  const int64_t size = count * w.cols;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(to + i, Load(from + i));
  if (i < size)
    StorePartial(to + i, LoadPartial(from + i, static_cast<int>(size - i)), static_cast<int>(size - i));
  return {to, count, w.cols};
}

// A block of columns is widened once, into the second-level cache, and read from there by all rows.
void WidenedColumns(const GemmArgs& args, const void* packed, int64_t first, int count) {
  const int64_t block = count * args.w.cols;
  bf16* widened = static_cast<bf16*>(ThreadScratch(ScratchArea::kTiles, 2 * block * int64_t{sizeof(bf16)}));
  const bool two = args.epilogue == Epilogue::kSwiGlu;
  const RowMajor w = Widen(args.w, first, count, widened);
  const RowMajor up = two ? Widen(args.w, args.w.rows / 2 + first, count, widened + block) : w;
  TileColumns<Bf16Tiles>(args, w, up, static_cast<const float*>(packed), nullptr, first, count);
}

// The matrix from row `first` on.
RowMajor From(const WeightMatrix& w, int64_t first) {
  return {static_cast<const bf16*>(w.data) + first * w.cols, w.rows - first, w.cols};
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  if (MultipliesFloat32(args)) return kAvx512Gemm.columns(args, packed, first, last);
  const int count = static_cast<int>(last - first);
  if (args.w.dtype == DType::kI8) return WidenedColumns(args, packed, first, count);
  TileColumns<Bf16Tiles>(args, From(args.w, first), From(args.w, args.w.rows / 2 + first),
                         static_cast<const float*>(packed), nullptr, first, count);
}

void Int8Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const auto* scale =
      reinterpret_cast<const float*>(static_cast<const char*>(packed) + PackedRowBytes<Int8Tiles>(args));
  const Panels w = {Int8Panel(args.w, 0, first), args.w.cols};
  const Panels up = args.w.parts > 1 ? Panels{Int8Panel(args.w, 1, first), args.w.cols} : w;
  TileColumns<Int8Tiles>(args, w, up, static_cast<const float*>(packed), scale, first,
                         static_cast<int>(last - first));
}

}  // namespace

const GemmKernel kAmxGemm = {PackedBytes, Pack, Columns, /*pack_grain=*/kTileDim,
                             /*column_grain=*/kBlockOutputs};
const GemmKernel kAmxInt8Gemm = {Int8PackedBytes, Int8Pack, Int8Columns, /*pack_grain=*/1,
                                 /*column_grain=*/kBlockOutputs};

}  // namespace genrecall
