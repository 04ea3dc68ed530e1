// A pool of pinned-count worker threads for the numeric kernels. The calling thread takes part, so a pool of 1 has no
// workers. Knows no task graph: ParallelFor is a fork and a join.
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
  int num_threads() const;

  // Calls fn(first, last) for disjoint ranges that cover [0, n), each (but the last) a multiple of `grain` long. Which thread
  // runs which range is not specified; results must not depend on it. One caller at a time; must not be nested.
  void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t first, int64_t last)>& fn);

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

// The count engines use unless told otherwise: GENRECALL_CPU_THREADS, else the CPUs this process may run on. A value that is
// not a positive integer ends the process' first call with an exception that names it.
int DefaultNumThreads();

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_THREAD_POOL_H_
