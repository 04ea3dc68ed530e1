// Rows of activations to int8 (quantize.h), over the vectors of a simd_*.h, which the including file has
// included before it.
#ifndef GENRECALL_KERNELS_QUANTIZE_SIMD_H_
#define GENRECALL_KERNELS_QUANTIZE_SIMD_H_

#include "kernels/quantize.h"

namespace genrecall {
namespace {

// The scale of x [cols].
inline Int8Scale RowScale(const bf16* x, int64_t cols) { return Int8ScaleOf(LargestMagnitude(x, cols)); }
inline Int8Scale RowScale(const float* x, int64_t cols) {
  Vec largest = Zero();
  int64_t k = 0;
  for (; k + kLanes <= cols; k += kLanes) largest = MaxMagnitude(largest, Load(x + k));
  if (k < cols) largest = MaxMagnitude(largest, LoadPartial(x + k, static_cast<int>(cols - k)));
  return Int8ScaleOf(LargestMagnitude(largest));
}

// Quantises numbers [first, last) of x [cols] by its scale. store(k, v) rounds v, the scaled numbers from k
// on (all within -127..127 once rounded, 0 past the end), for k in steps of kLanes; first and last are
// multiples of kLanes, last may lie past the end.
template <typename T, typename StoreAt>
inline void QuantizeRow(const T* x, int64_t cols, int64_t first, int64_t last, Int8Scale scale,
                        const StoreAt& store) {
  // Zero by choice, not by product: infinity times 0 is no integer.
  const int64_t kept = scale.inverse == 0.0f ? 0 : cols < last ? cols : last;
  const Vec inverse = Set1(scale.inverse);
  int64_t k = first;
  for (; k + kLanes <= kept; k += kLanes) store(k, Mul(Load(x + k), inverse));
  if (k < kept) {
    store(k, Mul(LoadPartial(x + k, static_cast<int>(kept - k)), inverse));
    k += kLanes;
  }
  for (; k < last; k += kLanes) store(k, Zero());
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_QUANTIZE_SIMD_H_
