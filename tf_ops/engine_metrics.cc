#include "tf_ops/engine_metrics.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tensorflow/core/lib/monitoring/collection_registry.h"
#include "tensorflow/core/lib/monitoring/metric_def.h"

namespace genrecall::metrics {
namespace {

using tensorflow::monitoring::CollectionRegistry;
using tensorflow::monitoring::MetricCollectorGetter;
using tensorflow::monitoring::MetricDef;
using tensorflow::monitoring::MetricKind;

// The engines of the process; does not keep them alive.
class LiveEngines {
 public:
  void Add(const std::shared_ptr<Engine>& engine) {
    std::lock_guard<std::mutex> lock(mutex_);
    engines_.erase(std::remove_if(engines_.begin(), engines_.end(),
                                  [&](const auto& e) { return e.expired() || e.lock() == engine; }),
                   engines_.end());
    engines_.push_back(engine);
  }

  // Sums one number of the stats by engine name.
  std::map<std::string, int64_t> Sum(int64_t EngineStats::* field) {
    std::vector<std::weak_ptr<Engine>> engines;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      engines = engines_;
    }
    std::map<std::string, int64_t> sums;
    for (const auto& weak : engines) {
      // Held only here: should it be the last holder, the engine ends on this thread, which is none of its
      // own.
      if (const auto engine = weak.lock()) sums[engine->name()] += engine->stats().*field;
    }
    return sums;
  }

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<Engine>> engines_;
};

LiveEngines* Engines() {
  static auto* engines = new LiveEngines;
  return engines;
}

// A gauge that is computed when it is collected, so that it is never stale.
class EngineGauge {
 public:
  EngineGauge(const char* name, const char* description, int64_t EngineStats::* field)
      : def_(name, description, "engine"),
        registration_(
            CollectionRegistry::Default()->Register(&def_, [this, field](MetricCollectorGetter getter) {
              auto collector = getter.Get(&def_);
              for (const auto& [engine, value] : Engines()->Sum(field))
                collector.CollectValue({engine}, value);
            })) {}

 private:
  MetricDef<MetricKind::kGauge, int64_t, 1> def_;
  std::unique_ptr<CollectionRegistry::RegistrationHandle> registration_;
};

const auto* queued =
    new EngineGauge("/genrecall/engine/queued", "Requests waiting for the engine.", &EngineStats::queued);
const auto* running =
    new EngineGauge("/genrecall/engine/running", "Requests being decoded.", &EngineStats::running);
const auto* kv_bytes =
    new EngineGauge("/genrecall/engine/kv_bytes", "Memory of keys and values.", &EngineStats::kv_bytes);
const auto* kv_cached_bytes =
    new EngineGauge("/genrecall/engine/kv_cached_bytes", "Memory of keys and values of kept prompt prefixes.",
                    &EngineStats::kv_cached_bytes);
const auto* kv_resident_bytes = new EngineGauge("/genrecall/engine/kv_resident_bytes",
                                                "Memory held for keys and values, spare blocks included.",
                                                &EngineStats::kv_resident_bytes);
const auto* kv_evicted_pages = new EngineGauge("/genrecall/engine/kv_evicted_pages",
                                               "Pages of kept prompt prefixes that live engines had to drop.",
                                               &EngineStats::kv_evicted_pages);
const auto* weight_bytes =
    new EngineGauge("/genrecall/engine/weight_bytes", "Memory of weights.", &EngineStats::weight_bytes);

}  // namespace

void WatchEngine(const std::shared_ptr<Engine>& engine) { Engines()->Add(engine); }

}  // namespace genrecall::metrics
