// A pool of a fixed number of worker threads for the numeric kernels. The calling thread takes part, so a
// pool of 1 has no workers. Knows no task graph: ParallelFor is a fork and a join.
#ifndef GENRECALL_KERNELS_THREAD_POOL_H_
#define GENRECALL_KERNELS_THREAD_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>

namespace genrecall {

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
  void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t first, int64_t last)>& fn);

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

// ParallelFor on `pool`, or one call on this thread when there is none.
void ParallelFor(ThreadPool* pool, int64_t n, int64_t grain,
                 const std::function<void(int64_t first, int64_t last)>& fn);

// The count engines use unless told otherwise: GENRECALL_CPU_THREADS, else the CPUs this process may run on.
// A value that is not a positive integer is a std::invalid_argument that names it.
int DefaultNumThreads();

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_THREAD_POOL_H_
