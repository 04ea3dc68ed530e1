// An engine as a TensorFlow resource. Graphs with the same weights and options share one engine
// (AcquireEngine).
#ifndef GENRECALL_TF_OPS_ENGINE_RESOURCE_H_
#define GENRECALL_TF_OPS_ENGINE_RESOURCE_H_

#include <memory>
#include <string>
#include <utility>

#include "tensorflow/core/framework/resource_base.h"
#include "tf_ops/engine_metrics.h"
#include "trtllm_bridge/engine.h"

namespace genrecall {

class EngineResource : public tensorflow::ResourceBase {
 public:
  static Result<EngineResource*> Create(const std::string& engine, const std::string& weights_path,
                                        const EngineOptions& options) {
    auto acquired = AcquireEngine(engine, weights_path, options);
    if (!acquired.ok()) return acquired.status();
    metrics::WatchEngine(acquired.value());
    return new EngineResource(acquired.value());
  }

  const std::shared_ptr<Engine>& engine() const { return engine_; }
  std::string DebugString() const override { return "engine " + engine_->name(); }

 private:
  explicit EngineResource(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  const std::shared_ptr<Engine> engine_;
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_ENGINE_RESOURCE_H_
