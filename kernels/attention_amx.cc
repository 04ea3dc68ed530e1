// Attention on AMX tiles, for bf16; float32 goes to AVX-512.
//
// Everything stands on its side, a lane per query: scores^T = K q^T takes a page's keys as the row operand
// straight from memory, so the softmax runs down the keys with no sum across lanes, and its weights are
// already the column operand of out^T += V^T weights^T; only V is transposed, once per page for all queries
// of the block.
//
// Queries and weights enter as two bf16 numbers each, the nearest one and what it leaves, so that scores and
// outputs keep float32's accuracy but for 2^-17: a group's products run beside another's softmax.
#include "kernels/amx_bf16.h"
#include "kernels/amx_tile.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/attention_simd.h"
#include "kernels/bf16_math_simd.h"
#include "kernels/query_block_simd.h"

namespace genrecall {
namespace {

constexpr int kGroup = kTileDim;                     // queries of a tile
constexpr int kKeyTiles = kPageTokens / kTileDim;    // of scores
constexpr int kKeySteps = kPageTokens / kTileDepth;  // of out += V^T weights
constexpr int64_t kTileBytesPerRow = kTileDim * 4;
static_assert(kKeyTiles == 4, "score tiles 0..3");
// Of a weight as a power of 2: nothing to a sum of 1 or more, and no subnormal even when scaled, which takes
// processors a hundred cycles.
constexpr float kLowestWeight = -100.0f;
static_assert(-kLowestWeight <= kExp2Limit, "");

struct SplitTile {
  float hi[kTileFloats], lo[kTileFloats];  // pairs of bf16
};

// Numbers that are bf16 already, as pairs: `even` in the lower halves.
inline Vec Pair(Vec even, Vec odd) {
  return _mm512_castsi512_ps(
      _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd)));
}

// Pairs of bf16 numbers and what they leave of `even` and `odd`.
inline void SplitPair(Vec even, Vec odd, float* hi, float* lo) {
  const __m512i pair = PairOfBf16(even, odd);
  Store(hi, _mm512_castsi512_ps(pair));
  Store(lo, _mm512_castsi512_ps(PairOfBf16(Sub(even, Even(pair)), Sub(odd, Odd(pair)))));
}

// QueryBlock's interface; the pages go through tiles, all else through a QueryBlock.
class TileQueryBlock {
 public:
  TileQueryBlock(int rows, int head_dim)
      : block_(rows, head_dim),
        rows_(rows),
        dim_(head_dim),
        groups_(RoundUp(rows, kGroup) / kGroup),
        dim_steps_(RoundUp(head_dim, kTileDepth) / kTileDepth),
        dim_tiles_(RoundUp(head_dim, kTileDim) / kTileDim) {
    const int64_t query_tiles = int64_t{groups_} * dim_steps_, out_tiles = int64_t{groups_} * dim_tiles_;
    const int64_t key_floats = int64_t{kPageTokens} * dim_steps_ * kTileDepth / 2;
    const int64_t value_floats = int64_t{dim_tiles_} * kTileDim * kPageTokens / 2;
    const int64_t floats = query_tiles * 2 * kTileFloats + out_tiles * kTileFloats + 2 * groups_ * kGroup +
                           key_floats + value_floats + 2 * kPageTokens;
    float* next = static_cast<float*>(ThreadScratch(ScratchArea::kTiles, floats * int64_t{sizeof(float)}));
    const auto take = [&next](int64_t n) { return (next += n) - n; };
    queries_ = reinterpret_cast<SplitTile*>(take(query_tiles * 2 * kTileFloats));
    out_ = take(out_tiles * kTileFloats);
    max_ = take(groups_ * kGroup);
    sum_ = take(groups_ * kGroup);
    keys_ = reinterpret_cast<bf16*>(take(key_floats));
    values_ = reinterpret_cast<bf16*>(take(value_floats));
    key_scale_ = take(kPageTokens);
    value_scale_ = take(kPageTokens);
    for (int i = 0; i < groups_ * kGroup; ++i) {
      max_[i] = -__builtin_inff();
      sum_[i] = 0.0f;
    }
  }

  void SetQuery(int i, const float* q, float scale) { block_.SetQuery(i, q, scale); }

