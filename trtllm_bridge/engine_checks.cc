#include "trtllm_bridge/engine_checks.h"

#include <cmath>
#include <string>

namespace genrecall {
namespace {

Status CheckOption(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return Status();
  return InvalidArgument(name, " = ", value, ": expected ", min, "..", max);
}

std::string SizesText(const std::vector<int32_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

Status CheckIndex(const RecallIndex* index, const SidSpace& space) {
  if (index == nullptr) return InvalidArgument("index = null: expected a recall index");
  const SidSpace& other = index->sid_space();
  if (other.level_sizes != space.level_sizes) {
    return InvalidArgument("index: level_sizes = ", SizesText(other.level_sizes), ": expected the weights' ",
                           SizesText(space.level_sizes));
  }
  if (!other.digest.empty() && !space.digest.empty() && other.digest != space.digest) {
    return InvalidArgument("index: sid_space_digest = '", other.digest, "': expected the weights' '",
                           space.digest, "'");
  }
  return Status();
}

Status CheckBeam(const BeamOptions& beam) {
  GENRECALL_RETURN_IF_ERROR(CheckOption("beam_width", beam.width, 1, kMaxBeamWidth));
  if (!(beam.temperature > 0) || !std::isfinite(beam.temperature)) {
    return InvalidArgument("temperature = ", beam.temperature, ": expected > 0 and finite");
  }
  return Status();
}

}  // namespace

Status CheckOptions(const EngineOptions& o) {
  GENRECALL_RETURN_IF_ERROR(CheckOption("num_threads", o.num_threads, 0, 1024));
  GENRECALL_RETURN_IF_ERROR(CheckOption("max_queue", o.max_queue, 1, 1 << 20));
  GENRECALL_RETURN_IF_ERROR(CheckOption("max_step_rows", o.max_step_rows, 1, 1 << 16));
  GENRECALL_RETURN_IF_ERROR(CheckOption("prefill_chunk", o.prefill_chunk, 1, 1 << 16));
  GENRECALL_RETURN_IF_ERROR(CheckOption("max_prompt_tokens", o.max_prompt_tokens, 1, 1 << 20));
  return CheckOption("kv_bytes", o.kv_bytes, 0, int64_t{1} << 50);
}

Status CheckPrompt(const std::vector<int32_t>& prompt, int max_tokens, int vocab) {
  if (prompt.empty() || prompt.size() > static_cast<size_t>(max_tokens)) {
    return InvalidArgument("prompt: ", prompt.size(), " tokens: expected 1..", max_tokens);
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab) {
      return InvalidArgument("prompt[", i, "] = ", prompt[i], ": expected 0..V-1 = ", vocab - 1);
    }
  }
  return Status();
}

Status CheckRequest(const DecodeRequest& request, int max_prompt_tokens, int vocab, const SidSpace& space) {
  GENRECALL_RETURN_IF_ERROR(CheckPrompt(request.prompt, max_prompt_tokens, vocab));
  GENRECALL_RETURN_IF_ERROR(
      CheckOption("stable_prefix", request.stable_prefix, 0, static_cast<int64_t>(request.prompt.size())));
  GENRECALL_RETURN_IF_ERROR(CheckBeam(request.beam));
  return CheckIndex(request.index.get(), space);
}

}  // namespace genrecall
