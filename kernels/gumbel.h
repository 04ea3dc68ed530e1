// Seeded Gumbel noise for sampling semantic IDs without replacement. Knows no trie and no beams.
//
// Gumbel top-k: perturb every leaf's log-probability by independent Gumbel noise and keep the k largest: a
// sample of k without replacement. The tree need not be expanded: a node's perturbed value is the maximum of
// its leaves', so top-down each child gets noise conditioned on the parent's value (Kool et al. 2019,
// "Stochastic beams and where to find them", arXiv:1903.06059, algorithm 1).
#ifndef GENRECALL_KERNELS_GUMBEL_H_
#define GENRECALL_KERNELS_GUMBEL_H_

#include <cstdint>

namespace genrecall {

// The noise stream of a SID prefix: a number that depends on the seed and the prefix's codes alone, so that a
// draw is repeated whatever else is in the batch, the beam or the index.
uint64_t RootStream(uint64_t seed);
uint64_t ChildStream(uint64_t stream, int32_t code);

// Gumbel(0, 1) noise of a stream.
float GumbelNoise(uint64_t stream);

// Perturbed values of n children whose conditioned maximum is `parent`'s.
//
//   log_prob  [n]  sums of log-probabilities of the children's prefixes, normalised over these children
//   noise     [n]  GumbelNoise of each
//   parent         the parent's perturbed value; +inf at the root: unconditioned
//   out       [n]  -inf where log_prob is. In place of noise is fine.
void ConditionOnMaximum(const float* log_prob, const float* noise, int n, float parent, float* out);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GUMBEL_H_