  // Packs the queries: per group and step of 32 dimensions, [16 pairs of dimensions, 16 queries].
  void StartPages() {
    for (int g = 0; g < groups_; ++g) {
      for (int d = 0; d < dim_steps_ * kTileDepth; d += kLanes) {
        Vec v[kTileDim];
        for (int i = 0; i < kGroup; ++i) {
          const bool there = g * kGroup + i < rows_ && d < block_.stride();
          v[i] = there ? Load(block_.query(g * kGroup + i) + d) : Zero();
        }
        Transpose(v);
        SplitTile* tile = queries_ + g * dim_steps_ + d / kTileDepth;
        for (int i = 0; i < kLanes; i += 2) {
          const int row = (d % kTileDepth + i) / 2 * kTileDim;
          SplitPair(v[i], v[i + 1], tile->hi + row, tile->lo + row);
        }
      }
    }
  }

  template <typename T, typename Valid>
  void Page(const T* k, const T* v, int keys, const Valid& valid) {
    constexpr bool kScaled = sizeof(T) == sizeof(int8_t);  // else bf16
    const bf16* rows = PadKeys(k, keys);
    if (kScaled) {
      for (int j = 0; j < kPageTokens; ++j) {
        key_scale_[j] = j < keys ? KvScale(k + j * KvStride(k, dim_), dim_) : 0.0f;
        value_scale_[j] = j < keys ? KvScale(v + j * KvStride(v, dim_), dim_) : 0.0f;
      }
    }
    TransposeValues(v, keys);
    // The next group's scores before this one's softmax, which the processor computes beside the tiles.
    alignas(64) float scores[2][kPageTokens * kGroup];
    alignas(64) SplitTile weights[kKeySteps];
    Scores(0, rows, scores[0]);
    for (int g = 0; g < groups_; ++g) {
      if (g + 1 < groups_) Scores(g + 1, rows, scores[(g + 1) % 2]);
      int32_t seen[kGroup];
      bool all = true;
      for (int i = 0; i < kGroup; ++i) {
        const int n = g * kGroup + i < rows_ ? valid(g * kGroup + i) : keys;
        seen[i] = n < keys ? n : keys;
        all = all && n >= keys;
      }
      all ? Softmax<kScaled, false>(g, keys, seen, scores[g % 2], weights)
          : Softmax<kScaled, true>(g, keys, seen, scores[g % 2], weights);
      AddValues(g, (keys + kTileDepth - 1) / kTileDepth, weights);
    }
    first_page_ = false;
  }

  void EndPages() {
    for (int g = 0; g < groups_; ++g) {
      for (int t = 0; t < dim_tiles_; ++t) {
        Vec v[kTileDim];
        for (int i = 0; i < kTileDim; ++i) v[i] = Load(OutTile(g, t) + i * kTileDim);
        Transpose(v);
        for (int i = 0; i < kGroup && g * kGroup + i < rows_; ++i) {
          Store(block_.out(g * kGroup + i) + t * kTileDim, v[i]);
        }
      }
    }
    for (int i = 0; i < rows_; ++i) block_.SetMaxAndSum(i, max_[i], sum_[i]);
  }

  template <typename Key, typename Value>
  void OwnKeys(int i, int keys, const Key& key, const Value& value) {
    block_.OwnKeys(i, keys, key, value);
  }

  template <typename T>
  void Finish(int i, T* y) const {
    block_.Finish(i, y);
  }

 private:
  float* OutTile(int g, int t) { return out_ + (int64_t{g} * dim_tiles_ + t) * kTileFloats; }

  // Keys as [kPageTokens, dim_steps_ * 32], without their scales: the page itself where its rows are whole
  // and it is full. bf16 holds an int8 number exactly.
  const bf16* PadKeys(const bf16* k, int keys) {
    if (dim_ % kTileDepth == 0 && keys == kPageTokens) return k;
    return CopyKeys(k, keys);
  }
  const bf16* PadKeys(const int8_t* k, int keys) { return CopyKeys(k, keys); }

  template <typename T>
  const bf16* CopyKeys(const T* k, int keys) {
    const int stride = dim_steps_ * kTileDepth;
    for (int j = 0; j < kPageTokens; ++j) {
      for (int d = 0; d < stride; d += kLanes) {
        const int left = dim_ - d, lanes = left < 0 ? 0 : left < kLanes ? left : kLanes;
        Store(keys_ + j * stride + d, j < keys ? LoadPartial(k + j * KvStride(k, dim_) + d, lanes) : Zero());
      }
    }
    return keys_;
  }

