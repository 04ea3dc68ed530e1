// Counts what may still run on a device after the step that started it; the device waits for that before it
// goes.
#ifndef GENRECALL_TF_OPS_DEVICE_RUNS_H_
#define GENRECALL_TF_OPS_DEVICE_RUNS_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "tensorflow/core/framework/resource_base.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace genrecall {

// A resource of the device. A device manager takes down its devices' resources while the devices still
// stand, hence a destructor that waits keeps them: allocators, threads, resource manager. It is the end of a
// session that waits, and never the end of a kernel: TensorFlow takes down an eager function's kernels under
// Python's lock, in whichever thread collects the garbage.
class DeviceRuns : public tensorflow::ResourceBase {
 public:
  // A run is counted for as long as its token lives.
  using Token = std::shared_ptr<const void>;

  // Counts one more run on the device of these resources.
  static absl::Status Count(tensorflow::ResourceMgr* resources, Token* token);

  // Waits for all runs.
  ~DeviceRuns() override;
  std::string DebugString() const override { return "runs of branches"; }

 private:
  struct Runs;
  DeviceRuns();
  const std::shared_ptr<Runs> runs_;  // not the resource: a token that held that would be waited for in vain
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_DEVICE_RUNS_H_
