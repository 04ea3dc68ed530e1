// The split of a gemm over threads, and the scalar gemm: the specification.
#include "kernels/gemm.h"

#include <algorithm>

#include "kernels/int8_panels.h"
#include "kernels/quantize.h"
#include "kernels/scalar_math.h"
#include "kernels/scratch.h"
#include "kernels/thread_pool.h"

namespace genrecall {
namespace {

int64_t Columns(const GemmArgs& args) {
  return args.epilogue == Epilogue::kSwiGlu ? args.w.rows / 2 : args.w.rows;
}

// What may stay in a core's second-level cache beside what passes.
constexpr int64_t kNearBytes = 1024 * 1024;

int64_t CeilDivide(int64_t x, int64_t unit) { return (x + unit - 1) / unit; }
int64_t RoundUp(int64_t x, int64_t unit) { return CeilDivide(x, unit) * unit; }

// Units of work that the busiest thread gets of `units` when they are dealt in blocks.
int64_t LongestShare(int64_t units, int64_t block, int64_t threads) {
  const int64_t blocks = CeilDivide(units, block), rounds = CeilDivide(blocks, threads);
  const int64_t last = units - (blocks - 1) * block;
  return blocks % threads == 1 || threads == 1 ? (rounds - 1) * block + last : rounds * block;
}

// Columns of a block: few enough for the cache, several blocks a thread, and none of them left over.
int64_t ColumnBlock(const GemmKernel& kernel, const GemmArgs& args, int64_t columns, int threads) {
  // Weights that are widened count as what they may be widened to.
  const bool widened = args.w.dtype == DType::kI8 && args.w.row_sum == nullptr;
  const int weight_bytes = widened ? DTypeSize(DType::kBF16) : DTypeSize(args.w.dtype);
  const int64_t column_bytes = args.w.rows / columns * args.w.cols * weight_bytes;
  const bool streams = kernel.streams_weights && !widened && args.w.dtype != DType::kF32;
  const int64_t cached = streams ? kGemmBlock : std::clamp<int64_t>(kNearBytes / column_bytes, 1, kGemmBlock);
  const int64_t blocks = streams ? 2 : 4;  // of a thread
  const int64_t share = columns / (threads * blocks);
  const int64_t most =
      std::max(std::min(cached, std::max<int64_t>(share, 16)) / kernel.column_grain, int64_t{1});
  const int64_t units = CeilDivide(columns, kernel.column_grain);
  int64_t block = most, least = LongestShare(units, most, threads);
  for (int64_t b = most - 1; b >= CeilDivide(most, 2); --b) {
    const int64_t longest = LongestShare(units, b, threads);
    if (longest < least) block = b, least = longest;
  }
  return block * kernel.column_grain;
}

// y = epilogue(output(r, o)) of columns [first, last); output: the scaled product and bias of row r and
// weight row o.
template <typename Output>
void ApplyEpilogue(const GemmArgs& args, int64_t first, int64_t last, const Output& output) {
  const int64_t half = args.w.rows / 2;
  for (int64_t r = 0; r < args.n; ++r) {
    for (int64_t o = first; o < last; ++o) {
      switch (args.epilogue) {
        case Epilogue::kStore:
          args.y[r * args.ldy + o] = output(r, o);
          break;
        case Epilogue::kAccumulate:
          args.y[r * args.ldy + o] += output(r, o);
          break;
        case Epilogue::kSwiGlu: {
          const float y = Silu(output(r, o)) * output(r, half + o);
          if (args.x_dtype == DType::kF32) {
            static_cast<float*>(args.y_t)[r * half + o] = y;
          } else {
            static_cast<bf16*>(args.y_t)[r * half + o] = ToBf16(y);
          }
          break;
        }
      }
    }
  }
}

float WithBias(const GemmArgs& args, float sum, int64_t o) {
  return args.bias == nullptr ? sum : sum + args.bias[o];
}

template <typename X, typename W>
float Dot(const X* x, const W* w, int64_t cols) {
  float sum = 0.0f;
  for (int64_t k = 0; k < cols; ++k) sum += Load(x[k]) * Load(w[k]);
  return sum;
}

template <typename X, typename W>
void FloatColumnsOf(const GemmArgs& args, int64_t first, int64_t last) {
  const int64_t cols = args.w.cols;
  ApplyEpilogue(args, first, last, [&](int64_t r, int64_t o) {
    const W* w = static_cast<const W*>(args.w.data) + o * cols;
    float sum = Dot(static_cast<const X*>(args.x) + r * cols, w, cols);
    if (args.w.scale != nullptr) sum *= args.w.scale[o];
    return WithBias(args, sum, o);
  });
}

void FloatColumns(const GemmArgs& args, const void*, int64_t first, int64_t last) {
  const bool f32 = args.x_dtype == DType::kF32;
  if (args.w.dtype == DType::kI8) {
    return (f32 ? FloatColumnsOf<float, int8_t> : FloatColumnsOf<bf16, int8_t>)(args, first, last);
  }
  return (f32 ? FloatColumnsOf<float, float> : FloatColumnsOf<bf16, bf16>)(args, first, last);
}

int64_t NothingPacked(const GemmArgs&) { return 0; }

// Packed: the scales of all rows, then the rows as int8.
int64_t Int8PackedBytes(const GemmArgs& args) { return args.n * (int64_t{sizeof(float)} + args.w.cols); }

template <typename X>
void QuantizeRows(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  const int64_t cols = args.w.cols;
  float* scale = static_cast<float*>(packed);
  int8_t* rows = reinterpret_cast<int8_t*>(scale + args.n);
  for (int64_t r = first; r < last; ++r) {
    const X* x = static_cast<const X*>(args.x) + r * cols;
    uint32_t largest = 0;
    for (int64_t k = 0; k < cols; ++k) largest = std::max(largest, MagnitudeBits(Load(x[k])));
    const Int8Scale row_scale = Int8ScaleOf(FromMagnitudeBits(largest));
    for (int64_t k = 0; k < cols; ++k) rows[r * cols + k] = QuantizeToInt8(Load(x[k]), row_scale);
    scale[r] = row_scale.scale;
  }
}

void Int8Pack(const GemmArgs& args, int64_t first, int64_t last, void* packed) {
  (args.x_dtype == DType::kF32 ? QuantizeRows<float> : QuantizeRows<bf16>)(args, first, last, packed);
}

void Int8Columns(const GemmArgs& args, const void* packed, int64_t first, int64_t last) {
  const int64_t cols = args.w.cols, part_rows = args.w.rows / args.w.parts;
  const float* scale = static_cast<const float*>(packed);
  const int8_t* rows = reinterpret_cast<const int8_t*>(scale + args.n);
  ApplyEpilogue(args, first, last, [&](int64_t r, int64_t o) {
    const int64_t in_part = o % part_rows, lane = in_part % kPanelOutputs;
    const int8_t* panel = Int8Panel(args.w, static_cast<int>(o / part_rows), in_part - lane);
    int32_t sum = 0;
    for (int64_t k = 0; k < cols; ++k) sum += int32_t{rows[r * cols + k]} * panel[Int8PanelOffset(lane, k)];
    return WithBias(args, static_cast<float>(sum) * args.w.scale[o] * scale[r], o);
  });
}

}  // namespace

const GemmKernel kScalarGemm = {NothingPacked, nullptr, FloatColumns, /*pack_grain=*/1, /*column_grain=*/1};
const GemmKernel kScalarInt8Gemm = {Int8PackedBytes, Int8Pack, Int8Columns, /*pack_grain=*/1,
                                    /*column_grain=*/1};

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