  // values_[dim_tiles_ * 16][kPageTokens], without their scales; dimensions and keys past the end are 0.
  template <typename T>
  void TransposeValues(const T* v, int keys) {
    for (int d = 0; d < dim_; d += kTileDim) {
      const int lanes = dim_ - d < kTileDim ? dim_ - d : kTileDim;
      const auto value = [&](int j) {
        return j < keys ? LoadPartial(v + j * KvStride(v, dim_) + d, lanes) : Zero();
      };
      for (int j = 0; j < kPageTokens; j += 2 * kTileDim) {
        Vec pairs[kTileDim];
        for (int i = 0; i < kTileDim; ++i) pairs[i] = Pair(value(j + 2 * i), value(j + 2 * i + 1));
        Transpose(pairs);
        for (int i = 0; i < kTileDim; ++i) {
          _mm512_storeu_ps(values_ + int64_t{d + i} * kPageTokens + j, pairs[i]);
        }
      }
    }
  }

  // scores[key][query] = key . query.
  void Scores(int g, const bf16* keys, float* scores) {
    const int64_t stride = int64_t{dim_steps_} * kTileDepth * 2;
    TileZero<0>();
    TileZero<1>();
    TileZero<2>();
    TileZero<3>();
    for (int s = 0; s < dim_steps_; ++s) {
      const SplitTile& q = queries_[g * dim_steps_ + s];
      AddScores(keys + s * kTileDepth, stride, q.hi);
      AddScores(keys + s * kTileDepth, stride, q.lo);
    }
    TileStore<0>(scores, kTileBytesPerRow);
    TileStore<1>(scores + kTileFloats, kTileBytesPerRow);
    TileStore<2>(scores + 2 * kTileFloats, kTileBytesPerRow);
    TileStore<3>(scores + 3 * kTileFloats, kTileBytesPerRow);
  }

  // Four products in flight hide a tile product's latency, so hi and lo are not summed back to back.
  static void AddScores(const bf16* keys, int64_t stride, const float* queries) {
    const char* rows = reinterpret_cast<const char*>(keys);
    TileLoad<6>(queries, kTileBytesPerRow);
    TileLoad<4>(rows, stride);
    TileDot<0, 4, 6>();
    TileLoad<5>(rows + kTileDim * stride, stride);
    TileDot<1, 5, 6>();
    TileLoad<4>(rows + 2 * kTileDim * stride, stride);
    TileDot<2, 4, 6>();
    TileLoad<5>(rows + 3 * kTileDim * stride, stride);
    TileDot<3, 5, 6>();
  }

  // scores -> weights, as pairs of successive keys; rescales what was summed before. Query i sees the first
  // seen[i] of `keys` keys, without kMasked all. Scales of keys and values (kScaled) come in here, where each
  // is one factor.
  template <bool kScaled, bool kMasked>
  void Softmax(int g, int keys, const int32_t* seen, const float* scores, SplitTile* weights) {
    const __m512i seen_lanes = _mm512_loadu_si512(seen);
    const auto visible = [&](int j) { return _mm512_cmpgt_epi32_mask(seen_lanes, _mm512_set1_epi32(j)); };
    const auto score = [&](int j) {
      const Vec s = Load(scores + j * kGroup);
      return kScaled ? Mul(s, Set1(key_scale_[j])) : s;
    };
    constexpr int kChains = 4;  // a maximum takes several cycles
    const Vec old_max = Load(max_ + g * kGroup);
    Vec max[kChains] = {old_max, old_max, old_max, old_max};
    for (int j = 0; j < keys; j += kChains) {
      for (int i = 0; i < kChains && j + i < keys; ++i) {
        const Vec s = score(j + i);
        max[i] = kMasked ? _mm512_mask_max_ps(max[i], visible(j + i), s, max[i]) : Max(s, max[i]);
      }
    }
    const Vec new_max = Max(Max(max[0], max[1]), Max(max[2], max[3]));
    Vec sum = Zero();
    const auto weight = [&](int j) {
      if (j >= keys) return Zero();
      const Vec t = Max(Set1(kLowestWeight), Mul(Sub(score(j), new_max), Set1(kLog2e)));  // so NaN stays
      const Vec p = kMasked ? _mm512_maskz_mov_ps(visible(j), Exp2ForBf16(t)) : Exp2ForBf16(t);
      sum = Add(sum, p);
      return kScaled ? Mul(p, Set1(value_scale_[j])) : p;
    };
    for (int j = 0; j < RoundUp(keys, kTileDepth); j += 2) {
      const Vec even = weight(j), odd = weight(j + 1);
      SplitTile& tile = weights[j / kTileDepth];
      const int row = j % kTileDepth / 2 * kTileDim;
      SplitPair(even, odd, tile.hi + row, tile.lo + row);
    }
    const Vec rescale = Exp(Sub(old_max, new_max));
    Store(max_ + g * kGroup, new_max);
    Store(sum_ + g * kGroup, Fma(Load(sum_ + g * kGroup), rescale, sum));
    if (first_page_ || _mm512_cmp_ps_mask(rescale, Set1(1.0f), _CMP_NEQ_UQ) == 0) return;
    for (int64_t i = 0; i < int64_t{dim_tiles_} * kTileFloats; i += kLanes) {
      Store(OutTile(g, 0) + i, Mul(Load(OutTile(g, 0) + i), rescale));
    }
  }

