// Rows of activations to int8 (quantize.h), over the vectors of a simd_*.h, which the including file has
// included before it.
#ifndef GENRECALL_KERNELS_QUANTIZE_SIMD_H_
#define GENRECALL_KERNELS_QUANTIZE_SIMD_H_

#include "kernels/quantize.h"

namespace genrecall {
namespace {

// The scale of x [cols].
template <typename T>
inline Int8Scale RowScale(const T* x, int64_t cols) {
  Vec largest = Zero();
  int64_t k = 0;
  for (; k + kLanes <= cols; k += kLanes) largest = MaxMagnitude(largest, Load(x + k));
  if (k < cols) largest = MaxMagnitude(largest, LoadPartial(x + k, static_cast<int>(cols - k)));
  return Int8ScaleOf(LargestMagnitude(largest));
}

// Quantises x [cols] and returns its scale. store(k, v) rounds v, the scaled numbers from k on (all within
// -127..127 once rounded, 0 past the end), for k in steps of kLanes up to `padded`, a multiple of kLanes >=
// cols.
template <typename T, typename StoreAt>
inline float QuantizeRow(const T* x, int64_t cols, int64_t padded, const StoreAt& store) {
  const Int8Scale scale = RowScale(x, cols);
  // Zero by choice, not by product: infinity times 0 is no integer.
  const int64_t kept = scale.inverse == 0.0f ? 0 : cols;
  const Vec inverse = Set1(scale.inverse);
  int64_t k = 0;
  for (; k + kLanes <= kept; k += kLanes) store(k, Mul(Load(x + k), inverse));
  if (k < kept) {
    store(k, Mul(LoadPartial(x + k, static_cast<int>(kept - k)), inverse));
    k += kLanes;
  }
  for (; k < padded; k += kLanes) store(k, Zero());
  return scale.scale;
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_QUANTIZE_SIMD_H_
