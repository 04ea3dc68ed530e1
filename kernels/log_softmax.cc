#include "kernels/log_softmax.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace genrecall {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Sums and maxima run over this many interleaved lanes (element i in lane i % kLanes): the compiler can keep
// them in vector registers of any width, and the order of the additions is the same in all of them.
constexpr int kLanes = 16;

// e^x for x <= 0, within 2 ulp; about 1e-38 from x = -87 down. Straight-line, so that loops over it
// vectorise. Cody-Waite reduction and the polynomial of Cephes expf.
inline float ExpNonPositive(float x) {
  // max(x, -87) by integer arithmetic on the bits: a branch would keep the compiler from vectorising.
  constexpr int32_t k87 = 0x42ae0000;  // the bits of 87.0f
  int32_t magnitude;
  std::memcpy(&magnitude, &x, sizeof magnitude);
  const int32_t excess = (magnitude & 0x7fffffff) - k87;
  magnitude = k87 + (excess & (excess >> 31));
  std::memcpy(&x, &magnitude, sizeof x);
  x = -x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504088896341f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = p * (r * r) + r + 1.0f;
  const int32_t exponent_bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent_bits, sizeof power);
  return mantissa * power;
}

// log(sum(exp(x[0..n)))) for x <= 0 with maximum 0, so the sum is at least 1 and the result at least 0.
float LogSumExpShifted(const float* x, int n) {
  constexpr int kBlock = 16 * kLanes;
  float lane[kLanes] = {};
  float e[kBlock];
  for (int begin = 0; begin < n; begin += kBlock) {
    const int block = std::min(kBlock, n - begin);
    for (int i = 0; i < block; ++i) e[i] = ExpNonPositive(x[begin + i]);
    std::fill(e + block, e + (block + kLanes - 1) / kLanes * kLanes, 0.0f);
    for (int i = 0; i < block; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lane[j] += e[i + j];
    }
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return std::log(lane[0]);
}

}  // namespace

float Maximum(const float* x, int n, bool* finite) {
  float lane[kLanes];
  int32_t bad[kLanes] = {};
  std::fill(lane, lane + kLanes, -kInf);
  auto take = [&](int j, float v) {
    lane[j] = v > lane[j] ? v : lane[j];
    bad[j] |= !(v < kInf);  // also NaN
  };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) take(j, x[i + j]);
  }
  for (int j = 0; i + j < n; ++j) take(j, x[i + j]);
  *finite = !std::any_of(bad, bad + kLanes, [](int32_t b) { return b != 0; });
  return *std::max_element(lane, lane + kLanes);
}

void LogSoftmax(const float* x, int n, float max, float temperature, float* out) {
  if (max == -kInf) {  // -inf - -inf would be NaN
    std::fill(out, out + n, -kInf);
    return;
  }
  if (temperature == 1.0f) {
    for (int i = 0; i < n; ++i) out[i] = x[i] - max;
  } else {
    for (int i = 0; i < n; ++i) out[i] = (x[i] - max) / temperature;
  }
  const float log_sum = LogSumExpShifted(out, n);
  for (int i = 0; i < n; ++i) out[i] -= log_sum;
}

}  // namespace genrecall
