// What live engines are doing, as metrics that are read when somebody looks at the page.
//   /genrecall/engine/queued, running       requests waiting and being decoded
//   /genrecall/engine/kv_bytes, weight_bytes
//   /genrecall/engine/kv_cached_bytes, kv_resident_bytes, kv_evicted_pages
// Each is a gauge{engine}, summed over the engines of one name.
#ifndef GENRECALL_TF_OPS_ENGINE_METRICS_H_
#define GENRECALL_TF_OPS_ENGINE_METRICS_H_

#include <memory>

#include "trtllm_bridge/engine.h"

namespace genrecall::metrics {

// Shows the engine for as long as it lives. Called again for the same engine, changes nothing.
void WatchEngine(const std::shared_ptr<Engine>& engine);

}  // namespace genrecall::metrics

#endif  // GENRECALL_TF_OPS_ENGINE_METRICS_H_
