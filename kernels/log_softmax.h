// Log-softmax of one row, in a fixed order of additions: the same bits in every batch and on every ISA. Knows
// no trie and no beams.
#ifndef GENRECALL_KERNELS_LOG_SOFTMAX_H_
#define GENRECALL_KERNELS_LOG_SOFTMAX_H_

namespace genrecall {

// The maximum of x[0..n), -inf for n = 0; *finite tells whether none is NaN or +inf (else the maximum means
// nothing).
float Maximum(const float* x, int n, bool* finite);

// out[i] = log softmax(x / temperature)[i] <= 0, all -inf where every x is. max: of x[0..n); temperature > 0.
// In place is fine.
void LogSoftmax(const float* x, int n, float max, float temperature, float* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_LOG_SOFTMAX_H_
