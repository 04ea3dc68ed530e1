// AcquireEngine: one engine per weights digest, dtype and options, for as long as somebody holds it.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "trtllm_bridge/cpu_engine.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/weights.h"

namespace genrecall {
namespace {

using EngineMap = std::map<std::string, std::weak_ptr<CpuEngine>>;

std::string OptionsKey(const EngineOptions& o) {
  return Cat(o.num_threads, "|", o.max_queue, "|", o.max_step_rows, "|", o.prefill_chunk, "|",
             o.max_prompt_tokens);
}

std::string WeightsKey(const DecoderWeights& weights) {
  return Cat(weights.digest(), "|", static_cast<int>(weights.dtype()), "|",
             QuantizationName(weights.quantization()), "|", weights.sid_tokens().space.digest);
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

}  // namespace

Result<std::shared_ptr<Engine>> AcquireEngine(const std::string& engine, const std::string& weights_path,
                                              const EngineOptions& options) {
  if (engine != "cpu") {
    return Status(Code::kUnimplemented, Cat("engine '", engine, "' is not built in; available: cpu"));
  }
  // Held while loading: two graphs that start at once must not both load the weights.
  static std::mutex mutex;
  static auto* by_weights = new EngineMap();
  static auto* by_fingerprint = new EngineMap();  // so that weights in use are not even read a second time
  std::lock_guard<std::mutex> lock(mutex);

  const std::string fingerprint = Fingerprint(weights_path);
  const std::string fingerprint_key = Cat(fingerprint, "|", OptionsKey(options));
  if (!fingerprint.empty()) {
    if (auto shared = (*by_fingerprint)[fingerprint_key].lock()) return std::shared_ptr<Engine>(shared);
  }
  Result<std::shared_ptr<const GgufFile>> file = GgufFile::Read(weights_path, /*require_checksum=*/false);
  if (!file.ok()) return file.status();
  Result<std::shared_ptr<const DecoderWeights>> weights = DecoderWeights::Load(std::move(file.value()));
  if (!weights.ok()) return weights.status();
  std::weak_ptr<CpuEngine>& known =
      (*by_weights)[Cat(WeightsKey(*weights.value()), "|", OptionsKey(options))];
  std::shared_ptr<CpuEngine> shared = known.lock();
  if (shared == nullptr) {
    Result<std::shared_ptr<CpuEngine>> created = CpuEngine::Create(std::move(weights.value()), options);
    if (!created.ok()) return created.status();
    shared = std::move(created.value());
    known = shared;
  }
  if (!fingerprint.empty()) (*by_fingerprint)[fingerprint_key] = shared;
  return std::shared_ptr<Engine>(std::move(shared));
}

}  // namespace genrecall
