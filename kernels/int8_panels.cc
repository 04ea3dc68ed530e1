#include "kernels/int8_panels.h"

#include <cstring>

namespace genrecall {

void PackInt8Panels(const std::vector<const int8_t*>& rows, int64_t cols, int parts, int8_t* panels,
                    int32_t* row_sum) {
  const int64_t all = static_cast<int64_t>(rows.size()), part_rows = all / parts;
  const int64_t part_bytes = Int8PartBytes(all, cols, parts), panel_bytes = Int8PanelBytes(cols);
  const int64_t whole = cols / kPanelQuad * kPanelQuad;
  std::memset(panels, 0, static_cast<size_t>(parts * part_bytes));
  for (int64_t o = 0; o < all; ++o) {
    const int64_t in_part = o % part_rows, lane = in_part % kPanelOutputs;
    int8_t* panel = panels + o / part_rows * part_bytes + in_part / kPanelOutputs * panel_bytes;
    const int8_t* row = rows[o];
    for (int64_t k = 0; k < whole; k += kPanelQuad) {
      std::memcpy(panel + Int8PanelOffset(lane, k), row + k, kPanelQuad);
    }
    for (int64_t k = whole; k < cols; ++k) panel[Int8PanelOffset(lane, k)] = row[k];
    row_sum[o] = 0;
    for (int64_t k = 0; k < cols; ++k) row_sum[o] += row[k];
  }
}

}  // namespace genrecall
