#include "kernels/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu_quota.h"

namespace genrecall {
namespace {

// A decode step forks every few dozen microseconds, so a thread that has just worked looks for more work this
// long before it sleeps. Not longer: the CPUs are shared with TensorFlow's own threads.
constexpr std::chrono::microseconds kSpin{30};

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Whether `ready()` became true within kSpin.
template <typename Ready>
bool SpinUntil(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

// A job is open for workers to enter until the caller has found no more ranges to run; then it closes, and
// the caller waits only for the workers that did enter. A worker that the scheduler has not woken in time
// delays nobody.
struct ThreadPool::Rep {
  static constexpr int kClosed = 1 << 30;

  // The job. Written only while the gate is closed and empty, so workers inside the gate may read it.
  const RangeFn* fn = nullptr;
  int64_t n = 0, grain = 1;
  alignas(64) std::atomic<int64_t> next{0};    // first element nobody has taken
  alignas(64) std::atomic<int> gate{kClosed};  // kClosed flag + number of workers inside
  alignas(64) std::atomic<uint64_t> epoch{0};  // jobs opened so far
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable work, done;
  std::vector<std::thread> workers;

  void RunRanges() {
    for (;;) {
      const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= n) return;
      (*fn)(first, std::min(first + grain, n));
    }
  }

  bool Enter() {
    int inside = gate.load(std::memory_order_relaxed);
    while (!(inside & kClosed)) {
      if (gate.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void Leave() {
    if (gate.fetch_sub(1, std::memory_order_acq_rel) - 1 == kClosed) {
      {
        std::lock_guard<std::mutex> lock(mutex);
      }  // the caller is either before its check or inside wait
      done.notify_one();
    }
  }

  // The number of the next job after `seen`.
  uint64_t WaitForJob(uint64_t seen) {
    const auto changed = [&] { return epoch.load() != seen; };
    if (!SpinUntil(changed)) {
      std::unique_lock<std::mutex> lock(mutex);
      sleepers.fetch_add(1);
      work.wait(lock, changed);
      sleepers.fetch_sub(1);
    }
    return epoch.load(std::memory_order_acquire);
  }

  void WorkerLoop() {
    uint64_t seen = 0;
    for (;;) {
      seen = WaitForJob(seen);
      if (stopping.load()) return;
      if (Enter()) {
        RunRanges();
        Leave();
      }
    }
  }

  void Announce() {
    epoch.fetch_add(
        1);  // sequentially consistent with `sleepers`: a worker about to sleep sees it, or is seen
    if (sleepers.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex);
    }
    work.notify_all();
  }

  void CloseAndWait() {
    gate.fetch_or(kClosed, std::memory_order_acq_rel);
    const auto empty = [&] { return gate.load(std::memory_order_acquire) == kClosed; };
    if (SpinUntil(empty)) return;
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, empty);
  }
};

ThreadPool::ThreadPool(int num_threads) : rep_(std::make_unique<Rep>()) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads = " + std::to_string(num_threads) + ": expected >= 1");
  }
  for (int i = 1; i < num_threads; ++i) {
    rep_->workers.emplace_back([rep = rep_.get()] { rep->WorkerLoop(); });
  }
}

ThreadPool::~ThreadPool() {
  rep_->stopping.store(true);
  rep_->Announce();
  for (std::thread& worker : rep_->workers) worker.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(rep_->workers.size()) + 1; }

void ThreadPool::ParallelFor(int64_t n, int64_t grain, RangeFn fn) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (rep_->workers.empty() || n <= grain) {
    fn(0, n);
    return;
  }
  rep_->fn = &fn;
  rep_->n = n;
  rep_->grain = grain;
  rep_->next.store(0, std::memory_order_relaxed);
  rep_->gate.store(0, std::memory_order_release);  // open
  rep_->Announce();
  rep_->RunRanges();
  rep_->CloseAndWait();
}

void ParallelFor(ThreadPool* pool, int64_t n, int64_t grain, RangeFn fn) {
  if (pool != nullptr) {
    pool->ParallelFor(n, grain, fn);
  } else if (n > 0) {
    fn(0, n);
  }
}

int DefaultNumThreads() {
  if (const char* text = std::getenv("GENRECALL_CPU_THREADS")) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > 4096) {
      throw std::invalid_argument(std::string("GENRECALL_CPU_THREADS='") + text +
                                  "': expected an integer in 1..4096");
    }
    return static_cast<int>(value);
  }
  cpu_set_t cpus;
  int count = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) count = CPU_COUNT(&cpus);
  if (const int quota = CpuQuota()) count = std::min(count, quota);
  return std::max(count, 1);
}

}  // namespace genrecall
