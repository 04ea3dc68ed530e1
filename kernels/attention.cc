// The split of attention over threads, and scalar attention: the specification.
#include "kernels/attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/scalar_math.h"
#include "kernels/thread_pool.h"

namespace genrecall {
namespace {

// Softmax attention of one query over keys that come in blocks: after each, what was summed so far is
// rescaled to the new maximum. `out` / `sum` is the answer.
class OnlineSoftmax {
 public:
  OnlineSoftmax(const float* q, int head_dim, float scale)
      : q_(q), head_dim_(head_dim), scale_(scale), out_(head_dim, 0.0f) {}

  // key(j), value(j): const T* [head_dim] of the block's j-th key.
  template <typename Key, typename Value>
  void Block(int keys, const Key& key, const Value& value) {
    scores_.resize(keys);
    float top = max_;
    for (int j = 0; j < keys; ++j) {
      scores_[j] = scale_ * Dot(key(j));
      top = std::max(top, scores_[j]);
    }
    const float rescale = Exp(max_ - top);
    max_ = top;
    sum_ *= rescale;
    for (float& o : out_) o *= rescale;
    for (int j = 0; j < keys; ++j) {
      const float p = Exp(scores_[j] - top);
      sum_ += p;
      const auto* v = value(j);
      for (int d = 0; d < head_dim_; ++d) out_[d] += p * Load(v[d]);
    }
  }

  template <typename T>
  void Finish(T* out) const {
    for (int d = 0; d < head_dim_; ++d) Store(out_[d] / sum_, out + d);
  }

 private:
  template <typename T>
  float Dot(const T* key) const {
    float sum = 0.0f;
    for (int d = 0; d < head_dim_; ++d) sum += q_[d] * Load(key[d]);
    return sum;
  }

  const float* q_;
  int head_dim_;
  float scale_;
  float max_ = -std::numeric_limits<float>::infinity();
  float sum_ = 0.0f;
  std::vector<float> out_, scores_;
};

// All of a sequence's first `keys` keys, page by page.
template <typename T>
void AttendPages(const KvPages& kv, int64_t head_offset, int head_dim, int keys, OnlineSoftmax* softmax) {
  for (int first = 0; first < keys; first += kPageTokens) {
    const T* k = static_cast<const T*>(kv.k[first / kPageTokens]) + head_offset;
    const T* v = static_cast<const T*>(kv.v[first / kPageTokens]) + head_offset;
    softmax->Block(
        std::min(kPageTokens, keys - first), [&](int j) { return k + j * head_dim; },
        [&](int j) { return v + j * head_dim; });
  }
}

template <typename T>
void PrefillOf(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  for (int r = first_row; r < last_row; ++r) {
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      OnlineSoftmax softmax(args.q + r * args.q_stride + h * dim, dim, args.scale);
      AttendPages<T>(args.kv, int64_t{kv_head} * kPageTokens * dim, dim, args.first_position + r + 1,
                     &softmax);
      softmax.Finish(static_cast<T*>(args.out) + (int64_t{r} * args.q_heads + h) * dim);
    }
  }
}

template <typename T>
void BeamsOf(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  for (int b = first_beam; b < last_beam; ++b) {
    const auto tail = [&](const void* const* rows, int j) {
      const int64_t row = args.ancestor[int64_t{j} * args.beams + b];
      return static_cast<const T*>(rows[j]) + (row * args.kv_heads + kv_head) * dim;
    };
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      OnlineSoftmax softmax(args.q + b * args.q_stride + h * dim, dim, args.scale);
      AttendPages<T>(args.prompt, int64_t{kv_head} * kPageTokens * dim, dim, args.prompt_tokens, &softmax);
      softmax.Block(
          args.tail_tokens, [&](int j) { return tail(args.tail_k, j); },
          [&](int j) { return tail(args.tail_v, j); });
      softmax.Finish(static_cast<T*>(args.out) + (int64_t{b} * args.q_heads + h) * dim);
    }
  }
}

void Prefill(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const auto run = args.dtype == DType::kF32 ? PrefillOf<float> : PrefillOf<bf16>;
  run(args, kv_head, first_row, last_row);
}

void Beams(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const auto run = args.dtype == DType::kF32 ? BeamsOf<float> : BeamsOf<bf16>;
  run(args, kv_head, first_beam, last_beam);
}

// A page is converted once per block of rows, so blocks are as long as leave every thread some.
template <typename Run>
void ForEachBlock(int kv_heads, int rows, ThreadPool* pool, const Run& run) {
  if (rows <= 0) return;
  const int threads = pool == nullptr ? 1 : pool->num_threads();
  const int wanted = std::max(1, threads * 4 / kv_heads);
  const int block = std::clamp((rows + wanted - 1) / wanted, 4, 32);
  const int blocks = (rows + block - 1) / block;
  ParallelFor(pool, int64_t{kv_heads} * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int first_row = static_cast<int>(i % blocks) * block;
      run(static_cast<int>(i / blocks), first_row, std::min(first_row + block, rows));
    }
  });
}

template <typename T>
void AppendRows(const float* x, int64_t stride, int n, int kv_heads, int head_dim, int first_position,
                void* const* pages) {
  for (int r = 0; r < n; ++r) {
    const int position = first_position + r;
    T* page = static_cast<T*>(pages[position / kPageTokens]);
    for (int h = 0; h < kv_heads; ++h) {
      T* to = page + (int64_t{h} * kPageTokens + position % kPageTokens) * head_dim;
      const float* from = x + r * stride + h * head_dim;
      for (int d = 0; d < head_dim; ++d) Store(from[d], to + d);
    }
  }
}

}  // namespace

const AttentionKernel kScalarAttention = {Prefill, Beams};

void RunPrefillAttention(const AttentionKernel& kernel, const PrefillAttentionArgs& args, ThreadPool* pool) {
  ForEachBlock(args.kv_heads, args.n, pool,
               [&](int head, int first, int last) { kernel.prefill(args, head, first, last); });
}

void RunBeamAttention(const AttentionKernel& kernel, const BeamAttentionArgs& args, ThreadPool* pool) {
  ForEachBlock(args.kv_heads, args.beams, pool,
               [&](int head, int first, int last) { kernel.beams(args, head, first, last); });
}

void KvAppend(DType dtype, const float* k, const float* v, int64_t stride, int n, int kv_heads, int head_dim,
              int first_position, KvPages pages) {
  const auto append = dtype == DType::kF32 ? AppendRows<float> : AppendRows<bf16>;
  append(k, stride, n, kv_heads, head_dim, first_position, pages.k);
  append(v, stride, n, kv_heads, head_dim, first_position, pages.v);
}

}  // namespace genrecall
