// The split of a gemm over threads, and the scalar gemm: the specification.
#include "kernels/gemm.h"

#include <algorithm>

#include "kernels/scalar_math.h"
#include "kernels/scratch.h"
#include "kernels/thread_pool.h"

namespace genrecall {
namespace {

int64_t Columns(const GemmArgs& args) {
  return args.epilogue == Epilogue::kSwiGlu ? args.w.rows / 2 : args.w.rows;
}

// Ranges short enough to share out evenly, long enough that taking one costs nothing beside it.
int64_t Grain(int64_t n, int64_t unit, int threads) {
  const int64_t share = n / (threads * 4);
  return std::clamp<int64_t>(share / unit, 1, 256 / unit > 0 ? 256 / unit : 1) * unit;
}

template <typename T>
float Dot(const T* x, const T* w, int64_t cols) {
  float sum = 0.0f;
  for (int64_t k = 0; k < cols; ++k) sum += Load(x[k]) * Load(w[k]);
  return sum;
}

template <typename T>
void ScalarColumnsOf(const GemmArgs& args, int64_t first, int64_t last) {
  const int64_t cols = args.w.cols, half = args.w.rows / 2;
  const T* w = static_cast<const T*>(args.w.data);
  const auto output = [&](int64_t r, int64_t o) {
    const float sum = Dot(static_cast<const T*>(args.x) + r * cols, w + o * cols, cols);
    return args.bias == nullptr ? sum : sum + args.bias[o];
  };
  for (int64_t r = 0; r < args.n; ++r) {
    for (int64_t o = first; o < last; ++o) {
      switch (args.epilogue) {
        case Epilogue::kStore:
          args.y[r * args.ldy + o] = output(r, o);
          break;
        case Epilogue::kAccumulate:
          args.y[r * args.ldy + o] += output(r, o);
          break;
        case Epilogue::kSwiGlu:
          Store(Silu(output(r, o)) * output(r, half + o), static_cast<T*>(args.y_t) + r * half + o);
          break;
      }
    }
  }
}

void ScalarColumns(const GemmArgs& args, const void*, int64_t first, int64_t last) {
  if (args.w.dtype == DType::kF32) {
    ScalarColumnsOf<float>(args, first, last);
  } else {
    ScalarColumnsOf<bf16>(args, first, last);
  }
}

int64_t NothingPacked(const GemmArgs&) { return 0; }

}  // namespace

const GemmKernel kScalarGemm = {NothingPacked, nullptr, ScalarColumns, /*pack_grain=*/1, /*column_grain=*/1};

void RunGemm(const GemmKernel& kernel, const GemmArgs& args, ThreadPool* pool) {
  if (args.n <= 0) return;
  const int threads = pool == nullptr ? 1 : pool->num_threads();
  void* packed = nullptr;
  if (const int64_t bytes = kernel.packed_bytes(args)) {
    packed = ThreadScratch(ScratchArea::kShared, bytes);
    const int64_t grain = Grain(args.n, kernel.pack_grain, threads);
    ParallelFor(pool, args.n, grain,
                [&](int64_t first, int64_t last) { kernel.pack(args, first, last, packed); });
  }
  const int64_t columns = Columns(args);
  ParallelFor(pool, columns, Grain(columns, kernel.column_grain, threads),
              [&](int64_t first, int64_t last) { kernel.columns(args, packed, first, last); });
}

}  // namespace genrecall
