// The scalar row-wise kernels: the specification.
#include "kernels/row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/quantize.h"
#include "kernels/scalar_math.h"

namespace genrecall {
namespace {

template <typename T>
void RmsNormRow(const float* x, const float* weight, float eps, int64_t dim, T* y) {
  float sum = 0.0f;
  for (int64_t i = 0; i < dim; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) Store(x[i] * scale * weight[i], y + i);
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
    const float* cosine = cos_sin + static_cast<int64_t>(position[r]) * head_dim;
    const float* sine = cosine + half;
    for (int h = 0; h < heads; ++h) {
      float* head = x + r * stride + h * head_dim;
      for (int i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
      }
    }
  }
}

void ConvertFloats(DType dtype, const float* x, int64_t n, void* y) {
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::kF32) {
      static_cast<float*>(y)[i] = x[i];
    } else {
      static_cast<bf16*>(y)[i] = ToBf16(x[i]);
    }
  }
}

// n int8, then their scale.
void QuantizeVector(const float* x, int64_t n, int8_t* y) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, MagnitudeBits(x[i]));
  const Int8Scale scale = Int8ScaleOf(FromMagnitudeBits(largest));
  for (int64_t i = 0; i < n; ++i) y[i] = QuantizeToInt8(x[i], scale);
  std::memcpy(y + n, &scale.scale, sizeof scale.scale);
}

void Convert(DType dtype, const float* x, int64_t n, void* y) {
  if (dtype == DType::kI8) {
    QuantizeVector(x, n, static_cast<int8_t*>(y));
  } else {
    ConvertFloats(dtype, x, n, y);
  }
}

void MaxSumExp(const float* x, int64_t n, int64_t cols, int64_t stride, float* m, float* s) {
  for (int64_t r = 0; r < n; ++r) {
    const float* row = x + r * stride;
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < cols; ++i) top = std::max(top, row[i]);
    float sum = 0.0f;
    for (int64_t i = 0; i < cols; ++i) sum += Exp(row[i] - top);
    m[r] = top;
    s[r] = sum;
  }
}

void ExpOf(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = Exp(x[i]);
}

}  // namespace

const RowKernels kScalarRowKernels = {RmsNorm, Rope, Convert, MaxSumExp, ExpOf};

}  // namespace genrecall
