#include "kernels/constrained_topk.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/gumbel.h"
#include "kernels/log_softmax.h"

namespace genrecall {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// x[i] = x[i] / temperature - log_normalizer.
void SubtractNormalizer(float log_normalizer, float temperature, int n, float* x) {
  for (int i = 0; i < n; ++i) {
    if (x[i] != -kInf) x[i] = x[i] / temperature - log_normalizer;
  }
}

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
  std::vector<uint32_t> legal;    // one row's children, when some are dead
  // With sampling: of one row's legal children, and of all rows' children, row r's from first_child[r] on.
  std::vector<float> legal_log_prob, perturbed;
  std::vector<float> child_log_prob;
  std::vector<size_t> first_child;
};

// Out of line: inlined, every access in the loops below would find its way to thread-local storage anew.
__attribute__((noinline)) Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// One row's legal children: a range of nodes, or those of it that are left.
struct Children {
  uint32_t first;
  const uint32_t* picked;  // null: first, first + 1, ...
  int count;
  uint32_t node(int i) const { return picked == nullptr ? first + i : picked[i]; }
};

Children LegalChildren(const TopkArgs& args, int row, std::vector<uint32_t>* picked) {
  const RecallIndex::Range range = args.index->children(args.level, args.node[row]);
  const uint32_t* end = args.dead + args.num_dead;
  const uint32_t* dead = std::lower_bound(args.dead, end, range.first);
  if (dead == end || *dead >= range.last) {
    return {range.first, nullptr, static_cast<int>(range.last - range.first)};
  }
  picked->clear();
  for (uint32_t node = range.first; node < range.last; ++node) {
    if (dead != end && *dead == node) {
      ++dead;
    } else {
      picked->push_back(node);
    }
  }
  return {range.first, picked->data(), static_cast<int>(picked->size())};
}

// Draws the perturbed values of one row's children, whose logits are `logits[code]`.
void Perturb(const TopkArgs& args, int row, const Children& children, const float* logits, Scratch* s) {
  const uint16_t* codes = args.index->codes(args.level);
  s->legal_log_prob.resize(children.count);
  s->perturbed.resize(children.count);
  float* log_prob = s->legal_log_prob.data();
  for (int i = 0; i < children.count; ++i) log_prob[i] = logits[codes[children.node(i)]];
  bool finite;
  const float max = Maximum(log_prob, children.count, &finite);
  LogSoftmax(log_prob, children.count, max, args.temperature, log_prob);

  const RecallIndex::Range range = args.index->children(args.level, args.node[row]);
  const size_t first = s->first_child[row] = s->child_log_prob.size();
  s->child_log_prob.resize(first + (range.last - range.first));
  for (int i = 0; i < children.count; ++i) {
    const uint32_t node = children.node(i);
    log_prob[i] += args.sampling->log_prob[row];
    s->child_log_prob[first + (node - range.first)] = log_prob[i];
    s->perturbed[i] = GumbelNoise(ChildStream(args.sampling->stream[row], codes[node]));
  }
  ConditionOnMaximum(log_prob, s->perturbed.data(), children.count, args.sampling->perturbed[row],
                     s->perturbed.data());
}

// The step scores of the row's children under args.normalize.
const float* StepScores(const TopkArgs& args, int row, const Children& children, const float* logits,
                        float max, Scratch* s) {
  const uint16_t* codes = args.index->codes(args.level);
  const int size = args.index->level_size(args.level);
  float* step_score = s->step_score.data();
  const float* source = logits;
  if (args.normalize == Normalize::kLevel) {
    LogSoftmax(logits, size, max, args.temperature, s->log_prob.data());
    if (children.count == size) return s->log_prob.data();  // every code has a child, in their order
    source = s->log_prob.data();
  }
  for (int i = 0; i < children.count; ++i) step_score[i] = source[codes[children.node(i)]];
  if (args.normalize == Normalize::kLegal) {
    bool finite;
    LogSoftmax(step_score, children.count, Maximum(step_score, children.count, &finite), args.temperature,
               step_score);
  } else if (args.normalize == Normalize::kVocab) {
    SubtractNormalizer(args.log_normalizer[row], args.temperature, children.count, step_score);
  }
  return step_score;
}

