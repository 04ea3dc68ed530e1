// C doors to the AMX kernels and to one tile product, for tests/test_amx_emulation.py: compiled with
// -DGENRECALL_EMULATE_AMX.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/amx_tile.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/int8_panels.h"
#include "kernels/kv_vector.h"
#include "kernels/row_kernels.h"
#include "kernels/thread_pool.h"

namespace genrecall {
namespace {

std::vector<bf16> ToBf16Vector(const float* x, int64_t size) {
  std::vector<bf16> y(size);
  for (int64_t i = 0; i < size; ++i) y[i] = ToBf16(x[i]);
  return y;
}

// A sequence's pages; what is not written holds NaN, so that reading it shows.
struct Pages {
  Pages(DType dtype, const float* k_rows, const float* v_rows, int tokens, int kv_heads, int dim) {
    const int64_t bytes = kv_heads * kPageTokens * KvVectorBytes(dtype, dim);
    for (int first = 0; first < tokens; first += kPageTokens) {
      for (auto* pages : {&k, &v}) pages->emplace_back(bytes, uint8_t{0xff});
    }
    for (auto& page : k) k_pointers.push_back(page.data());
    for (auto& page : v) v_pointers.push_back(page.data());
    KvAppend(kAvx512RowKernels.convert, dtype, k_rows, v_rows, int64_t{kv_heads} * dim, tokens, kv_heads, dim,
             0, view());
  }
  KvPages view() const { return {k_pointers.data(), v_pointers.data()}; }
  std::vector<std::vector<uint8_t>> k, v;
  std::vector<void*> k_pointers, v_pointers;
};

// vectors * dim floats as vectors of that dtype (kv_vector.h).
std::vector<uint8_t> ToVectors(DType dtype, const float* x, int64_t vectors, int dim) {
  const int64_t bytes = KvVectorBytes(dtype, dim);
  std::vector<uint8_t> y(vectors * bytes);
  for (int64_t i = 0; i < vectors; ++i) {
    kAvx512RowKernels.convert(dtype, x + i * dim, dim, y.data() + i * bytes);
  }
  return y;
}

void CopyOut(const std::vector<bf16>& from, float* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = ToFloat(from[i]);
}

}  // namespace
}  // namespace genrecall

#define EXPORT extern "C" __attribute__((visibility("default")))

// y [n, outs] in and out; for epilogue 2 (SwiGLU) [n, outs / 2]. dtype 1: x and w are rounded to bf16 first.
EXPORT void genrecall_amx_gemm(int dtype, const float* x, const float* w, const float* bias, int64_t n,
                               int64_t k, int64_t outs, int epilogue, float* y, int threads) {
  using namespace genrecall;
  ThreadPool pool(threads);
  const std::vector<bf16> xb = ToBf16Vector(x, n * k), wb = ToBf16Vector(w, outs * k);
  const bool f32 = dtype == 0;
  GemmArgs args;
  args.w = {f32 ? DType::kF32 : DType::kBF16, f32 ? static_cast<const void*>(w) : wb.data(), outs, k};
  args.x_dtype = args.w.dtype;
  args.x = f32 ? static_cast<const void*>(x) : xb.data();
  args.n = n;
  args.bias = bias;
  args.epilogue = static_cast<Epilogue>(epilogue);
  args.y = y;
  args.ldy = outs;
  std::vector<bf16> half(f32 ? 0 : n * outs / 2);
  args.y_t = f32 ? static_cast<void*>(y) : half.data();
  RunGemm(kAmxGemm, args, &pool);
  if (args.epilogue == Epilogue::kSwiGlu) {
    for (size_t i = 0; i < half.size(); ++i) y[i] = ToFloat(half[i]);
  }
}

// The same for int8 weights [outs, k] with a scale for each row; quantize_inputs: W8A8, else W8A16.
EXPORT void genrecall_amx_int8_gemm(int dtype, bool quantize_inputs, const float* x, const int8_t* w,
                                    const float* scale, const float* bias, int64_t n, int64_t k, int64_t outs,
                                    int epilogue, float* y, int threads) {
  using namespace genrecall;
  ThreadPool pool(threads);
  const std::vector<bf16> xb = ToBf16Vector(x, n * k);
  const int parts = static_cast<Epilogue>(epilogue) == Epilogue::kSwiGlu ? 2 : 1;
  std::vector<const int8_t*> rows;
  for (int64_t o = 0; o < outs; ++o) rows.push_back(w + o * k);
  std::vector<int32_t> row_sum(outs);
  const int64_t bytes = parts * Int8PartBytes(outs, k, parts);
  const std::unique_ptr<int8_t, void (*)(void*)> panels(static_cast<int8_t*>(std::aligned_alloc(64, bytes)),
                                                        std::free);
  PackInt8Panels(rows, k, parts, panels.get(), row_sum.data());
  const bool f32 = dtype == 0;
  GemmArgs args;
  args.w = {DType::kI8, w, outs, k, scale};
  if (quantize_inputs) {
    args.w.data = panels.get();
    args.w.row_sum = row_sum.data();
    args.w.parts = parts;
  }
  args.x_dtype = f32 ? DType::kF32 : DType::kBF16;
  args.x = f32 ? static_cast<const void*>(x) : xb.data();
  args.n = n;
  args.bias = bias;
  args.epilogue = static_cast<Epilogue>(epilogue);
  args.y = y;
  args.ldy = outs;
  std::vector<bf16> half(f32 ? 0 : n * outs / 2);
  args.y_t = f32 ? static_cast<void*>(y) : half.data();
  RunGemm(quantize_inputs ? kAmxInt8Gemm : kAmxGemm, args, &pool);
  if (args.epilogue == Epilogue::kSwiGlu) {
    for (size_t i = 0; i < half.size(); ++i) y[i] = ToFloat(half[i]);
  }
}

