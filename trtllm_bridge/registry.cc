// AcquireEngine: one engine per weights digest, dtype and options, for as long as somebody holds it.
#include <map>
#include <mutex>

#include "trtllm_bridge/cpu_engine.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/weights.h"

namespace genrecall {
namespace {

std::string Key(const DecoderWeights& weights, const EngineOptions& o) {
  return Cat(weights.digest(), "|", static_cast<int>(weights.dtype()), "|", weights.sid_tokens().space.digest,
             "|", o.num_threads, "|", o.max_queue, "|", o.max_step_rows, "|", o.prefill_chunk, "|",
             o.max_prompt_tokens);
}

}  // namespace

Result<std::shared_ptr<Engine>> AcquireEngine(const std::string& engine, const std::string& weights_path,
                                              const EngineOptions& options) {
  if (engine != "cpu") {
    return Status(Code::kUnimplemented, Cat("engine '", engine, "' is not built in; available: cpu"));
  }
  // Held while loading: two graphs that start at once must not both load the weights.
  static std::mutex mutex;
  static auto* engines = new std::map<std::string, std::weak_ptr<CpuEngine>>();
  std::lock_guard<std::mutex> lock(mutex);

  Result<std::shared_ptr<const GgufFile>> file = GgufFile::Read(weights_path, /*require_checksum=*/false);
  if (!file.ok()) return file.status();
  Result<std::shared_ptr<const DecoderWeights>> weights = DecoderWeights::Load(std::move(file.value()));
  if (!weights.ok()) return weights.status();
  std::weak_ptr<CpuEngine>& known = (*engines)[Key(*weights.value(), options)];
  if (std::shared_ptr<CpuEngine> shared = known.lock()) return std::shared_ptr<Engine>(std::move(shared));
  Result<std::shared_ptr<CpuEngine>> created = CpuEngine::Create(std::move(weights.value()), options);
  if (!created.ok()) return created.status();
  known = created.value();
  return std::shared_ptr<Engine>(std::move(created.value()));
}

}  // namespace genrecall
