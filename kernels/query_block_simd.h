// A block of queries and their running softmax, over the vectors of a simd_*.h, which the including file has
// included before it.
//
// The queries of a block of rows that share a KV head go through each page together, as two small matrix
// products: scores = queries x keys^T, with a page's keys transposed once, and output += probabilities x
// values. In both, a number is one chain of fused multiply-adds in ascending order of head dimension or key,
// so neighbours in the block change nothing.
#ifndef GENRECALL_KERNELS_QUERY_BLOCK_SIMD_H_
#define GENRECALL_KERNELS_QUERY_BLOCK_SIMD_H_

#include "kernels/kv_vector.h"
#include "kernels/scratch.h"
#include "kernels/transformer_args.h"

namespace genrecall {
namespace {

static_assert(kPageTokens % (kTileVecs * kLanes) == 0, "scores come in whole tiles");
constexpr int kPageVecs = kPageTokens / kLanes;

inline int RoundUp(int n, int unit) { return (n + unit - 1) / unit * unit; }

// c[r][0..kVecs) += a[r][0..depth) x b[0..depth)[0..kVecs), kTileRows rows.
template <int kVecs>
inline void ProductTile(const float* a, int64_t a_stride, int depth, const float* b, int b_stride, float* c,
                        int c_stride) {
  Vec acc[kTileRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = Load(c + r * c_stride + v * kLanes);
  }
  for (int k = 0; k < depth; ++k) {
    Vec row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) row[v] = Load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const Vec x = Set1(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) AddProduct(acc[r][v], x, row[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) Store(c + r * c_stride + v * kLanes, acc[r][v]);
  }
}

// The same for any number of columns, a multiple of kLanes.
inline void Product(const float* a, int64_t a_stride, int depth, const float* b, int b_stride, float* c,
                    int c_stride, int columns) {
  int j = 0;
  for (; j + kTileVecs * kLanes <= columns; j += kTileVecs * kLanes) {
    ProductTile<kTileVecs>(a, a_stride, depth, b + j, b_stride, c + j, c_stride);
  }
  for (; j < columns; j += kLanes) ProductTile<1>(a, a_stride, depth, b + j, b_stride, c + j, c_stride);
}

// Numbers d.. of a key or value.
template <typename T>
inline Vec LoadKv(const T* v, int /*head_dim*/, int d, int lanes) {
  return LoadPartial(v + d, lanes);
}
inline Vec LoadKv(const int8_t* v, int head_dim, int d, int lanes) {
  return Mul(LoadPartial(v + d, lanes), Set1(KvScale(v, head_dim)));
}

// Queries of one KV head and their running softmax. Rows are padded to whole tiles with zero queries.
class QueryBlock {
 public:
  QueryBlock(int rows, int head_dim)
      : rows_(rows), padded_(RoundUp(rows, kTileRows)), dim_(head_dim), stride_(RoundUp(head_dim, kLanes)) {
    const int64_t floats = int64_t{padded_} * (2 * stride_ + 2) + int64_t{kPageTokens} * stride_ * 2 + kLanes;
    float* next = static_cast<float*>(ThreadScratch(ScratchArea::kTask, floats * int64_t{sizeof(float)}));
    const auto take = [&next](int64_t n) { return (next += n) - n; };
    keys_ = take(int64_t{kPageTokens} * stride_);
    values_ = take(int64_t{kPageTokens} * stride_);
    q_ = take(int64_t{padded_} * stride_);
    out_ = take(int64_t{padded_} * stride_);
    max_ = take(padded_);
    sum_ = take(padded_);
    for (int64_t i = 0; i < int64_t{padded_} * stride_; ++i) q_[i] = out_[i] = 0.0f;
    for (int i = 0; i < padded_; ++i) {
      max_[i] = -__builtin_inff();
      sum_[i] = 0.0f;
    }
  }

  // Query i, scaled.
  void SetQuery(int i, const float* q, float scale) {
    for (int d = 0; d < dim_; d += kLanes) {
      const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
      StorePartial(q_ + int64_t{i} * stride_ + d, Mul(LoadPartial(q + d, lanes), Set1(scale)), lanes);
    }
  }

  // Around the pages, for blocks that keep queries or outputs in another form (attention_amx.cc).
  void StartPages() {}
  void EndPages() {}

  // The next `keys` keys, 1..kPageTokens: k and v are [keys] vectors of T (kv_vector.h). valid(i) of them,
  // counted from the first, are query i's to see; it may be <= 0 or more than `keys`.
  template <typename T, typename Valid>
  void Page(const T* k, const T* v, int keys, const Valid& valid) {
    TransposeKeys(k, keys);
    WidenValues(v, keys);
    alignas(64) float scores[kTileRows * kPageTokens];
    for (int i = 0; i < padded_; i += kTileRows) {
      for (int j = 0; j < kTileRows * kPageTokens; j += kLanes) Store(scores + j, Zero());
      Product(q_ + int64_t{i} * stride_, stride_, dim_, keys_, kPageTokens, scores, kPageTokens, kPageTokens);
      for (int r = 0; r < kTileRows; ++r) {
        const int seen = i + r < rows_ ? valid(i + r) : 0;
        Softmax<kPageVecs>(i + r, seen < keys ? seen : keys, scores + r * kPageTokens);
      }
      Product(scores, kPageTokens, kPageTokens, values_, stride_, out_ + int64_t{i} * stride_, stride_,
              stride_);
    }
  }

