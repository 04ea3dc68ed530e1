// A compiled prompt as a TensorFlow resource.
#ifndef GENRECALL_TF_OPS_PROMPT_RESOURCE_H_
#define GENRECALL_TF_OPS_PROMPT_RESOURCE_H_

#include <memory>
#include <string>
#include <utility>

#include "kernels/prompt.h"
#include "tensorflow/core/framework/resource_base.h"

namespace genrecall {

class PromptResource : public tensorflow::ResourceBase {
 public:
  static Result<PromptResource*> Create(const std::string& path, const std::string& sid_space_digest) {
    auto prompt = Prompt::Load(path, sid_space_digest);
    if (!prompt.ok()) return prompt.status();
    return new PromptResource(prompt.value());
  }

  const Prompt& prompt() const { return *prompt_; }
  std::string DebugString() const override { return "compiled prompt"; }

 private:
  explicit PromptResource(std::shared_ptr<const Prompt> prompt) : prompt_(std::move(prompt)) {}
  const std::shared_ptr<const Prompt> prompt_;
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_PROMPT_RESOURCE_H_
