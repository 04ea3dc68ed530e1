// The split of attention over threads, and scalar attention: the specification.
#include "kernels/attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/kv_vector.h"
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
      const float scale = KvScale(v, head_dim_);
      for (int d = 0; d < head_dim_; ++d) out_[d] += p * (Load(v[d]) * scale);
    }
  }

  template <typename T>
  void Finish(T* out) const {
    for (int d = 0; d < head_dim_; ++d) Store(out_[d] / sum_, out + d);
  }

 private:
  template <typename T>
  float Dot(const T* key) const {
    const float scale = KvScale(key, head_dim_);
    float sum = 0.0f;
    for (int d = 0; d < head_dim_; ++d) sum += q_[d] * (Load(key[d]) * scale);
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
void AttendPages(const KvPages& kv, int kv_head, int head_dim, int keys, OnlineSoftmax* softmax) {
  const int64_t stride = KvStride(static_cast<const T*>(nullptr), head_dim);
  for (int first = 0; first < keys; first += kPageTokens) {
    const T* k = static_cast<const T*>(kv.k[first / kPageTokens]) + int64_t{kv_head} * kPageTokens * stride;
    const T* v = static_cast<const T*>(kv.v[first / kPageTokens]) + int64_t{kv_head} * kPageTokens * stride;
    softmax->Block(
        std::min(kPageTokens, keys - first), [&](int j) { return k + j * stride; },
        [&](int j) { return v + j * stride; });
  }
}

// T: of keys and values; Out: of the output.
template <typename T, typename Out>
void PrefillOf(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  for (int r = first_row; r < last_row; ++r) {
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      OnlineSoftmax softmax(args.q + r * args.q_stride + h * dim, dim, args.scale);
      AttendPages<T>(args.kv, kv_head, dim, args.first_position + r + 1, &softmax);
      softmax.Finish(static_cast<Out*>(args.out) + (int64_t{r} * args.q_heads + h) * dim);
    }
  }
}

template <typename T, typename Out>
void BeamsOf(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const int group = args.q_heads / args.kv_heads, dim = args.head_dim;
  const int64_t stride = KvStride(static_cast<const T*>(nullptr), dim);
  for (int b = first_beam; b < last_beam; ++b) {
    const auto tail = [&](const void* const* rows, int j) {
      const int64_t row = args.ancestor[int64_t{j} * args.beams + b];
      return static_cast<const T*>(rows[j]) + (row * args.kv_heads + kv_head) * stride;
    };
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      OnlineSoftmax softmax(args.q + b * args.q_stride + h * dim, dim, args.scale);
      AttendPages<T>(args.prompt, kv_head, dim, args.prompt_tokens, &softmax);
      softmax.Block(
          args.tail_tokens, [&](int j) { return tail(args.tail_k, j); },
          [&](int j) { return tail(args.tail_v, j); });
      softmax.Finish(static_cast<Out*>(args.out) + (int64_t{b} * args.q_heads + h) * dim);
    }
  }
}

void Prefill(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  const bool f32 = args.dtype == DType::kF32;
  const auto run = args.kv_dtype == DType::kI8 ? (f32 ? PrefillOf<int8_t, float> : PrefillOf<int8_t, bf16>)
                                               : (f32 ? PrefillOf<float, float> : PrefillOf<bf16, bf16>);
  run(args, kv_head, first_row, last_row);
}

void Beams(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  const bool f32 = args.dtype == DType::kF32;
  const auto run = args.kv_dtype == DType::kI8 ? (f32 ? BeamsOf<int8_t, float> : BeamsOf<int8_t, bf16>)
                                               : (f32 ? BeamsOf<float, float> : BeamsOf<bf16, bf16>);
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

void AppendRows(ConvertVector convert, DType dtype, const float* x, int64_t stride, int n, int kv_heads,
                int head_dim, int first_position, void* const* pages) {
  const int64_t vector = KvVectorBytes(dtype, head_dim);
  for (int r = 0; r < n; ++r) {
    const int position = first_position + r;
    uint8_t* page = static_cast<uint8_t*>(pages[position / kPageTokens]);
    for (int h = 0; h < kv_heads; ++h) {
      uint8_t* to = page + (int64_t{h} * kPageTokens + position % kPageTokens) * vector;
      convert(dtype, x + r * stride + h * head_dim, head_dim, to);
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

void KvAppend(ConvertVector convert, DType dtype, const float* k, const float* v, int64_t stride, int n,
              int kv_heads, int head_dim, int first_position, KvPages pages) {
  AppendRows(convert, dtype, k, stride, n, kv_heads, head_dim, first_position, pages.k);
  AppendRows(convert, dtype, v, stride, n, kv_heads, head_dim, first_position, pages.v);
}

}  // namespace genrecall
