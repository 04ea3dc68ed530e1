#include "kernels/gumbel.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace genrecall {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t RootStream(uint64_t seed) { return Mix(seed); }

uint64_t ChildStream(uint64_t stream, int32_t code) {
  return Mix(stream ^ Mix(static_cast<uint64_t>(code) + 1));
}

float GumbelNoise(uint64_t stream) {
  // 53 bits, in the middle of their steps: never 0 and never 1.
  const double uniform = (static_cast<double>(Mix(stream) >> 11) + 0.5) * 0x1p-53;
  return static_cast<float>(-std::log(-std::log(uniform)));
}

void ConditionOnMaximum(const float* log_prob, const float* noise, int n, float parent, float* out) {
  double top = -kInf;
  for (int i = 0; i < n; ++i) {
    if (log_prob[i] > -kInf) top = std::max(top, static_cast<double>(log_prob[i]) + noise[i]);
  }
  for (int i = 0; i < n; ++i) {
    const double value = static_cast<double>(log_prob[i]) + noise[i];
    if (!(log_prob[i] > -kInf)) {
      out[i] = static_cast<float>(-kInf);
    } else if (parent == std::numeric_limits<float>::infinity()) {
      out[i] = static_cast<float>(value);
    } else {
      // -log(e^-parent - e^-top + e^-value), as in the paper's appendix B.3; the maximum itself becomes
      // `parent` exactly.
      const double v = parent - value + std::log1p(-std::exp(value - top));
      const double conditioned = parent - std::max(0.0, v) - std::log1p(std::exp(-std::abs(v)));
      out[i] = value == top ? parent : static_cast<float>(conditioned);
    }
  }
}

}  // namespace genrecall
