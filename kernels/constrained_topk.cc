#include "kernels/constrained_topk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace genrecall {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Sums and maxima run over this many interleaved lanes (element i in lane i % kLanes): the compiler can keep
// them in vector registers of any width, and the order of the additions is the same in all of them.
constexpr int kLanes = 16;

// One (row, child) pair. Ascending `key` is best first: the score's bits, descending, then the child's node.
struct Candidate {
  uint64_t key;
  int32_t row;
  float step_score;
  uint32_t node() const { return static_cast<uint32_t>(key); }
  bool operator<(const Candidate& other) const { return key < other.key; }
};

uint64_t CandidateKey(float score, uint32_t node) {
  score += 0.0f;  // -0 and +0 tie
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ascending = (bits >> 31) ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | node;
}

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

// The maximum of x[0..n), -inf for n = 0; *finite tells whether none is NaN or +inf (else the maximum means
// nothing).
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

// out[i] = log softmax(x / temperature)[i] <= 0, all -inf where every x is. max: of x[0..n). In place is
// fine.
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

// x[i] = x[i] / temperature - log_normalizer.
void SubtractNormalizer(float log_normalizer, float temperature, int n, float* x) {
  for (int i = 0; i < n; ++i) {
    if (x[i] != -kInf) x[i] = x[i] / temperature - log_normalizer;
  }
}

// Keeps the `width` smallest candidates of a stream: a buffer of twice that, halved by selection whenever it
// is full, so a candidate costs O(1) amortised, and once the buffer was full most are turned away by one
// comparison.
class Selection {
 public:
  void Reset(int width) {
    width_ = static_cast<size_t>(width);
    capacity_ = std::max<size_t>(2 * width_, 256);
    kept_.clear();
    worst_ = ~uint64_t{0};
    worst_score_ = -kInf;
  }

  // Nothing with a lower score can be kept any more. An equal score may, by its node.
  float worst_score() const { return worst_score_; }

  void Add(float score, uint32_t node, int32_t row, float step_score) {
    if (score < worst_score_) return;
    const uint64_t key = CandidateKey(score, node);
    if (key > worst_) return;
    kept_.push_back({key, row, step_score});
    if (kept_.size() == capacity_) Halve();
  }

  const std::vector<Candidate>& Finish() {
    if (kept_.size() > width_) Halve();
    std::sort(kept_.begin(), kept_.end());
    return kept_;
  }

 private:
  void Halve() {
    std::nth_element(kept_.begin(), kept_.begin() + (width_ - 1), kept_.end());
    kept_.resize(width_);
    worst_ = kept_.back().key;
    worst_score_ = ScoreOfKey(worst_);
  }
  static float ScoreOfKey(uint64_t key) {
    const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
    const uint32_t bits = (ascending >> 31) ? ascending & 0x7fffffffu : ~ascending;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
  }

  size_t width_ = 0, capacity_ = 0;
  std::vector<Candidate> kept_;
  uint64_t worst_ = 0;
  float worst_score_ = 0;
};

Status CheckArgs(const TopkArgs& a) {
  if (a.index == nullptr) return InvalidArgument("index = null: expected a recall index");
  if (a.level < 0 || a.level >= a.index->levels()) {
    return InvalidArgument("level = ", a.level, ": expected 0..", a.index->levels() - 1);
  }
  if (a.width < 1) return InvalidArgument("width = ", a.width, ": expected >= 1");
  if (a.rows < 0) return InvalidArgument("rows = ", a.rows, ": expected >= 0");
  if (!(a.temperature > 0.0f && a.temperature < kInf)) {
    return InvalidArgument("temperature = ", a.temperature, ": expected > 0 and finite");
  }
  if (a.rows == 0) return Status();
  if (a.rows > 1 && a.stride < a.index->level_size(a.level)) {
    return InvalidArgument("stride = ", a.stride, ": expected >= level size ", a.index->level_size(a.level));
  }
  if (a.normalize == Normalize::kVocab && a.log_normalizer == nullptr) {
    return InvalidArgument("log_normalizer = null: expected one per row for normalize 'vocab'");
  }
  const uint32_t nodes = a.index->num_nodes(a.level);
  for (int row = 0; row < a.rows; ++row) {
    if (a.node[row] >= nodes) {
      return InvalidArgument("node[", row, "] = ", a.node[row], " at level ", a.level, ": expected < ",
                             nodes);
    }
    if (!(a.beam_score[row] < kInf)) {
      return Status(Code::kInternal, Cat("beam_score[", row, "] = ", a.beam_score[row], " at level ", a.level,
                                         ": expected finite"));
    }
    if (a.normalize == Normalize::kVocab && !(a.log_normalizer[row] < kInf)) {
      return Status(Code::kInternal, Cat("log_normalizer[", row, "] = ", a.log_normalizer[row], " at level ",
                                         a.level, ": expected finite"));
    }
  }
  return Status();
}