  // One more block of a few keys that only query i has: key(j), value(j) are vectors of T.
  template <typename Key, typename Value>
  void OwnKeys(int i, int keys, const Key& key, const Value& value) {
    float* out = out_ + int64_t{i} * stride_;
    for (int first = 0; first < keys; first += kPageTokens) {
      const int n = keys - first < kPageTokens ? keys - first : kPageTokens;
      alignas(64) float scores[kPageTokens];
      for (int j = 0; j < n; ++j) scores[j] = Dot(i, key(first + j));
      n <= kLanes ? Softmax<1>(i, n, scores) : Softmax<kPageVecs>(i, n, scores);
      for (int j = 0; j < n; ++j) {
        const auto* v = value(first + j);
        for (int d = 0; d < dim_; d += kLanes) {
          const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
          Store(out + d, Fma(Set1(scores[j]), LoadKv(v, dim_, d, lanes), Load(out + d)));
        }
      }
    }
  }

  template <typename T>
  void Finish(int i, T* y) const {
    const Vec inverse = Set1(1.0f / sum_[i]);
    for (int d = 0; d < dim_; d += kLanes) {
      const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
      // + 0: whether an underflow left +0 or -0 may depend on how many masked keys were added.
      StorePartial(y + d, Add(Mul(Load(out_ + int64_t{i} * stride_ + d), inverse), Zero()), lanes);
    }
  }

  // Query i and its running state; rows of stride() floats.
  const float* query(int i) const { return q_ + int64_t{i} * stride_; }
  float* out(int i) { return out_ + int64_t{i} * stride_; }
  void SetMaxAndSum(int i, float max, float sum) { max_[i] = max, sum_[i] = sum; }
  int stride() const { return stride_; }

 private:
  template <typename T>
  float Dot(int i, const T* key) const {
    Vec sum = Zero();
    for (int d = 0; d < dim_; d += kLanes) {
      const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
      sum = Fma(Load(q_ + int64_t{i} * stride_ + d), LoadKv(key, dim_, d, lanes), sum);
    }
    return Sum(sum);
  }

  // Scores of query i's first `seen` keys of the block -> weights (0 for the others of kVecs vectors), and
  // rescales what was summed before.
  template <int kVecs>
  void Softmax(int i, int seen, float* scores) {
    const Vec lowest = Set1(-__builtin_inff());
    Vec s[kVecs];
    Vec top = lowest;
    for (int v = 0; v < kVecs; ++v) {
      s[v] = FillFrom(Load(scores + v * kLanes), seen - v * kLanes, lowest);
      top = Max(top, s[v]);
    }
    if (seen <= 0) {
      for (int v = 0; v < kVecs; ++v) Store(scores + v * kLanes, Zero());
      return;
    }
    const float old_max = max_[i], block_max = MaxLane(top);
    const float new_max = block_max > old_max ? block_max : old_max;
    Vec sum = Zero();
    for (int v = 0; v < kVecs; ++v) {
      s[v] = Exp(Sub(s[v], Set1(new_max)));
      Store(scores + v * kLanes, s[v]);
      sum = Add(sum, s[v]);
    }
    const float sum_here = Sum(sum);
    if (new_max == old_max) {
      sum_[i] += sum_here;
      return;
    }
    const Vec rescale = Exp(Set1(old_max - new_max));
    float factor[kLanes];
    Store(factor, rescale);
    sum_[i] = sum_[i] * factor[0] + sum_here;
    max_[i] = new_max;
    float* out = out_ + int64_t{i} * stride_;
    for (int d = 0; d < stride_; d += kLanes) Store(out + d, Mul(Load(out + d), rescale));
  }

  // keys_[d][j]; keys past the end are 0.
  template <typename T>
  void TransposeKeys(const T* k, int keys) {
    const int64_t stride = KvStride(k, dim_);
    for (int j = 0; j < kPageTokens; j += kLanes) {
      for (int d = 0; d < dim_; d += kLanes) {
        const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
        Vec v[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          v[i] = j + i < keys ? LoadKv(k + (j + i) * stride, dim_, d, lanes) : Zero();
        }
        Transpose(v);
        for (int i = 0; i < kLanes; ++i) Store(keys_ + int64_t{d + i} * kPageTokens + j, v[i]);
      }
    }
  }

  // values_[j][d]; values past the end are 0, since a weight of 0 does not hide what memory may hold.
  template <typename T>
  void WidenValues(const T* v, int keys) {
    const int64_t stride = KvStride(v, dim_);
    for (int j = 0; j < kPageTokens; ++j) {
      for (int d = 0; d < dim_; d += kLanes) {
        const int lanes = dim_ - d < kLanes ? dim_ - d : kLanes;
        Store(values_ + int64_t{j} * stride_ + d, j < keys ? LoadKv(v + j * stride, dim_, d, lanes) : Zero());
      }
    }
  }

  int rows_, padded_, dim_, stride_;  // stride_: floats of a query, output or value row
  float *keys_, *values_;             // the page: [stride_, kPageTokens], [kPageTokens, stride_]
  float *q_, *out_;                   // [padded_, stride_]
  float *max_, *sum_;                 // [padded_]
};

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_QUERY_BLOCK_SIMD_H_
