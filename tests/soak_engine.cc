// Soak: clients of every kind on three engines (float32, bf16, int8) of one budget, for as long as asked,
// mostly under a sanitizer.
//
//   soak_engine FOLDER SECONDS THREADS [SEED]
//
// Checks that every callback comes exactly once, that equal requests get equal bits whatever they met, that
// nothing is held at the end and that memory stays flat. Prints what happened; ends with 1 at a failure.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "kernels/crc32c.h"
#include "tests/random_engine.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/kv_budget.h"

extern "C" __attribute__((weak)) size_t __sanitizer_get_current_allocated_bytes();

namespace genrecall {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kModels = 3, kClients = 4, kHeads = 5, kVariants = 3, kIndexes = 3, kOutstanding = 6;
constexpr int kWidths[] = {1, 5, 32, 300};
constexpr int64_t kBudget = 900 << 10;  // a few dozen pages: requests wait and prefixes are dropped

int64_t ResidentBytes() {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return int64_t{resident} * sysconf(_SC_PAGESIZE);
}

// What the program has asked of the heap and not given back. Residence says less: it grows with what the
// allocator keeps for threads that come and go, and with a sanitizer's own books.
int64_t HeapBytes() {
  if (__sanitizer_get_current_allocated_bytes != nullptr) {
    return static_cast<int64_t>(__sanitizer_get_current_allocated_bytes());
  }
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

// Requests that are asked for again and again; equal ones must get equal bits.
struct Question {
  int model, head, variant, width, normalize, index;
  bool operator<(const Question& o) const {
    return std::tie(model, head, variant, width, normalize, index) <
           std::tie(o.model, o.head, o.variant, o.width, o.normalize, o.index);
  }
};

class Answers {
 public:
  void Check(const Question& q, const DecodeResult& r) {
    uint32_t bits = 0;  // a checksum: the answers themselves would make memory grow
    const auto add = [&bits](const auto& v) { bits = Crc32c(bits, v.data(), v.size() * sizeof v[0]); };
    add(r.sids);
    add(r.score);
    add(r.user_state);
    std::lock_guard<std::mutex> lock(mutex_);
    Expect(known_.try_emplace(q, bits).first->second == bits, "the same request was answered differently");
  }

 private:
  std::mutex mutex_;
  std::map<Question, uint32_t> known_;
};

struct Soak {
  std::string folder;
  int threads = 1;
  Clock::time_point end;
  RandomModel model[kModels];

  std::mutex mutex;  // of what serves now
  std::shared_ptr<Engine> engine[kModels];
  std::shared_ptr<const RecallIndex> index[kIndexes];

  Answers answers;
  std::atomic<int64_t> submitted{0}, called{0}, hits{0};
  std::atomic<int64_t> outcome[16] = {};

  std::string ModelPath(int m) const { return Cat(folder, "/model", m, ".gguf"); }
  bool over() const { return Clock::now() >= end; }

  std::shared_ptr<Engine> NewEngine(int m, int version) {
    EngineOptions options;
    options.num_threads = threads;
    options.max_queue = 16;
    options.max_step_rows = version % 2 ? 96 : 512;
    options.prefill_chunk = 17 + 30 * (version % 3);
    options.kv_bytes = kBudget;
    Result<std::shared_ptr<Engine>> made = AcquireEngine("cpu", ModelPath(m), options);
    Expect(made.ok(), made.status().message());
    return made.value();
  }

  std::vector<int32_t> Prompt(int m, int head, int variant) const {
    std::vector<int32_t> prompt = model[m].Prompt(40 + 67 * head, head);
    const std::vector<int32_t> rest = model[m].Prompt(1 + 20 * variant, 100 + variant);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    return prompt;
  }

  // What is wrong with a bad request is found out before anything else.
  void SubmitBad(Engine* e, std::mt19937* rng) {
    DecodeRequest bad;
    bad.prompt = {1, 2, 3};
    bad.beam.width = 5;
    if ((*rng)() % 2) {
      bad.prompt[1] = 99999;
    } else {
      bad.beam.width = kMaxBeamWidth + 1;
    }
    bool called_back = false;
    e->Submit(std::move(bad), [&](DecodeResult r) {
      Expect(r.status.code() == Code::kInvalidArgument, r.status.message());
      called_back = true;
    });
    Expect(called_back, "a refused request's callback comes before Submit returns");
  }
};

// One client's requests under way: waits for room, and for all of them at the end.
class Outstanding {
 public:
  void Enter() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return count_ < kOutstanding; });
    ++count_;
  }
  void Leave() {
    std::lock_guard<std::mutex> lock(mutex_);
    --count_;
    changed_.notify_all();
  }
  void Drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return count_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

