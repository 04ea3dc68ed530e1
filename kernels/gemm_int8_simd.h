// The gemm that multiplies int8 by int8 exactly, from panels of weights (int8_panels.h), over the vectors of
// a simd_*.h and what an instruction set has for integers, both of which the including file has defined
// before it:
//
//   Input             packed activations are made of it
//   StoreQuads        a Vec of scaled numbers, rounded, to kLanes / 4 places of four Inputs
//   kPanelTileRows    rows of a tile at most
//   PanelTile<kRows, kPanels>(x, panels, sums)   sums[r][16 p + o] = x[r] . panel p's output o, as floats; a
//                     row of sums is kPanelSumsStride long
//
// Panels stay in the first-level cache while all rows pass by: of an activation a tile reads four numbers a
// step, and has them in all lanes, of weights whole vectors.
#ifndef GENRECALL_KERNELS_GEMM_INT8_SIMD_H_
#define GENRECALL_KERNELS_GEMM_INT8_SIMD_H_

#include <utility>

#include "kernels/gemm.h"
#include "kernels/gemm_epilogue_simd.h"
#include "kernels/quantize_simd.h"
#include "kernels/row_groups.h"

namespace genrecall {
namespace {

inline int64_t RoundUpTo(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

int64_t PackedStride(const GemmArgs& args) { return RoundUpTo(args.w.cols, kLanes); }

// Packed: group by group [k / 4, rows of the group, 4] Inputs; then the scale of every row.
int64_t PackedRowBytes(const GemmArgs& args) { return args.n * PackedStride(args) * int64_t{sizeof(Input)}; }
int64_t PackedBytes(const GemmArgs& args) { return PackedRowBytes(args) + args.n * int64_t{sizeof(float)}; }

// Numbers of a row that are packed at a time, so that what a group of rows shares stays in the first-level
// cache.
constexpr int64_t kPackDepth = 512;

template <typename T>
void PackOf(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols, stride = PackedStride(args);
  const RowGroups groups(args.n, kPanelTileRows);
  float* scale = reinterpret_cast<float*>(static_cast<char*>(packed) + PackedRowBytes(args));
  while (first < last) {
    const int64_t group = groups.Of(first), start = groups.First(group), end = groups.First(group + 1);
    const int64_t rows = end - start, stop = end < last ? end : last;
    Int8Scale scales[kPanelTileRows];
    for (int64_t r = first; r < stop; ++r) {
      scales[r - start] = RowScale(static_cast<const T*>(args.x) + r * cols, cols);
      scale[r] = scales[r - start].scale;
    }
    Input* to = static_cast<Input*>(packed) + start * stride;
    for (int64_t k = 0; k < stride; k += kPackDepth) {
      const int64_t k_end = k + kPackDepth < stride ? k + kPackDepth : stride;
      for (int64_t r = first; r < stop; ++r) {
        Input* row = to + (r - start) * kPanelQuad;
        QuantizeRow(static_cast<const T*>(args.x) + r * cols, cols, k, k_end, scales[r - start],
                    [row, rows](int64_t at, Vec v) { StoreQuads(row + at * rows, rows * kPanelQuad, v); });
      }
    }
    first = stop;
  }
}

void Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const auto pack = args.x_dtype == DType::kF32 ? PackOf<float> : PackOf<bf16>;
  pack(args, first, last, packed);
}

using PanelTileFn = void (*)(const Input*, const WeightPanels&, float*);

template <int... kRows>
inline PanelTileFn PanelTileOf(int64_t rows, bool two, std::integer_sequence<int, kRows...>) {
  static constexpr PanelTileFn kOne[] = {PanelTile<kRows + 1, 1>...};
  static constexpr PanelTileFn kTwo[] = {PanelTile<kRows + 1, 2>...};
  return (two ? kTwo : kOne)[rows - 1];
}

// Columns [first, first + count) of all rows: those of one or two panels, or, for kSwiGlu, of a panel of each
// part. The groups of rows share in fetching the panels behind from memory, `ahead` bytes further.
void PanelColumns(const GemmArgs& args, const void* packed, WeightPanels panels, int64_t ahead, int64_t first,
                  int count) {
  const auto* x = static_cast<const Input*>(packed);
  const auto* scale = reinterpret_cast<const float*>(static_cast<const char*>(packed) + PackedRowBytes(args));
  const int64_t stride = PackedStride(args);
  const RowGroups groups(args.n, kPanelTileRows);
  panels.next_step = (kQuadBytes + groups.count - 1) / groups.count;
  alignas(64) float sums[kPanelTileRows * kPanelSumsStride];
  for (int64_t g = 0; g < groups.count; ++g) {
    const int64_t start = groups.First(g), rows = groups.First(g + 1) - start;
    for (int p = 0; p < 2; ++p) panels.next[p] = panels.data[p] + ahead + g * panels.quads * panels.next_step;
    const auto tile =
        PanelTileOf(rows, panels.count[1] > 0, std::make_integer_sequence<int, kPanelTileRows>());
    tile(x + start * stride, panels, sums);
    for (int64_t i = 0; i < rows; ++i) {
      const float* row = sums + i * kPanelSumsStride;
      Finish(args, start + i, scale[start + i], first, count, row, row + kPanelOutputs);
    }
  }
}

void Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const bool swiglu = args.epilogue == Epilogue::kSwiGlu;
  const int64_t half = args.w.rows / 2, panel_bytes = Int8PanelBytes(args.w.cols);
  const int64_t step = swiglu ? kPanelOutputs : 2 * kPanelOutputs;
  for (int64_t o = first; o < last; o += step) {
    const int count = static_cast<int>(last - o < step ? last - o : step);
    const int low = count < kPanelOutputs ? count : static_cast<int>(kPanelOutputs);
    WeightPanels panels;
    panels.quads = (args.w.cols + kPanelQuad - 1) / kPanelQuad;
    panels.data[0] = Int8Panel(args.w, 0, o);
    panels.row_sum[0] = args.w.row_sum + o;
    panels.count[0] = low;
    panels.data[1] = swiglu ? Int8Panel(args.w, 1, o) : panels.data[0] + panel_bytes;
    panels.row_sum[1] = args.w.row_sum + (swiglu ? half + o : o + kPanelOutputs);
    panels.count[1] = swiglu ? low : count - low;
    PanelColumns(args, packed, panels, step / kPanelOutputs * panel_bytes, o, count);
  }
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GEMM_INT8_SIMD_H_
