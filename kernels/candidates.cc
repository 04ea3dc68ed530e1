#include "kernels/candidates.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

namespace genrecall {
namespace {

uint64_t CandidateKey(float score, uint32_t node) {
  score += 0.0f;  // -0 and +0 tie
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ascending = (bits >> 31) ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | node;
}

float ScoreOfKey(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  const uint32_t bits = (ascending >> 31) ? ascending & 0x7fffffffu : ~ascending;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace

float Candidate::score() const { return ScoreOfKey(key); }

void Selection::Reset(int width, std::vector<GroupCap> caps) {
  width_ = static_cast<size_t>(width);
  caps_ = std::move(caps);
  capacity_ = caps_.empty() ? std::max<size_t>(2 * width_, 256) : std::numeric_limits<size_t>::max();
  kept_.clear();
  worst_ = ~uint64_t{0};
  worst_score_ = -std::numeric_limits<float>::infinity();
}

void Selection::Add(float score, uint32_t node, int32_t row, float step_score) {
  if (score < worst_score_) return;
  const uint64_t key = CandidateKey(score, node);
  if (key > worst_) return;
  kept_.push_back({key, row, step_score});
  if (kept_.size() == capacity_) Halve();
}

void Selection::Halve() {
  std::nth_element(kept_.begin(), kept_.begin() + (width_ - 1), kept_.end());
  kept_.resize(width_);
  worst_ = kept_.back().key;
  worst_score_ = ScoreOfKey(worst_);
}

const std::vector<Candidate>& Selection::Finish() {
  if (!caps_.empty()) {
    TakeWithinCaps();
    return taken_;
  }
  if (kept_.size() > width_) Halve();
  std::sort(kept_.begin(), kept_.end());
  return kept_;
}

void Selection::TakeWithinCaps() {
  taken_.clear();
  std::vector<std::unordered_map<uint32_t, int>> used(caps_.size());
  const auto worse = [](const Candidate& a, const Candidate& b) { return b < a; };  // the best on top
  std::make_heap(kept_.begin(), kept_.end(), worse);
  while (!kept_.empty() && taken_.size() < width_) {
    std::pop_heap(kept_.begin(), kept_.end(), worse);
    const Candidate candidate = kept_.back();
    kept_.pop_back();
    bool allowed = true;
    for (size_t i = 0; i < caps_.size() && allowed; ++i) {
      const auto it = used[i].find(caps_[i].group[candidate.row * caps_[i].stride]);
      allowed = it == used[i].end() || it->second < caps_[i].cap;
    }
    if (!allowed) continue;
    for (size_t i = 0; i < caps_.size(); ++i) {
      ++used[i][caps_[i].group[candidate.row * caps_[i].stride]];
    }
    taken_.push_back(candidate);
  }
}

}  // namespace genrecall