void Client(Soak* soak, uint32_t seed) {
  std::mt19937 rng(seed);
  const auto any = [&rng](int n) { return static_cast<int>(rng() % n); };
  const auto outstanding = std::make_shared<Outstanding>();
  while (!soak->over()) {
    const Question q = {any(kModels), any(kHeads), any(kVariants), kWidths[any(4)], any(3), any(kIndexes)};
    DecodeRequest request;
    request.prompt = soak->Prompt(q.model, q.head, q.variant);
    request.stable_prefix = any(static_cast<int>(request.prompt.size()) + 1);
    request.beam.width = q.width;
    request.beam.normalize = static_cast<Normalize>(q.normalize);
    request.priority = any(3) - 1;
    const int limit = any(6);
    if (limit == 0) request.deadline = Clock::now() + std::chrono::microseconds(any(20000));
    if (limit == 1) request.deadline = Clock::now() + std::chrono::seconds(600);
    std::shared_ptr<Engine> engine;
    {
      std::lock_guard<std::mutex> lock(soak->mutex);
      engine = soak->engine[q.model];
      request.index = soak->index[q.index];
    }
    if (any(50) == 0) soak->SubmitBad(engine.get(), &rng);
    outstanding->Enter();
    soak->submitted.fetch_add(1);
    auto calls = std::make_shared<std::atomic<int>>(0);
    // The callback may be the engine's last holder: an engine that is replaced ends on its own thread then.
    const RequestId id =
        engine->Submit(std::move(request), [soak, q, calls, engine, outstanding](DecodeResult r) {
          Expect(calls->fetch_add(1) == 0, "a callback came twice");
          soak->called.fetch_add(1);
          soak->outcome[static_cast<int>(r.status.code())].fetch_add(1);
          soak->hits.fetch_add(r.cached_tokens > 0);
          if (r.status.ok()) soak->answers.Check(q, r);
          outstanding->Leave();
        });
    if (any(8) == 0) engine->Cancel(id);
    if (any(4) == 0) std::this_thread::sleep_for(std::chrono::microseconds(any(3000)));
  }
  outstanding->Drain();
}

// Replaces indexes and engines under the clients, and watches the memory.
struct Operator {
  explicit Operator(Soak* soak) : soak(soak) {}

  Soak* soak;
  int64_t evicted = 0;
  std::vector<int64_t> heap, resident;  // one sample a second

  void Run() {
    for (int tick = 1; !soak->over(); ++tick) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      const int i = tick % kIndexes;
      auto index = soak->model[0].Index(200 + 300 * i, i);  // the same catalogue, in new memory
      std::shared_ptr<Engine> engine;
      const int model = tick / 13 % kModels;
      if (tick % 13 == 0) engine = soak->NewEngine(model, tick / 13);
      {
        std::lock_guard<std::mutex> lock(soak->mutex);
        soak->index[i].swap(index);
        if (engine != nullptr) soak->engine[model].swap(engine);
        for (const auto& e : soak->engine) evicted = std::max(evicted, e->stats().kv_evicted_pages);
      }
      if (tick % 10 != 0) continue;
      heap.push_back(HeapBytes());
      resident.push_back(ResidentBytes());
    }
  }

  // The highest of the last quarter against the highest of the second.
  void ExpectFlat() const {
    const size_t n = heap.size();
    if (n < 20) return;
    const auto most = [n](const std::vector<int64_t>& v, size_t from, size_t to) {
      return *std::max_element(v.begin() + from * n / 4, v.begin() + to * n / 4);
    };
    const int64_t early = most(heap, 1, 2), late = most(heap, 3, 4);
    std::printf(
        "heap: %.1f MB at most in the second quarter, %.1f MB in the last; resident: %.1f and %.1f MB\n",
        early / 1e6, late / 1e6, most(resident, 1, 2) / 1e6, most(resident, 3, 4) / 1e6);
    Expect(late < early + early / 10 + (4 << 20), "memory grows");
  }
};

