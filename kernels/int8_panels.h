// Where a weight lies in a W8A8 matrix: in panels of 16 outputs, whose weights lie side by side four k at a
// time (16 outputs x 4 k = 64 bytes: one vector of byte products, one row of an AMX operand tile). An output
// is then a lane of the accumulators, so that no lanes are left to sum, and a panel is read front to back.
// Panels are padded with zeros to 16 outputs and 64 k (a whole AMX tile). What is `static` here has a copy in
// each file, so that one compiled for a newer instruction set cannot be linked into all.
#ifndef GENRECALL_KERNELS_INT8_PANELS_H_
#define GENRECALL_KERNELS_INT8_PANELS_H_

#include <cstdint>
#include <vector>

#include "kernels/transformer_args.h"

namespace genrecall {

inline constexpr int64_t kPanelOutputs = 16, kPanelQuad = 4, kPanelDepth = 64;
inline constexpr int64_t kQuadBytes = kPanelOutputs * kPanelQuad;  // of a panel, a step of four k

static inline int64_t Int8PanelBytes(int64_t cols) {
  return (cols + kPanelDepth - 1) / kPanelDepth * kPanelDepth * kPanelOutputs;
}

// Bytes of one of the parts of a matrix (WeightMatrix::parts) of that many rows in all.
static inline int64_t Int8PartBytes(int64_t rows, int64_t cols, int parts) {
  return (rows / parts + kPanelOutputs - 1) / kPanelOutputs * Int8PanelBytes(cols);
}

// The panel that holds output `o` of part `part`; o: a multiple of kPanelOutputs.
static inline const int8_t* Int8Panel(const WeightMatrix& w, int part, int64_t o) {
  return static_cast<const int8_t*>(w.data) + part * Int8PartBytes(w.rows, w.cols, w.parts) +
         o / kPanelOutputs * Int8PanelBytes(w.cols);
}

// Byte of weight (o, k) behind the start of its panel; o: within the panel.
static inline int64_t Int8PanelOffset(int64_t o, int64_t k) {
  return k / kPanelQuad * kPanelOutputs * kPanelQuad + o * kPanelQuad + k % kPanelQuad;
}

inline constexpr int64_t kNearBytes = 512;  // tiles fetch a panel so far ahead into the first-level cache
inline constexpr int64_t kPanelSumsStride = 2 * kPanelOutputs;

// One or two panels, as a tile of a gemm takes them. count: of a panel's outputs those that are there, 0 for
// a second panel that is not; row_sum: of theirs. next: from there on the tile fetches memory for a later
// one, `next_step` bytes at each of its steps.
struct WeightPanels {
  const int8_t* data[2];
  const int8_t* next[2];
  const int32_t* row_sum[2];
  int count[2];
  int64_t quads;  // steps of four k
  int64_t next_step;
};

// The weights of rows.size() rows of `cols` numbers, in parts of equal size, as panels: Int8PartBytes of
// bytes for each part. row_sum [rows]: WeightMatrix::row_sum.
void PackInt8Panels(const std::vector<const int8_t*>& rows, int64_t cols, int parts, int8_t* panels,
                    int32_t* row_sum);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_INT8_PANELS_H_