  // out^T += V^T weights^T over so many steps of keys, four tiles of dimensions at a time.
  void AddValues(int g, int steps, const SplitTile* weights) {
    int t = 0;
    for (; t + 4 <= dim_tiles_; t += 4) AddValueTiles<4>(g, t, steps, weights);
    for (; t < dim_tiles_; ++t) AddValueTiles<1>(g, t, steps, weights);
  }

  template <int kTile>
  void StartOutTile(const float* out) {
    first_page_ ? TileZero<kTile>() : TileLoad<kTile>(out, kTileBytesPerRow);
  }

  template <int kTiles>
  void AddValueTiles(int g, int t, int steps, const SplitTile* weights) {
    StartOutTile<0>(OutTile(g, t));
    if constexpr (kTiles == 4) {
      StartOutTile<1>(OutTile(g, t + 1));
      StartOutTile<2>(OutTile(g, t + 2));
      StartOutTile<3>(OutTile(g, t + 3));
    }
    for (int s = 0; s < steps; ++s) {
      const float* const parts[2] = {weights[s].hi, weights[s].lo};
      for (const float* part : parts) {
        TileLoad<6>(part, kTileBytesPerRow);
        TileLoad<4>(ValueTile(t, s), kPageTokens * 2);
        TileDot<0, 4, 6>();
        if constexpr (kTiles == 4) {
          TileLoad<5>(ValueTile(t + 1, s), kPageTokens * 2);
          TileDot<1, 5, 6>();
          TileLoad<4>(ValueTile(t + 2, s), kPageTokens * 2);
          TileDot<2, 4, 6>();
          TileLoad<5>(ValueTile(t + 3, s), kPageTokens * 2);
          TileDot<3, 5, 6>();
        }
      }
    }
    TileStore<0>(OutTile(g, t), kTileBytesPerRow);
    if constexpr (kTiles == 4) {
      TileStore<1>(OutTile(g, t + 1), kTileBytesPerRow);
      TileStore<2>(OutTile(g, t + 2), kTileBytesPerRow);
      TileStore<3>(OutTile(g, t + 3), kTileBytesPerRow);
    }
  }

  const bf16* ValueTile(int t, int s) const {
    return values_ + int64_t{t} * kTileDim * kPageTokens + s * kTileDepth;
  }

  QueryBlock block_;
  int rows_, dim_, groups_, dim_steps_, dim_tiles_;
  bool first_page_ = true;
  SplitTile* queries_;               // [groups_, dim_steps_]
  float* out_;                       // [groups_, dim_tiles_, 16 dimensions, 16 queries]
  float *max_, *sum_;                // [groups_, 16]
  bf16 *keys_, *values_;             // the page: padded keys, transposed values
  float *key_scale_, *value_scale_;  // [kPageTokens] of the page
};

void AmxPrefill(const PrefillAttentionArgs& args, int kv_head, int first_row, int last_row) {
  if (args.dtype == DType::kF32) return kAvx512Attention.prefill(args, kv_head, first_row, last_row);
  TileConfigure();
  const bool int8 = args.kv_dtype == DType::kI8;
  const auto run = int8 ? PrefillOf<TileQueryBlock, int8_t, bf16> : PrefillOf<TileQueryBlock, bf16, bf16>;
  run(args, kv_head, first_row, last_row);
  TileRelease();
}

void AmxBeams(const BeamAttentionArgs& args, int kv_head, int first_beam, int last_beam) {
  if (args.dtype == DType::kF32) return kAvx512Attention.beams(args, kv_head, first_beam, last_beam);
  TileConfigure();
  const bool int8 = args.kv_dtype == DType::kI8;
  const auto run = int8 ? BeamsOf<TileQueryBlock, int8_t, bf16> : BeamsOf<TileQueryBlock, bf16, bf16>;
  run(args, kv_head, first_beam, last_beam);
  TileRelease();
}

}  // namespace

const AttentionKernel kAmxAttention = {AmxPrefill, AmxBeams};

}  // namespace genrecall
