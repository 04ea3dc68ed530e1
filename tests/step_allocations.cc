// Counts what the engine asks of the heap while it decodes: prints, for requests of the same work in few and
// in many steps, the number of allocations from submission to result.
//
//   step_allocations MODEL_PATH    -> one line "max_step_rows steps allocations" per engine
#include <malloc.h>

#include <atomic>
#include <cstdio>
#include <future>
#include <new>

#include "tests/random_engine.h"
#include "trtllm_bridge/engine.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// The C library's own functions stay reachable under these names; operator new ends up here too.
extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_memalign(size_t, size_t);
extern "C" void* malloc(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
extern "C" void* aligned_alloc(size_t alignment, size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}

namespace genrecall {
namespace {

// Allocations of one request, with everything around it made before.
int64_t Decode(Engine* engine, DecodeRequest request) {
  std::promise<DecodeResult> done;
  std::future<DecodeResult> result = done.get_future();
  DecodeCallback callback = [&done](DecodeResult r) { done.set_value(std::move(r)); };
  const int64_t before = allocations.load();
  engine->Submit(std::move(request), std::move(callback));
  const DecodeResult r = result.get();
  const int64_t after = allocations.load();
  Expect(r.status.ok(), r.status.message());
  return after - before;
}

int Main(const std::string& path) {
  RandomModel model;
  model.dtype = DType::kBF16;
  model.Write(path);
  DecodeRequest request;
  request.prompt = model.Prompt(500, 1);
  request.index = model.Index(5000, 2);
  request.beam.width = 400;
  request.beam.normalize = Normalize::kVocab;
  for (const int rows : {1000, 100, 10, 3}) {
    EngineOptions options;
    options.num_threads = 2;
    options.max_step_rows = rows;
    Result<std::shared_ptr<Engine>> engine = AcquireEngine("cpu", path, options);
    Expect(engine.ok(), engine.status().message());
    // The first grow every buffer that is kept; the other thread may sleep through a short one.
    for (int i = 0; i < 5; ++i) Decode(engine.value().get(), request);
    const int64_t steps = engine.value()->stats().steps;
    int64_t least = Decode(engine.value().get(), request);
    const int64_t steps_each = engine.value()->stats().steps - steps;
    for (int i = 0; i < 5; ++i) least = std::min(least, Decode(engine.value().get(), request));
    std::printf("%d %ld %ld\n", rows, static_cast<long>(steps_each), static_cast<long>(least));
  }
  return 0;
}

}  // namespace
}  // namespace genrecall

int main(int argc, char** argv) {
  genrecall::Expect(argc == 2, "usage: step_allocations MODEL_PATH");
  return genrecall::Main(argv[1]);
}
