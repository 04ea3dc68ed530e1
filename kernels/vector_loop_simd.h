// The loop over a row's numbers by the vectors of a simd_*.h, which the including file has included before
// it.
#ifndef GENRECALL_KERNELS_VECTOR_LOOP_SIMD_H_
#define GENRECALL_KERNELS_VECTOR_LOOP_SIMD_H_

#include <cstdint>

namespace genrecall {
namespace {

// Calls body(i, lanes) for the vectors that cover [0, n): lanes = kLanes, fewer for the last.
template <typename Body>
inline void ForVectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_VECTOR_LOOP_SIMD_H_
