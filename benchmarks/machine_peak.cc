// What this machine can do at most, for benchmarks to divide by: `machine_peak THREADS` prints float32 FLOP/s
// (independent fused multiply-adds on registers), bf16 vector FLOP/s (0 without AVX512_BF16), int8 vector
// OP/s (on AVX2, of AVX-VNNI or int16 pairs; on AVX-512, 0 without VNNI), bf16 tile FLOP/s and int8 tile OP/s
// (0 without AMX), and bytes/s of reading far more memory than the caches hold. Time is the threads' own CPU
// time, so that other programs' load does not pass for a slow machine. Compiled with -march=native by
// machine.py.
#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

typedef float Vec __attribute__((vector_size(sizeof(float) *
#if defined(__AVX512F__)
                                             16
#elif defined(__AVX2__)
                                             8
#else
                                             4
#endif
                                             )));
constexpr int kLanes = sizeof(Vec) / sizeof(float);
constexpr int kChains = kLanes == 16 ? 24 : 12;
volatile float sink;

double ThreadSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Runs fn(thread) on all threads at once; the seconds the slowest took.
double Seconds(int threads, const std::function<void(int)>& fn) {
  std::atomic<int> ready{0};
  std::vector<double> seconds(threads);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      for (++ready; ready < threads;) {
      }
      const double start = ThreadSeconds();
      fn(t);
      seconds[t] = ThreadSeconds() - start;
    });
  }
  for (std::thread& thread : running) thread.join();
  return *std::max_element(seconds.begin(), seconds.end());
}

double Best(int repeats, const std::function<double()>& seconds) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) best = std::min(best, seconds());
  return best;
}

// OP/s of add_products(sum, x) on `chains` independent sums, each call of `products` multiply-adds.
template <int chains, typename Register, typename AddProducts>
double ProductOps(int threads, int products, const AddProducts& add_products) {
  constexpr int64_t kSteps = 1'000'000;
  const double seconds = Best(20, [&] {
    return Seconds(threads, [&](int) {
      Register acc[chains] = {}, x = {};
      __asm__("" : "+x"(x));  // the compiler must not know the values, nor that they are the same
      for (Register& a : acc) __asm__("" : "+x"(a));
      for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 24
        for (int c = 0; c < chains; ++c) acc[c] = add_products(acc[c], x);
      }
      for (int c = 1; c < chains; ++c) acc[0] += acc[c];
      float some;
      __builtin_memcpy(&some, &acc[0], sizeof some);
      sink = some;
    });
  });
  return 2.0 * products * chains * kSteps * threads / seconds;
}

double FloatFlops(int threads) {
  return ProductOps<kChains, Vec>(threads, kLanes, [](Vec sum, Vec x) { return sum * x + x; });  // contracted
}

// Not the intrinsics: GCC 12 stores all sums after each, and stores are what it then measures.
double VectorInt8Ops(int threads, bool avx512) {
#if defined(__AVX512VNNI__)
  if (avx512) {
    return ProductOps<24, __m512i>(threads, 64, [](__m512i sum, __m512i x) {
      __asm__("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(x));
      return sum;
    });
  }
#endif
#if defined(__AVXVNNI__)
  if (!avx512) {
    return ProductOps<12, __m256i>(threads, 32, [](__m256i sum, __m256i x) {
      __asm__("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sum) : "x"(x));
      return sum;
    });
  }
#elif defined(__AVX2__)
  if (!avx512) {
    return ProductOps<12, __m256i>(threads, 16, [](__m256i sum, __m256i x) {
      __m256i product;
      __asm__("vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(x));
      return sum;
    });
  }
#endif
  return 0;
}

double VectorBf16Ops(int threads) {
#if defined(__AVX512BF16__)
  return ProductOps<24, __m512>(threads, 32, [](__m512 sum, __m512 x) {
    __asm__("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(x));
    return sum;
  });
#else
  return 0;
#endif
}

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
// OP/s of four independent tile products a round, each 16 x 16 sums over `depth` products.
template <typename Products>
double TileOps(int threads, int depth, const Products& products) {
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 0;
  constexpr int64_t kSteps = 200'000;
  const double seconds = Best(20, [&] {
    return Seconds(threads, [&](int) {
      alignas(64) uint8_t config[64] = {1};
      for (int t = 0; t < 8; ++t) config[16 + 2 * t] = 64, config[48 + t] = 16;
      _tile_loadconfig(config);
      _tile_zero(4), _tile_zero(5), _tile_zero(6), _tile_zero(7);
      for (int64_t i = 0; i < kSteps; ++i) products();
      _tile_release();
    });
  });
  return 2.0 * 16 * 16 * depth * 4 * kSteps * threads / seconds;
}
double TileBf16Ops(int threads) {
  return TileOps(threads, 32, [] {
    _tile_dpbf16ps(0, 4, 6), _tile_dpbf16ps(1, 4, 7), _tile_dpbf16ps(2, 5, 6), _tile_dpbf16ps(3, 5, 7);
  });
}
double TileInt8Ops(int threads) {
  return TileOps(threads, 64, [] {
    _tile_dpbssd(0, 4, 6), _tile_dpbssd(1, 4, 7), _tile_dpbssd(2, 5, 6), _tile_dpbssd(3, 5, 7);
  });
}
#else
double TileBf16Ops(int) { return 0; }
double TileInt8Ops(int) { return 0; }
#endif

double ReadBandwidth(int threads) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  std::vector<float> memory(kBytes / sizeof(float), 1.0f);
  const int64_t share = kBytes / static_cast<int64_t>(sizeof(Vec)) / threads / 8 * 8;
  const double seconds = Best(8, [&] {
    return Seconds(threads, [&](int t) {
      const char* from = reinterpret_cast<const char*>(memory.data()) + t * share * sizeof(Vec);
      Vec sum[8] = {};
      for (int64_t i = 0; i < share; i += 8) {
        for (int j = 0; j < 8; ++j) {
          Vec v;
          __builtin_memcpy(&v, from + (i + j) * sizeof(Vec), sizeof v);
          sum[j] += v;
        }
      }
      for (int j = 1; j < 8; ++j) sum[0] += sum[j];
      sink = sum[0][0];
    });
  });
  return static_cast<double>(share) * sizeof(Vec) * threads / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::printf(
      "{\"threads\": %d, \"float_ops\": %.6g, \"bf16_ops\": %.6g, \"avx2_int8_ops\": %.6g, "
      "\"int8_ops\": %.6g, \"tile_bf16_ops\": %.6g, \"tile_int8_ops\": %.6g, \"bytes_per_s\": %.6g}\n",
      threads, FloatFlops(threads), VectorBf16Ops(threads), VectorInt8Ops(threads, /*avx512=*/false),
      VectorInt8Ops(threads, /*avx512=*/true), TileBf16Ops(threads), TileInt8Ops(threads),
      ReadBandwidth(threads));
}