void Run(Soak* soak, double seconds, uint32_t seed) {
  for (int m = 0; m < kModels; ++m) {
    soak->model[m].dtype = m == 0 ? DType::kF32 : DType::kBF16;
    soak->model[m].int8 = m == 2;
    soak->model[m].seed = m + 1;
    soak->model[m].Write(soak->ModelPath(m));
    soak->engine[m] = soak->NewEngine(m, 0);
  }
  for (int i = 0; i < kIndexes; ++i) soak->index[i] = soak->model[0].Index(200 + 300 * i, i);
  const std::shared_ptr<KvBudget> budget = KvBudget::Shared(kBudget);
  soak->end = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));

  Operator op(soak);
  std::vector<std::thread> threads;
  threads.emplace_back([&] { op.Run(); });
  for (int c = 0; c < kClients; ++c) threads.emplace_back(Client, soak, seed * 100 + c);
  for (std::thread& t : threads) t.join();

  const auto count = [&](Code code) { return static_cast<long>(soak->outcome[static_cast<int>(code)]); };
  std::printf(
      "%ld requests: %ld ok (%ld prefix hits), %ld cancelled, %ld past their deadline, %ld refused by a full "
      "queue; "
      "%ld pages evicted\n",
      static_cast<long>(soak->submitted), count(Code::kOk), static_cast<long>(soak->hits),
      count(Code::kCancelled), count(Code::kDeadlineExceeded), count(Code::kResourceExhausted),
      static_cast<long>(op.evicted));
  Expect(soak->called == soak->submitted, "a callback is missing");
  Expect(count(Code::kOk) + count(Code::kCancelled) + count(Code::kDeadlineExceeded) +
                 count(Code::kResourceExhausted) ==
             soak->called,
         "a request ended in another way than it may");
  Expect(count(Code::kOk) > 0 && soak->hits > 0 && count(Code::kCancelled) > 0 &&
             count(Code::kDeadlineExceeded) > 0 && op.evicted > 0,
         "the soak did not reach everything: let it run longer");
  op.ExpectFlat();

  for (auto& engine : soak->engine) {
    const EngineStats stats = engine->stats();
    Expect(stats.kv_bytes == stats.kv_cached_bytes && stats.running == 0 && stats.queued == 0,
           "an idle engine holds keys and values of requests");
    Expect(stats.kv_resident_bytes <= kBudget, "more than the budget is resident");
    engine.reset();
  }
  // An engine whose last holder was a callback ends on its own thread.
  const auto held = [&] {
    const KvBudget::Lock lock = budget->Acquire();
    return budget->resident() + budget->committed();
  };
  for (int i = 0; i < 1000 && held() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  Expect(held() == 0, "ended engines hold keys and values");
  std::printf("ok\n");
}

}  // namespace
}  // namespace genrecall

int main(int argc, char** argv) {
  using namespace genrecall;
  Expect(argc == 4 || argc == 5, "usage: soak_engine FOLDER SECONDS THREADS [SEED]");
  Soak soak;
  soak.folder = argv[1];
  soak.threads = std::atoi(argv[3]);
  const double seconds = std::atof(argv[2]);
  Expect(seconds > 0 && soak.threads > 0, "SECONDS and THREADS: expected > 0");
  Run(&soak, seconds, argc == 5 ? std::atoi(argv[4]) : 1);
  return 0;
}
