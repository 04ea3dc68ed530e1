// A pool of a fixed number of worker threads for the numeric kernels. The calling thread takes part, so a
// pool of 1 has no workers. Knows no task graph: ParallelFor is a fork and a join.
#ifndef GENRECALL_KERNELS_THREAD_POOL_H_
#define GENRECALL_KERNELS_THREAD_POOL_H_

#include <cstdint>
#include <memory>
#include <type_traits>

namespace genrecall {

// A borrowed fn(first, last), good for the call it is passed to. A std::function would copy it to the heap.
class RangeFn {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<F, RangeFn>>>
  RangeFn(const F& fn)  // NOLINT: lambdas become one where they are passed
      : fn_(&fn),
        call_([](const void* f, int64_t first, int64_t last) { (*static_cast<const F*>(f))(first, last); }) {}
  void operator()(int64_t first, int64_t last) const { call_(fn_, first, last); }

 private:
  const void* fn_;
  void (*call_)(const void*, int64_t, int64_t);
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int num_threads() const;

  // Calls fn(first, last) for disjoint ranges that cover [0, n), each (but the last) a multiple of `grain`
  // long. Which thread runs which range is not specified; results must not depend on it. One caller at a
  // time; must not be nested; fn must not throw. Allocates nothing.
  void ParallelFor(int64_t n, int64_t grain, RangeFn fn);

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

// ParallelFor on `pool`, or one call on this thread when there is none.
void ParallelFor(ThreadPool* pool, int64_t n, int64_t grain, RangeFn fn);

// The count engines use unless told otherwise: GENRECALL_CPU_THREADS, else the CPUs this process may run
// on, at most its container's quota.
// A value that is not a positive integer is a std::invalid_argument that names it.
int DefaultNumThreads();

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_THREAD_POOL_H_