// c [16, 16] += a [16, 64] x b [16 groups, 16, 4] of signed bytes.
EXPORT void genrecall_tile_dot_int8(const int8_t* a, const int8_t* b, int32_t* c) {
  using namespace genrecall;
  TileLoad<0>(c, 64);
  TileLoad<1>(a, 64);
  TileLoad<2>(b, 64);
  TileDotInt8<0, 1, 2>();
  TileStore<0>(c, 64);
}

// c [16, 16] += a [16, 32] x b [16 pairs, 16, 2], all bit patterns as the tiles hold them.
EXPORT void genrecall_tile_dot(const uint16_t* a, const uint16_t* b, float* c) {
  using namespace genrecall;
  TileLoad<0>(c, 64);
  TileLoad<1>(a, 64);
  TileLoad<2>(b, 64);
  TileDot<0, 1, 2>();
  TileStore<0>(c, 64);
}

// heads: q_heads, kv_heads, head_dim. q [n, q_heads, d]; k, v [first_position + n, kv_heads, d]; out [n,
// q_heads * d].
EXPORT void genrecall_amx_prefill(const int32_t* heads, const float* q, const float* k, const float* v, int n,
                                  int first_position, float scale, float* out, int threads, bool int8_kv) {
  using namespace genrecall;
  ThreadPool pool(threads);
  const DType kv_dtype = int8_kv ? DType::kI8 : DType::kBF16;
  const Pages pages(kv_dtype, k, v, first_position + n, heads[1], heads[2]);
  std::vector<bf16> result(static_cast<size_t>(n) * heads[0] * heads[2]);
  PrefillAttentionArgs args{DType::kBF16,
                            kv_dtype,
                            heads[0],
                            heads[1],
                            heads[2],
                            scale,
                            q,
                            int64_t{heads[0]} * heads[2],
                            n,
                            first_position,
                            pages.view(),
                            result.data()};
  RunPrefillAttention(kAmxAttention, args, &pool);
  CopyOut(result, out);
}

// sizes: beams, prompt tokens, tail tokens. q [beams, q_heads, d]; k, v [prompt, kv_heads, d]; tail_k, tail_v
// [tail, beams, kv_heads, d]; ancestor [tail, beams].
EXPORT void genrecall_amx_beams(const int32_t* heads, const int32_t* sizes, const float* q, const float* k,
                                const float* v, const float* tail_k, const float* tail_v,
                                const int32_t* ancestor, float scale, float* out, int threads, bool int8_kv) {
  using namespace genrecall;
  ThreadPool pool(threads);
  const int beams = sizes[0], tail = sizes[2];
  const DType kv_dtype = int8_kv ? DType::kI8 : DType::kBF16;
  const Pages pages(kv_dtype, k, v, sizes[1], heads[1], heads[2]);
  const int64_t vectors = int64_t{beams} * heads[1], row = vectors * KvVectorBytes(kv_dtype, heads[2]);
  const std::vector<uint8_t> own_k = ToVectors(kv_dtype, tail_k, tail * vectors, heads[2]);
  const std::vector<uint8_t> own_v = ToVectors(kv_dtype, tail_v, tail * vectors, heads[2]);
  std::vector<const void*> k_rows, v_rows;
  for (int j = 0; j < tail; ++j) {
    k_rows.push_back(own_k.data() + j * row);
    v_rows.push_back(own_v.data() + j * row);
  }
  std::vector<bf16> result(static_cast<size_t>(beams) * heads[0] * heads[2]);
  BeamAttentionArgs args{DType::kBF16,
                         kv_dtype,
                         heads[0],
                         heads[1],
                         heads[2],
                         scale,
                         q,
                         int64_t{heads[0]} * heads[2],
                         beams,
                         sizes[1],
                         pages.view(),
                         tail,
                         k_rows.data(),
                         v_rows.data(),
                         ancestor,
                         result.data()};
  RunBeamAttention(kAmxAttention, args, &pool);
  CopyOut(result, out);
}
