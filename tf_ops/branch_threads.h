// Threads on which one branch's ops run. Knows no TensorFlow.
#ifndef GENRECALL_TF_OPS_BRANCH_THREADS_H_
#define GENRECALL_TF_OPS_BRANCH_THREADS_H_

#include <functional>
#include <memory>

namespace genrecall {

// A pool that grows with what is asked of it: a thread is started when work waits and none is idle, up to
// `max_threads`, and leaves after half a minute without work. So a branch costs no thread until it runs, and
// a branch whose ops block costs its own threads only: neither the session's inter-op threads nor another
// branch's.
class BranchThreads {
 public:
  explicit BranchThreads(int max_threads);
  // Never blocks: threads leave by themselves when the work scheduled so far is done.
  ~BranchThreads();
  BranchThreads(const BranchThreads&) = delete;
  BranchThreads& operator=(const BranchThreads&) = delete;

  // Runs `work` on one of the threads, in the order of the calls as threads come free.
  void Schedule(std::function<void()> work);

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // also held by every thread, so that the last one out frees it
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_BRANCH_THREADS_H_
