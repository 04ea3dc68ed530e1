// The best of a step's candidates: who is kept, in which order. Knows no trie and no softmax.
#ifndef GENRECALL_KERNELS_CANDIDATES_H_
#define GENRECALL_KERNELS_CANDIDATES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace genrecall {

// One (row, child) pair. Ascending `key` is best first: the ranking score's bits, descending, then the
// child's node.
struct Candidate {
  uint64_t key;
  int32_t row;
  float step_score;
  uint32_t node() const { return static_cast<uint32_t>(key); }
  float score() const;  // what it was ranked by
  bool operator<(const Candidate& other) const { return key < other.key; }
};

// At most `cap` of the kept candidates may come from rows of one group. Groups nest: rows of one group of a
// longer prefix are in one group of every shorter one.
struct GroupCap {
  int cap;                // >= 1
  const uint32_t* group;  // [rows]
  int stride;             // of `group`, between rows
};

// Keeps the best `width` of a stream of candidates.
//
// Without caps: a buffer of twice the width, halved by selection whenever it is full, so that a candidate
// costs O(1) amortised, and once the buffer was full most are turned away by one comparison. With caps
// everything is kept until Finish, which takes the best first and passes over what a cap forbids. Nested caps
// are a laminar matroid, so that greedy choice has the largest sum any choice could have, at every width.
class Selection {
 public:
  void Reset(int width, std::vector<GroupCap> caps);

  // Nothing with a lower score can be kept any more. An equal score may, by its node.
  float worst_score() const { return worst_score_; }

  // score: not NaN and not +inf; -0 and +0 tie.
  void Add(float score, uint32_t node, int32_t row, float step_score);

  // The kept, best first; ties: the smaller node. Valid until the next Reset.
  const std::vector<Candidate>& Finish();

 private:
  void Halve();
  void TakeWithinCaps();

  size_t width_ = 0, capacity_ = 0;
  std::vector<GroupCap> caps_;
  std::vector<Candidate> kept_, taken_;
  uint64_t worst_ = 0;
  float worst_score_ = 0;
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CANDIDATES_H_
