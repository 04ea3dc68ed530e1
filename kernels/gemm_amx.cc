// The gemms on AMX tiles: bf16, int8 weights widened to bf16, and int8 by int8. What has float32 activations
// and multiplies floats goes to AVX-512.
//
// bf16 weights are the tiles' row operand (A), straight from their row-major memory: 16 outputs x 64 bytes of
// k. Activations are packed once per gemm as the other operand (B): 16 four-byte groups of k x 16 rows. So a
// tile of results is [outputs, rows], and is transposed when it is stored. int8 weights lie in panels
// (int8_panels.h), which are B operands as they are; activations are A, 16 rows x 64 k, and results [rows,
// outputs]. Two by two results share each loaded operand.
//
// All rows pass by two tiles' outputs before the next ones, and share in fetching those from memory
// meanwhile: multiplying a prompt takes about as long as reading the weights. Two tiles of activations are
// read for every four products, so they must come from the second-level cache: many long rows pass piece by
// piece, each by a whole group of columns. Of more than 32 rows, epilogues run in the shadow of the tiles
// that follow.
//
// Order of accumulation: an output is one chain over k in steps of 64 bytes, whatever tiles surround it.
#include "kernels/amx_results.h"
#include "kernels/amx_tile.h"
#include "kernels/gemm.h"
#include "kernels/int8_panels.h"
#include "kernels/scratch.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/quantize_simd.h"

namespace genrecall {
namespace {

// Of k: so much that the weights of two tiles' outputs (32 KiB) stay in the first-level cache (48 KiB on
// Sapphire Rapids) while all rows pass by.
constexpr int64_t kDepthSteps = 16;
// Where activations are larger than this, so much of their k that it stays in the second-level cache (2 MiB)
// while a group of columns passes by, of which there are so many that their results take half as much; of
// more than 1,024 rows one step of depth and one block pass at least.
constexpr int64_t kNearBytes = 1 << 20;
constexpr int64_t kPackedStep = kTileDim * kTileDim;  // 32-bit elements of one B tile
constexpr int64_t kTileLines = kTileDim;              // cache lines of the weights a tile reads in a step

// 16 outputs of a row-major matrix, or `rows` < 16 where it ends.
struct RowMajor {
  const bf16* data;
  int64_t rows, cols;
};

// A panel of weights (int8_panels.h).
struct Panel {
  const int8_t* data;
};

// Where a tile's weights lie: bytes from one tile to the next, from a line of a step to the next, and from a
// step to the next.
struct WeightLines {
  int64_t tile, line, step;
};

// What tiles multiply. kDepth: numbers of k in a step. kOutputsFirst: results are [outputs, rows], else
// [rows, outputs]. Lines: of a matrix with so many columns, in order or step by step. LoadWeights: one step.
// StoreResult: a tile of results -> sums[r][0..16).
struct Bf16Tiles {
  using Weights = RowMajor;
  static constexpr int64_t kDepth = kTileDepth;
  static constexpr bool kOutputsFirst = true;

  static WeightLines Lines(int64_t cols, bool in_order) {
    const int64_t row = cols * int64_t{sizeof(bf16)};
    return in_order ? WeightLines{kTileDim * row, kTileBytes, kTileDim * kTileBytes}
                    : WeightLines{kTileDim * row, row, kTileBytes};
  }

  template <int kC, int kW, int kX>
  static inline void Dot() {
    TileDot<kC, kW, kX>();
  }
  template <int kTile>
  static inline void LoadWeights(const RowMajor& w, int64_t step);
  static inline void StoreResult(const float* c, float* sums) { StoreResultTransposed(c, sums); }
};
struct Int8Tiles {
  using Weights = Panel;
  static constexpr int64_t kDepth = kTileBytes;
  static constexpr bool kOutputsFirst = false;

  static WeightLines Lines(int64_t cols, bool /*in_order*/) {  // they are the same
    constexpr int64_t kStep = kTileDim * kTileBytes;
    return {(cols + kDepth - 1) / kDepth * kStep, kTileBytes, kStep};
  }

  template <int kC, int kW, int kX>
  static inline void Dot() {
    TileDotInt8<kC, kX, kW>();
  }
  template <int kTile>
  static inline void LoadWeights(const Panel& w, int64_t step) {
    TileLoad<kTile>(w.data + step * kPackedStep * 4, kTileBytes);
  }
  static inline void StoreResult(const float* c, float* sums) { StoreInt32Result(c, sums); }
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
inline void Bf16Tiles::LoadWeights(const RowMajor& w, int64_t step) {
  const int64_t k = step * kDepth;
  if (w.rows >= kTileDim && k + kDepth <= w.cols) {
    TileLoad<kTile>(w.data + k, w.cols * int64_t{sizeof(bf16)});
    return;
  }
  alignas(64) bf16 edge[kTileDim * kDepth] = {};
  for (int64_t r = 0; r < kTileDim && r < w.rows; ++r) {
    for (int64_t i = 0; i < kDepth && k + i < w.cols; ++i) edge[r * kDepth + i] = w.data[r * w.cols + k + i];
  }
  TileLoad<kTile>(edge, kTileBytes);
}

// The activations of one or two blocks of 16 rows.
struct PackedRows {
  const float* data;     // [blocks, steps, 16, 16]
  int64_t block_stride;  // floats
};

// Two tiles' outputs of a matrix, or one. They fetch the weights `ahead` bytes behind their own, line by
// line: of each step's kTileLines those from `line` on, `lines` of them.
template <typename Tiles>
struct TileOutputs {
  typename Tiles::Weights w[2];
  int tiles;
  WeightLines layout;
  int64_t ahead, line = 0, lines;

