// One head's key or value of one token as KV memory holds it: head_dim numbers of T; int8 numbers are
// followed by the float32 scale they share, so that a vector is in one place whatever page or tail it lies
// in. `static`: each file has its own copy, so that one compiled for a newer instruction set cannot be linked
// into all.
#ifndef GENRECALL_KERNELS_KV_VECTOR_H_
#define GENRECALL_KERNELS_KV_VECTOR_H_

#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

namespace genrecall {

static inline int64_t KvVectorBytes(DType dtype, int head_dim) {
  return int64_t{head_dim} * DTypeSize(dtype) + (dtype == DType::kI8 ? int64_t{sizeof(float)} : 0);
}

// From a vector to the next one, in elements.
static inline int64_t KvStride(const float*, int head_dim) { return head_dim; }
static inline int64_t KvStride(const bf16*, int head_dim) { return head_dim; }
static inline int64_t KvStride(const int8_t*, int head_dim) { return head_dim + int64_t{sizeof(float)}; }

// What the numbers are multiplied by.
static inline float KvScale(const float*, int) { return 1.0f; }
static inline float KvScale(const bf16*, int) { return 1.0f; }
static inline float KvScale(const int8_t* v, int head_dim) {
  float scale;
  std::memcpy(&scale, v + head_dim, sizeof scale);
  return scale;
}

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_KV_VECTOR_H_
