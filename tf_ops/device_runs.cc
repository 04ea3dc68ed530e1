#include "tf_ops/device_runs.h"

#include <condition_variable>
#include <mutex>

namespace genrecall {

struct DeviceRuns::Runs {
  std::mutex mu;
  std::condition_variable none;
  int count = 0;
};

DeviceRuns::DeviceRuns() : runs_(std::make_shared<Runs>()) {}

DeviceRuns::~DeviceRuns() {
  std::unique_lock<std::mutex> lock(runs_->mu);
  runs_->none.wait(lock, [this] { return runs_->count == 0; });
}

absl::Status DeviceRuns::Count(tensorflow::ResourceMgr* resources, Token* token) {
  std::shared_ptr<Runs> runs;
  {
    // The reference goes before the run counts: were it the last, its end would wait for this run.
    DeviceRuns* found = nullptr;
    TF_RETURN_IF_ERROR(
        resources->LookupOrCreate<DeviceRuns>("genrecall", "device_runs", &found, [](DeviceRuns** made) {
          *made = new DeviceRuns;
          return absl::OkStatus();
        }));
    const tensorflow::core::RefCountPtr<DeviceRuns> held(found);
    runs = held->runs_;
  }
  {
    std::lock_guard<std::mutex> lock(runs->mu);
    ++runs->count;
  }
  *token = Token(runs.get(), [runs](const void*) {
    std::lock_guard<std::mutex> lock(runs->mu);
    if (--runs->count == 0) runs->none.notify_all();
  });
  return absl::OkStatus();
}

}  // namespace genrecall
