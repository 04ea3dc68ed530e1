// The rows of a gemm in groups that a tile takes at a time. Everything has internal linkage, so that a copy
// compiled for a newer instruction set cannot be linked into all.
#ifndef GENRECALL_KERNELS_ROW_GROUPS_H_
#define GENRECALL_KERNELS_ROW_GROUPS_H_

#include <cstdint>

namespace genrecall {
namespace {

// `n` rows in groups of at most `most`, as even as can be: small tiles have too few accumulators to keep the
// multipliers busy.
struct RowGroups {
  RowGroups(int64_t n, int64_t most) : rows(n), count((n + most - 1) / most) {}
  int64_t First(int64_t group) const { return group * rows / count; }
  int64_t Of(int64_t row) const { return ((row + 1) * count - 1) / rows; }
  int64_t rows, count;
};

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_ROW_GROUPS_H_
