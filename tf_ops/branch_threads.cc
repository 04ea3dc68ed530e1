#include "tf_ops/branch_threads.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace genrecall {
namespace {
constexpr std::chrono::seconds kIdle(30);
}  // namespace

struct BranchThreads::Core {
  std::mutex mu;
  std::condition_variable ready;
  std::deque<std::function<void()>> queue;
  int max_threads = 1;
  int threads = 0;
  int idle = 0;
  bool closing = false;

  void Loop() {
    std::unique_lock<std::mutex> lock(mu);
    for (;;) {
      ++idle;
      const bool woken = ready.wait_for(lock, kIdle, [this] { return closing || !queue.empty(); });
      --idle;
      if (queue.empty() && (closing || !woken)) break;
      std::function<void()> work = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      work();
      work = nullptr;  // what it captured may call back into this pool
      lock.lock();
    }
    --threads;
  }
};

BranchThreads::BranchThreads(int max_threads) : core_(std::make_shared<Core>()) {
  core_->max_threads = max_threads < 1 ? 1 : max_threads;
}

BranchThreads::~BranchThreads() {
  std::lock_guard<std::mutex> lock(core_->mu);
  core_->closing = true;
  core_->ready.notify_all();
}

void BranchThreads::Schedule(std::function<void()> work) {
  std::unique_lock<std::mutex> lock(core_->mu);
  core_->queue.push_back(std::move(work));
  // Idle threads that were notified but have not woken yet still count as idle, hence the comparison with the
  // queue.
  if (static_cast<int>(core_->queue.size()) <= core_->idle || core_->threads >= core_->max_threads) {
    core_->ready.notify_one();
    return;
  }
  ++core_->threads;
  lock.unlock();
  try {
    std::thread([core = core_] {
      pthread_setname_np(pthread_self(), "gr-branch");
      core->Loop();
    }).detach();
  } catch (const std::system_error&) {  // the process is out of threads
    lock.lock();
    if (--core_->threads > 0 || core_->queue.empty()) return;  // the others will come to it
    std::function<void()> next = std::move(core_->queue.front());
    core_->queue.pop_front();
    lock.unlock();
    next();
  }
}

}  // namespace genrecall
