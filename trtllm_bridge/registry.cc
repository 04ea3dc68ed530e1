// AcquireEngine: weights are held once per digest and dtype, engines once per weights and options, for as
// long as somebody holds them.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>

#include "trtllm_bridge/cpu_engine.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/weights.h"

namespace genrecall {
namespace {

// Values by key, made on demand and shared for as long as somebody holds them. Who asks for a value that is
// being made waits for it; a slow one holds up nobody who asks for another.
template <typename T>
class SharedByKey {
 public:
  using Made = Result<std::shared_ptr<T>>;

  Made Get(const std::string& key, const std::function<Made()>& make) {
    const std::shared_ptr<Slot> slot = SlotOf(key);
    std::lock_guard<std::mutex> lock(slot->making);
    if (std::shared_ptr<T> known = slot->value.lock()) return known;
    Made made = make();
    if (made.ok()) slot->value = made.value();
    return made;
  }

 private:
  struct Slot {
    std::mutex making;
    std::weak_ptr<T> value;
  };

  std::shared_ptr<Slot> SlotOf(const std::string& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = slots_.begin(); it != slots_.end();) {
      const bool unused = it->second.use_count() == 1 && it->second->value.expired();
      it = unused ? slots_.erase(it) : std::next(it);
    }
    std::shared_ptr<Slot>& slot = slots_[key];
    if (slot == nullptr) slot = std::make_shared<Slot>();
    return slot;
  }

  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Slot>> slots_;
};

using Weights = std::shared_ptr<const DecoderWeights>;

std::string OptionsKey(const EngineOptions& o) {
  return Cat(o.num_threads, "|", o.max_queue, "|", o.max_step_rows, "|", o.prefill_chunk, "|",
             o.max_prompt_tokens, "|", o.kv_bytes);
}

std::string WeightsKey(const DecoderWeights& weights) {
  return Cat(weights.digest(), "|", static_cast<int>(weights.dtype()), "|",
             QuantizationName(weights.quantization()), "|", static_cast<int>(weights.kv_dtype()), "|",
             weights.sid_tokens().space.digest);
}

// What tells a weights file of ours by a few bytes of it: its size, its checksum trailer and the sha256 that
// its metadata holds near the front. "" when the file has not all of them: it is then read to be known.
std::string Fingerprint(const std::string& path) {
  constexpr std::streamoff kFront = 1 << 16, kTrailer = 16;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file.good() ? static_cast<std::streamoff>(file.tellg()) : 0;
  if (size < kTrailer) return "";
  std::string front(std::min(size, kFront), '\0'), trailer(kTrailer, '\0');
  file.seekg(0).read(front.data(), static_cast<std::streamsize>(front.size()));
  file.seekg(size - kTrailer).read(trailer.data(), kTrailer);
  if (!file.good() || trailer.compare(0, 8, "GRCKSUM1") != 0) return "";

  // GGUF: the key, its type (8: string), the length as 8 bytes, the text.
  const std::string key = "genrecall.weights_digest";
  const size_t at = front.find(key);
  if (at == std::string::npos || at + key.size() + 12 > front.size()) return "";
  uint64_t length;
  std::memcpy(&length, front.data() + at + key.size() + 4, sizeof length);
  const size_t text = at + key.size() + 12;
  if (length == 0 || length > front.size() - text) return "";
  return Cat(size, "|", trailer, "|", front.substr(text, length));
}

Result<Weights> Read(const std::string& path) {
  Result<std::shared_ptr<const GgufFile>> file = GgufFile::Read(path, /*require_checksum=*/false);
  if (!file.ok()) return file.status();
  return DecoderWeights::Load(std::move(file.value()));
}

Result<Weights> AcquireWeights(const std::string& path) {
  static auto* by_digest = new SharedByKey<const DecoderWeights>();
  static auto* by_fingerprint = new SharedByKey<const DecoderWeights>();  // in use: not even read again
  const auto load = [&]() -> Result<Weights> {
    Result<Weights> weights = Read(path);
    if (!weights.ok()) return weights.status();
    return by_digest->Get(WeightsKey(*weights.value()), [&] { return weights; });
  };
  const std::string fingerprint = Fingerprint(path);
  return fingerprint.empty() ? load() : by_fingerprint->Get(fingerprint, load);
}

}  // namespace

Result<std::shared_ptr<Engine>> AcquireEngine(const std::string& engine, const std::string& weights_path,
                                              const EngineOptions& options) {
  if (engine != "cpu") {
    return Status(Code::kUnimplemented, Cat("engine '", engine, "' is not built in; available: cpu"));
  }
  static auto* engines = new SharedByKey<CpuEngine>();
  Result<Weights> weights = AcquireWeights(weights_path);
  if (!weights.ok()) return weights.status();
  Result<std::shared_ptr<CpuEngine>> cpu =
      engines->Get(Cat(WeightsKey(*weights.value()), "|", OptionsKey(options)),
                   [&] { return CpuEngine::Create(std::move(weights.value()), options); });
  if (!cpu.ok()) return cpu.status();
  return std::shared_ptr<Engine>(std::move(cpu.value()));
}

}  // namespace genrecall