// Adds a row's children. Once the best are many most children are none of them, and are turned away by the
// block.
void AddAll(float beam_score, const float* step_score, const Children& children, int row,
            Selection* selection) {
  constexpr int kBlock = 16;
  int i = 0;
  for (; i + kBlock <= children.count; i += kBlock) {
    const float worst = selection->worst_score();
    int wanted = 0;
    for (int j = 0; j < kBlock; ++j) wanted |= beam_score + step_score[i + j] >= worst;
    if (!wanted) continue;
    for (int j = i; j < i + kBlock; ++j) {
      selection->Add(beam_score + step_score[j], children.node(j), row, step_score[j]);
    }
  }
  for (; i < children.count; ++i) {
    selection->Add(beam_score + step_score[i], children.node(i), row, step_score[i]);
  }
}

void WriteSurvivors(const TopkArgs& args, const std::vector<Candidate>& best, const Scratch& s,
                    TopkBeams* out) {
  const uint16_t* codes = args.index->codes(args.level);
  const size_t count = best.size(), sampled = args.sampling != nullptr ? count : 0;
  out->count = static_cast<int>(count);
  out->parent.resize(count);
  out->code.resize(count);
  out->node.resize(count);
  out->score.resize(count);
  out->step_score.resize(count);
  out->log_prob.resize(sampled);
  out->perturbed.resize(sampled);
  out->stream.resize(sampled);
  for (size_t i = 0; i < count; ++i) {
    const Candidate& c = best[i];
    out->parent[i] = c.row;
    out->code[i] = codes[c.node()];
    out->node[i] = c.node();
    out->score[i] = args.beam_score[c.row] + c.step_score;
    out->step_score[i] = c.step_score;
    if (sampled == 0) continue;
    const uint32_t first = args.index->children(args.level, args.node[c.row]).first;
    out->log_prob[i] = s.child_log_prob[s.first_child[c.row] + (c.node() - first)];
    out->perturbed[i] = c.score();
    out->stream[i] = ChildStream(args.sampling->stream[c.row], out->code[i]);
  }
}

}  // namespace

Status ConstrainedTopk(const TopkArgs& args, TopkBeams* out) {
  GENRECALL_RETURN_IF_ERROR(CheckArgs(args));
  Scratch& scratch = ThreadScratch();
  const int size = args.index->level_size(args.level);
  Selection& selection = scratch.selection;
  selection.Reset(args.width, args.caps);
  scratch.log_prob.resize(size);
  scratch.step_score.resize(size);
  scratch.child_log_prob.clear();
  scratch.first_child.resize(args.rows);

  for (int row = 0; row < args.rows; ++row) {
    const float* logits = args.logits + row * args.stride;
    bool finite;
    const float max = Maximum(logits, size, &finite);
    if (!finite) return BadLogit(logits, size, row, args.level);

    // Steps of a softmax are <= 0, and a child's perturbed value is no larger than its parent's: when nothing
    // under this row could be kept, its softmax is saved.
    const bool descends = args.sampling != nullptr || args.normalize != Normalize::kVocab;
    const float rank = args.sampling != nullptr ? args.sampling->perturbed[row] : args.beam_score[row];
    if (descends && rank < selection.worst_score()) continue;

    const Children children = LegalChildren(args, row, &scratch.legal);
    const float* step_score = StepScores(args, row, children, logits, max, &scratch);
    if (args.sampling != nullptr) {
      Perturb(args, row, children, logits, &scratch);
      for (int i = 0; i < children.count; ++i) {
        selection.Add(scratch.perturbed[i], children.node(i), row, step_score[i]);
      }
      continue;
    }
    AddAll(args.beam_score[row], step_score, children, row, &selection);
  }
  WriteSurvivors(args, selection.Finish(), scratch, out);
  return Status();
}

}  // namespace genrecall
