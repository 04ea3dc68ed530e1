// Attention on AMX tiles, for bf16; float32 goes to AVX-512.
//
// Everything stands on its side, a lane per query: scores^T = K q^T takes a page's keys as the row operand
// straight from memory, so the softmax runs down the keys with no sum across lanes, and its weights are
// already the column operand of out^T += V^T weights^T; only V is transposed, once per page for all queries
// of the block.
//
// Queries and weights enter as two bf16 numbers each, the nearest one and what it leaves, so that scores and
// outputs keep float32's accuracy but for 2^-17: products of tiles are cheap beside exp.
#include "kernels/amx_tile.h"
#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/attention_simd.h"
#include "kernels/query_block_simd.h"

namespace genrecall {
namespace {

constexpr int kGroup = kTileDim;                     // queries of a tile
constexpr int kKeyTiles = kPageTokens / kTileDim;    // of scores
constexpr int kKeySteps = kPageTokens / kTileDepth;  // of out += V^T weights
constexpr int64_t kTileBytesPerRow = kTileDim * 4;
static_assert(kKeyTiles == 4, "score tiles 0..3");

// x as hi + lo, both bf16 in the upper halves of 32 bits.
struct SplitVec {
  __m512i hi, lo;
};
inline SplitVec SplitBf16(Vec x) {
  const __m512i hi = RoundToBf16(x);
  return {hi, RoundToBf16(Sub(x, _mm512_castsi512_ps(hi)))};
}

// Pairs of bf16: `even` in the lower halves, `odd` in the upper ones.
inline __m512i Pair(__m512i even, __m512i odd) { return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd); }

// 32 numbers in order as 16 pairs, hi and lo.
inline SplitVec SplitPairs(const float* x) {
  const SplitVec a = SplitBf16(Load(x)), b = SplitBf16(Load(x + kLanes));
  const auto join = [](__m512i first, __m512i second) {
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(first, 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                              _mm512_cvtepi32_epi16(_mm512_srli_epi32(second, 16)), 1);
  };
  return {join(a.hi, b.hi), join(a.lo, b.lo)};
}

struct SplitTile {
  float hi[kTileFloats], lo[kTileFloats];  // pairs of bf16
};

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
    for (int64_t i = 0; i < out_tiles * kTileFloats; ++i) out_[i] = 0.0f;
    for (int i = 0; i < groups_ * kGroup; ++i) {
      max_[i] = -__builtin_inff();
      sum_[i] = 0.0f;
    }
  }

  void SetQuery(int i, const float* q, float scale) { block_.SetQuery(i, q, scale); }

  // Packs the queries: per group and step of 32 dimensions, [16 pairs of dimensions, 16 queries].
  void StartPages() {
    for (int g = 0; g < groups_; ++g) {
      for (int s = 0; s < dim_steps_; ++s) {
        Vec hi[kTileDim], lo[kTileDim];
        for (int i = 0; i < kGroup; ++i) {
          alignas(64) float q[kTileDepth] = {};
          if (g * kGroup + i < rows_) CopyQuery(g * kGroup + i, s * kTileDepth, q);
          const SplitVec pairs = SplitPairs(q);
          hi[i] = _mm512_castsi512_ps(pairs.hi);
          lo[i] = _mm512_castsi512_ps(pairs.lo);
        }
        Transpose(hi);
        Transpose(lo);
        SplitTile* tile = queries_ + g * dim_steps_ + s;
        for (int i = 0; i < kTileDim; ++i) {
          Store(tile->hi + i * kTileDim, hi[i]);
          Store(tile->lo + i * kTileDim, lo[i]);
        }
      }
    }
  }

  template <typename T, typename Valid>
  void Page(const T* k, const T* v, int keys, const Valid& valid) {
    const bf16* rows = PadKeys(k, keys);
    for (int j = 0; j < kPageTokens; ++j) {
      key_scale_[j] = j < keys ? KvScale(k + j * KvStride(k, dim_), dim_) : 0.0f;
      value_scale_[j] = j < keys ? KvScale(v + j * KvStride(v, dim_), dim_) : 0.0f;
    }
    TransposeValues(v, keys);
    for (int g = 0; g < groups_; ++g) {
      int32_t seen[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int n = g * kGroup + i < rows_ ? valid(g * kGroup + i) : keys;
        seen[i] = n < keys ? n : keys;
      }
      alignas(64) float scores[kPageTokens * kGroup];
      alignas(64) SplitTile weights[kKeySteps];
      Scores(g, rows, scores);
      Softmax(g, _mm512_loadu_si512(seen), scores, weights);
      AddValues(g, weights);
    }
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

  void CopyQuery(int i, int first, float* q) const {
    for (int d = 0; d < kTileDepth && first + d < dim_; ++d) q[d] = block_.query(i)[first + d];
  }

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
    for (int j = 0; j < kPageTokens; j += kTileDim) {
      for (int d = 0; d < dim_; d += kTileDim) {
        const int lanes = dim_ - d < kTileDim ? dim_ - d : kTileDim;
        Vec block[kTileDim];
        for (int i = 0; i < kTileDim; ++i) {
          block[i] = j + i < keys ? LoadPartial(v + (j + i) * KvStride(v, dim_) + d, lanes) : Zero();
        }
        Transpose(block);
        for (int i = 0; i < kTileDim; ++i) Store(values_ + int64_t{d + i} * kPageTokens + j, block[i]);
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
  // seen[i] keys. Scales of keys and values come in here, where each is one factor: times 1 for bf16.
  void Softmax(int g, __m512i seen, const float* scores, SplitTile* weights) {
    const auto score = [&](int j) { return Mul(Load(scores + j * kGroup), Set1(key_scale_[j])); };
    const auto visible = [&](int j) { return _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(j)); };
    const Vec old_max = Load(max_ + g * kGroup);
    Vec max = old_max;
    for (int j = 0; j < kPageTokens; ++j) {
      max = _mm512_mask_max_ps(max, visible(j), score(j), max);
    }
    Vec sum = Zero();
    for (int j = 0; j < kPageTokens; j += 2) {
      SplitVec pair[2];
      for (int i = 0; i < 2; ++i) {
        const Vec p = _mm512_maskz_mov_ps(visible(j + i), Exp(Sub(score(j + i), max)));
        sum = Add(sum, p);
        pair[i] = SplitBf16(Mul(p, Set1(value_scale_[j + i])));
      }
      SplitTile& tile = weights[j / kTileDepth];
      const int row = j % kTileDepth / 2 * kTileDim;
      Store(tile.hi + row, _mm512_castsi512_ps(Pair(pair[0].hi, pair[1].hi)));
      Store(tile.lo + row, _mm512_castsi512_ps(Pair(pair[0].lo, pair[1].lo)));
    }
    const Vec rescale = Exp(Sub(old_max, max));
    Store(max_ + g * kGroup, max);
    Store(sum_ + g * kGroup, Fma(Load(sum_ + g * kGroup), rescale, sum));
    if (_mm512_cmp_ps_mask(rescale, Set1(1.0f), _CMP_NEQ_UQ) == 0) return;  // times 1 changes nothing
    for (int64_t i = 0; i < int64_t{dim_tiles_} * kTileFloats; i += kLanes) {
      Store(OutTile(g, 0) + i, Mul(Load(OutTile(g, 0) + i), rescale));
    }
  }

  // out^T += V^T weights^T, four tiles of dimensions at a time.
  void AddValues(int g, const SplitTile* weights) {
    int t = 0;
    for (; t + 4 <= dim_tiles_; t += 4) AddValueTiles<4>(g, t, weights);
    for (; t < dim_tiles_; ++t) AddValueTiles<1>(g, t, weights);
  }

  template <int kTiles>
  void AddValueTiles(int g, int t, const SplitTile* weights) {
    TileLoad<0>(OutTile(g, t), kTileBytesPerRow);
    if constexpr (kTiles == 4) {
      TileLoad<1>(OutTile(g, t + 1), kTileBytesPerRow);
      TileLoad<2>(OutTile(g, t + 2), kTileBytesPerRow);
      TileLoad<3>(OutTile(g, t + 3), kTileBytesPerRow);
    }
    for (int s = 0; s < kKeySteps; ++s) {
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
