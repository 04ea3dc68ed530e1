// The row-wise kernels over the vectors of a simd_*.h, which the including file has included before it.
#ifndef GENRECALL_KERNELS_ROW_KERNELS_SIMD_H_
#define GENRECALL_KERNELS_ROW_KERNELS_SIMD_H_

#include "kernels/quantize_simd.h"
#include "kernels/row_kernels.h"
#include "kernels/vector_loop_simd.h"

namespace genrecall {
namespace {

inline float SquareRoot(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

template <typename T>
void RmsNormRow(const float* x, const float* weight, float eps, int64_t dim, T* y) {
  Vec squares = Zero();
  ForVectors(dim, [&](int64_t i, int lanes) {
    const Vec v = LoadPartial(x + i, lanes);
    squares = Fma(v, v, squares);
  });
  const Vec scale = Set1(1.0f / SquareRoot(Sum(squares) / static_cast<float>(dim) + eps));
  ForVectors(dim, [&](int64_t i, int lanes) {
    StorePartial(y + i, Mul(Mul(LoadPartial(x + i, lanes), scale), LoadPartial(weight + i, lanes)), lanes);
  });
}

void RmsNorm(DType dtype, const float* x, const float* weight, float eps, int64_t n, int64_t dim, void* y) {
  for (int64_t r = 0; r < n; ++r, x += dim) {
    if (dtype == DType::kF32) {
      RmsNormRow(x, weight, eps, dim, static_cast<float*>(y) + r * dim);
    } else {
      RmsNormRow(x, weight, eps, dim, static_cast<bf16*>(y) + r * dim);
    }
  }
}

void Rope(float* x, int64_t stride, int64_t n, int heads, int head_dim, const int32_t* position,
          const float* cos_sin) {
  const int half = head_dim / 2;
  for (int64_t r = 0; r < n; ++r) {
    const float* cosines = cos_sin + static_cast<int64_t>(position[r]) * head_dim;
    for (int h = 0; h < heads; ++h) {
      float* head = x + r * stride + h * head_dim;
      ForVectors(half, [&](int64_t i, int lanes) {
        const Vec a = LoadPartial(head + i, lanes), b = LoadPartial(head + half + i, lanes);
        const Vec c = LoadPartial(cosines + i, lanes), s = LoadPartial(cosines + half + i, lanes);
        StorePartial(head + i, Sub(Mul(a, c), Mul(b, s)), lanes);
        StorePartial(head + half + i, Add(Mul(b, c), Mul(a, s)), lanes);
      });
    }
  }
}

// n int8, then their scale.
void QuantizeVector(const float* x, int64_t n, int8_t* y) {
  const Int8Scale scale = RowScale(x, n);
  const Vec inverse = Set1(scale.inverse);
  ForVectors(n, [&](int64_t i, int lanes) {
    const Vec v = scale.inverse == 0.0f ? Zero() : Mul(LoadPartial(x + i, lanes), inverse);
    StorePartial(y + i, v, lanes);
  });
  __builtin_memcpy(y + n, &scale.scale, sizeof scale.scale);
}

void Convert(DType dtype, const float* x, int64_t n, void* y) {
  if (dtype == DType::kI8) return QuantizeVector(x, n, static_cast<int8_t*>(y));
  ForVectors(n, [&](int64_t i, int lanes) {
    const Vec v = LoadPartial(x + i, lanes);
    if (dtype == DType::kF32) {
      StorePartial(static_cast<float*>(y) + i, v, lanes);
    } else {
      StorePartial(static_cast<bf16*>(y) + i, v, lanes);
    }
  });
}

void MaxSumExp(const float* x, int64_t n, int64_t cols, int64_t stride, float* m, float* s) {
  const Vec lowest = Set1(-__builtin_inff());
  for (int64_t r = 0; r < n; ++r) {
    const float* row = x + r * stride;
    Vec top = lowest;
    ForVectors(cols, [&](int64_t i, int lanes) {
      top = Max(top, FillFrom(LoadPartial(row + i, lanes), lanes, lowest));
    });
    m[r] = MaxLane(top);
    const Vec shift = Set1(m[r]);
    Vec sum = Zero();
    ForVectors(cols, [&](int64_t i, int lanes) {
      sum = Add(sum, FillFrom(Exp(Sub(LoadPartial(row + i, lanes), shift)), lanes, Zero()));
    });
    s[r] = Sum(sum);
  }
}

void ExpOf(const float* x, int64_t n, float* y) {
  ForVectors(n, [&](int64_t i, int lanes) { StorePartial(y + i, Exp(LoadPartial(x + i, lanes)), lanes); });
}

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_ROW_KERNELS_SIMD_H_
