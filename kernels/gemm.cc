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

// Columns whose weights stay in a core's second-level cache while all rows pass over them.
constexpr int64_t kBlockBytes = 1024 * 1024;

int64_t RoundUp(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Short enough to share out evenly, and for the cache.
int64_t ColumnBlock(const GemmKernel& kernel, const GemmArgs& args, int64_t columns, int threads) {
  const int64_t column_bytes = args.w.rows / columns * args.w.cols * DTypeSize(args.w.dtype);
  const int64_t cached = std::clamp<int64_t>(kBlockBytes / column_bytes, 1, kGemmBlock);
  const int64_t share = columns / (int64_t{threads} * 4);
  const int64_t block = std::min(cached, std::max<int64_t>(share, 16));
  return std::max(block / kernel.column_grain, int64_t{1}) * kernel.column_grain;
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
    const int64_t grain = RoundUp(std::max<int64_t>(args.n / (threads * 2), 1), kernel.pack_grain);
    ParallelFor(pool, args.n, grain,
                [&](int64_t first, int64_t last) { kernel.pack(args, first, last, packed); });
  }
  const int64_t columns = Columns(args);
  if (columns <= 0) return;
  const int64_t block = ColumnBlock(kernel, args, columns, threads);
  ParallelFor(pool, (columns + block - 1) / block, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      kernel.columns(args, packed, i * block, std::min((i + 1) * block, columns));
    }
  });
}

}  // namespace genrecall