Status BadLogit(const float* logits, int size, int row, int level) {
  int code = 0;
  while (code < size - 1 && logits[code] < kInf) ++code;
  return Status(Code::kInternal, Cat("logits[", row, ", ", code, "] = ", logits[code], " at level ", level,
                                     ": expected finite"));
}

struct Scratch {
  Selection selection;
  std::vector<float> log_prob;    // of one row's codes
  std::vector<float> step_score;  // of one row's children
};

// Out of line: inlined, every access in the loops below would find its way to thread-local storage anew.
__attribute__((noinline)) Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace

Status ConstrainedTopk(const TopkArgs& args, TopkBeams* out) {
  GENRECALL_RETURN_IF_ERROR(CheckArgs(args));
  Scratch& scratch = ThreadScratch();
  const RecallIndex& index = *args.index;
  const int size = index.level_size(args.level);
  const uint16_t* codes = index.codes(args.level);
  Selection& selection = scratch.selection;
  selection.Reset(args.width);
  scratch.log_prob.resize(size);
  scratch.step_score.resize(size);
  float* log_prob = scratch.log_prob.data();
  float* step_score = scratch.step_score.data();

  for (int row = 0; row < args.rows; ++row) {
    const float* logits = args.logits + row * args.stride;
    bool finite;
    const float max = Maximum(logits, size, &finite);
    if (!finite) return BadLogit(logits, size, row, args.level);

    const float beam_score = args.beam_score[row];
    // Step scores of a softmax are <= 0, so nothing under this row could be kept: its softmax is saved.
    if (args.normalize != Normalize::kVocab && beam_score < selection.worst_score()) continue;

    const RecallIndex::Range range = index.children(args.level, args.node[row]);
    const int children = static_cast<int>(range.last - range.first);
    const uint16_t* child_code = codes + range.first;
    if (args.normalize == Normalize::kLevel) LogSoftmax(logits, size, max, args.temperature, log_prob);
    const float* source = args.normalize == Normalize::kLevel ? log_prob : logits;
    for (int i = 0; i < children; ++i) step_score[i] = source[child_code[i]];
    if (args.normalize == Normalize::kLegal) {
      LogSoftmax(step_score, children, Maximum(step_score, children, &finite), args.temperature, step_score);
    } else if (args.normalize == Normalize::kVocab) {
      SubtractNormalizer(args.log_normalizer[row], args.temperature, children, step_score);
    }
    for (int i = 0; i < children; ++i) {
      selection.Add(beam_score + step_score[i], range.first + i, row, step_score[i]);
    }
  }

  const std::vector<Candidate>& best = selection.Finish();
  const size_t count = best.size();
  out->count = static_cast<int>(count);
  out->parent.resize(count);
  out->code.resize(count);
  out->node.resize(count);
  out->score.resize(count);
  out->step_score.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const Candidate& c = best[i];
    out->parent[i] = c.row;
    out->code[i] = codes[c.node()];
    out->node[i] = c.node();
    out->score[i] = args.beam_score[c.row] + c.step_score;
    out->step_score[i] = c.step_score;
  }
  return Status();
}

}  // namespace genrecall