  inline void FetchAhead(int tile, int64_t step) const {
    const char* next =
        reinterpret_cast<const char*>(w[tile].data) + ahead + step * layout.step + line * layout.line;
    for (int64_t i = 0; i < lines && line + i < kTileLines; ++i) PrefetchFar(next + i * layout.line);
  }
};

// c[2 o + r] (+)= tile o's outputs x rows block r over steps [first, last): kOutputs and kRows are 1 or 2.
template <typename Tiles, int kOutputs, int kRows>
void DotTiles(const TileOutputs<Tiles>& outputs, PackedRows x, int64_t first, int64_t last,
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
    Tiles::template LoadWeights<4>(outputs.w[0], s);
    outputs.FetchAhead(0, s);
    TileLoad<6>(x.data + s * kPackedStep, kStride);
    Tiles::template Dot<0, 4, 6>();
    if constexpr (kRows > 1) {
      TileLoad<7>(x.data + x.block_stride + s * kPackedStep, kStride);
      Tiles::template Dot<1, 4, 7>();
    }
    if constexpr (kOutputs > 1) {
      Tiles::template LoadWeights<5>(outputs.w[1], s);
      outputs.FetchAhead(1, s);
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
void DotTiles(const TileOutputs<Tiles>& outputs, int row_blocks, PackedRows x, int64_t first, int64_t last,
              float (*c)[kTileFloats]) {
  if (outputs.tiles > 1) {
    row_blocks > 1 ? DotTiles<Tiles, 2, 2>(outputs, x, first, last, c)
                   : DotTiles<Tiles, 2, 1>(outputs, x, first, last, c);
  } else {
    row_blocks > 1 ? DotTiles<Tiles, 1, 2>(outputs, x, first, last, c)
                   : DotTiles<Tiles, 1, 1>(outputs, x, first, last, c);
  }
}

// How TileGemm cuts its work: `depth` steps of k of a block of columns at a time, `span` steps of a
// `group` of such blocks.
struct Blocking {
  int64_t depth, span, group;
};
Blocking BlockingOf(int64_t row_blocks, int64_t steps) {
  const int64_t pairs = (row_blocks + 1) / 2;
  if (pairs == 1) return {steps, steps, 1};  // weights are read once, in order
  const int64_t near = kNearBytes / (row_blocks * kPackedStep * 4);
  if (near >= steps) return {kDepthSteps, steps, 1};
  const int64_t results = pairs * 4 * kTileFloats * int64_t{sizeof(float)};
  const int64_t span = near / kDepthSteps * kDepthSteps, group = kNearBytes / 2 / results;
  return {kDepthSteps, span > 0 ? span : kDepthSteps, group > 0 ? group : 1};
}

// All rows by some columns. weights_of(part, o): those of 16 outputs from column o on, of the second half for
// part 1 (kSwiGlu). x_scale [n]: of quantised rows, else null.
template <typename Tiles, typename WeightsOf>
class TileGemm {
 public:
  TileGemm(const GemmArgs& args, const WeightsOf& weights_of, const float* packed, const float* x_scale)
      : args_(args),
        weights_of_(weights_of),
        packed_(packed),
        x_scale_(x_scale),
        swiglu_(args.epilogue == Epilogue::kSwiGlu),
        steps_(Steps<Tiles>(args.w.cols)),
        blocks_(RowBlocks(args.n)),
        pairs_((blocks_ + 1) / 2),
        width_(swiglu_ ? kTileDim : 2 * kTileDim),
        blocking_(BlockingOf(blocks_, steps_)),
        results_(reinterpret_cast<float (*)[kTileFloats]>(ThreadScratch(
            ScratchArea::kTask, blocking_.group * pairs_ * 4 * kTileFloats * int64_t{sizeof(float)}))) {}

  void Columns(int64_t first, int64_t last) {
    TileConfigure();
    for (int64_t start = first; start < last; start += blocking_.group * width_) {
      const int64_t stop = start + blocking_.group * width_ < last ? start + blocking_.group * width_ : last;
      for (int64_t s = 0; s < steps_; s += blocking_.span) {
        const int64_t to = s + blocking_.span < steps_ ? s + blocking_.span : steps_;
        for (int64_t o = start; o < stop; o += width_) {
          const int count = static_cast<int>(last - o < width_ ? last - o : width_);
          Pass(o, count, s, to, results_ + (o - start) / width_ * pairs_ * 4);
        }
      }
      if (pairs_ == 1) FinishWaiting();  // the next group begins with their memory
    }
    FinishWaiting();
    TileRelease();
  }

 private:
  // `count` columns from o on, over steps [from, to).
  void Pass(int64_t o, int count, int64_t from, int64_t to, float (*c)[kTileFloats]) {
    TileOutputs<Tiles> outputs;
    outputs.tiles = swiglu_ || count > kTileDim ? 2 : 1;
    outputs.w[0] = weights_of_(0, o);
    if (outputs.tiles > 1) outputs.w[1] = swiglu_ ? weights_of_(1, o) : weights_of_(0, o + kTileDim);
    outputs.layout = Tiles::Lines(args_.w.cols, blocking_.span == steps_);
    outputs.ahead = width_ / kTileDim * outputs.layout.tile;
    outputs.lines = (kTileLines + pairs_ - 1) / pairs_;
    for (int64_t s = from; s < to; s += blocking_.depth) {
      const int64_t stop = s + blocking_.depth < to ? s + blocking_.depth : to;
      for (int64_t p = 0; p < pairs_; ++p) {
        outputs.line = p * outputs.lines;
        const PackedRows x = {packed_ + 2 * p * steps_ * kPackedStep, steps_ * kPackedStep};
        DotTiles<Tiles>(outputs, 2 * p + 1 < blocks_ ? 2 : 1, x, s, stop, c + p * 4);
        // Not these results but those before them, and not at once: tiles are slow enough for the processor
        // to compute epilogues beside them, but look ahead a few hundred operations only.
        FinishWaiting();
        if (stop == steps_) waiting_ = {c + p * 4, p * 2 * kTileDim, o, count};
      }
    }
  }

  void FinishWaiting() {
    if (waiting_.count > 0) FinishTiles<Tiles>(args_, x_scale_, waiting_);
    waiting_.count = 0;
  }

  const GemmArgs& args_;
  const WeightsOf& weights_of_;
  const float *packed_, *x_scale_;
  const bool swiglu_;
  const int64_t steps_, blocks_, pairs_, width_;
  const Blocking blocking_;
  float (*results_)[kTileFloats];  // [columns of the group / width_][pairs_][4]
  TileResults waiting_ = {};       // for their epilogue
};

// `count` rows of int8 weights as bf16, which holds them exactly.
void Widen(const WeightMatrix& w, int64_t row, int64_t count, bf16* to) {
  const int8_t* from = static_cast<const int8_t*>(w.data) + row * w.cols;
  const int64_t size = count * w.cols;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(to + i, Load(from + i));
  if (i < size)
    StorePartial(to + i, LoadPartial(from + i, static_cast<int>(size - i)), static_cast<int>(size - i));
}

// A block of columns is widened once, into the second-level cache, and read from there by all rows.
void WidenedColumns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const int64_t cols = args.w.cols, count = last - first, block = count * cols;
  bf16* widened = static_cast<bf16*>(ThreadScratch(ScratchArea::kTiles, 2 * block * int64_t{sizeof(bf16)}));
  Widen(args.w, first, count, widened);
  if (args.epilogue == Epilogue::kSwiGlu) Widen(args.w, args.w.rows / 2 + first, count, widened + block);
  const auto weights_of = [&](int part, int64_t o) {
    return RowMajor{widened + part * block + (o - first) * cols, last - o, cols};
  };
  TileGemm<Bf16Tiles, decltype(weights_of)>(args, weights_of, static_cast<const float*>(packed), nullptr)
      .Columns(first, last);
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  if (MultipliesFloat32(args)) return kAvx512Gemm.columns(args, packed, first, last);
  if (args.w.dtype == DType::kI8) return WidenedColumns(args, packed, first, last);
  const auto weights_of = [&](int part, int64_t o) {
    const int64_t row = part * (args.w.rows / 2) + o;
    return RowMajor{static_cast<const bf16*>(args.w.data) + row * args.w.cols, args.w.rows - row,
                    args.w.cols};
  };
  TileGemm<Bf16Tiles, decltype(weights_of)>(args, weights_of, static_cast<const float*>(packed), nullptr)
      .Columns(first, last);
}

void Int8Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const auto* scale =
      reinterpret_cast<const float*>(static_cast<const char*>(packed) + PackedRowBytes<Int8Tiles>(args));
  const auto weights_of = [&](int part, int64_t o) { return Panel{Int8Panel(args.w, part, o)}; };
  TileGemm<Int8Tiles, decltype(weights_of)>(args, weights_of, static_cast<const float*>(packed), scale)
      .Columns(first, last);
}

}  // namespace

const GemmKernel kAmxGemm = {PackedBytes,
                             Pack,
                             Columns,
                             /*pack_grain=*/kTileDim,
                             /*column_grain=*/2 * kTileDim,
                             /*streams_weights=*/true};
const GemmKernel kAmxInt8Gemm = {Int8PackedBytes,
                                 Int8Pack,
                                 Int8Columns,
                                 /*pack_grain=*/1,
                                 /*column_grain=*/2 * kTileDim,
                                 /*streams_weights=*/true};

}  // namespace genrecall
