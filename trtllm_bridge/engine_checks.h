// What an engine refuses: options and requests, checked before anything is done with them.
#ifndef GENRECALL_TRTLLM_BRIDGE_ENGINE_CHECKS_H_
#define GENRECALL_TRTLLM_BRIDGE_ENGINE_CHECKS_H_

#include <cstdint>
#include <vector>

#include "kernels/recall_index.h"
#include "kernels/status.h"
#include "trtllm_bridge/engine.h"

namespace genrecall {

// All answer INVALID_ARGUMENT with the name, the value and what was expected.
Status CheckOptions(const EngineOptions& options);
Status CheckPrompt(const std::vector<int32_t>& prompt, int max_tokens, int vocab);
// A request for weights of that SID space.
Status CheckRequest(const DecodeRequest& request, int max_prompt_tokens, int vocab, const SidSpace& space);

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_ENGINE_CHECKS_H_
