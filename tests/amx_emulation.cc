// C doors to the AMX gemm and to one tile product, for tests/test_amx_emulation.py: compiled with
// -DGENRECALL_EMULATE_AMX.
#include <cstdint>
#include <vector>

#include "kernels/amx_tile.h"
#include "kernels/gemm.h"
#include "kernels/thread_pool.h"

namespace genrecall {
namespace {

std::vector<bf16> ToBf16Vector(const float* x, int64_t size) {
  std::vector<bf16> y(size);
  for (int64_t i = 0; i < size; ++i) y[i] = ToBf16(x[i]);
  return y;
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

// c [16, 16] += a [16, 32] x b [16 pairs, 16, 2], all bit patterns as the tiles hold them.
EXPORT void genrecall_tile_dot(const uint16_t* a, const uint16_t* b, float* c) {
  using namespace genrecall;
  TileLoad<0>(c, 64);
  TileLoad<1>(a, 64);
  TileLoad<2>(b, 64);
  TileDot<0, 1, 2>();
  TileStore<0>(c, 64);
}
