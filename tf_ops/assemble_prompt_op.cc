// Feature values + cleaned behaviours with their SIDs -> token ids.
#include <algorithm>
#include <string_view>

#include "tensorflow/core/framework/op.h"
#include "tf_ops/dims.h"
#include "tf_ops/item_rows.h"
#include "tf_ops/prompt_resource.h"
#include "tf_ops/resource_init.h"

namespace genrecall {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("Genrecall>AssemblePrompt")
    .Input("prompt: resource")
    .Input("action: int32")
    .Input("domain: int32")
    .Input("sids: int32")
    .Input("facets: int16")
    .Input("length: int32")
    .Input("string_features: num_string * string")
    .Input("int64_features: num_int64 * int64")
    .Input("float_features: num_float * float")
    .Attr("num_string: int >= 0")
    .Attr("num_int64: int >= 0")
    .Attr("num_float: int >= 0")
    .Output("tokens: int32")
    .Output("num_tokens: int32")
    .Output("stable_prefix: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeDims dims(c);
      TF_RETURN_IF_ERROR(dims.Input("prompt", ""));
      TF_RETURN_IF_ERROR(dims.Input("action", "BT"));
      TF_RETURN_IF_ERROR(dims.Input("domain", "BT"));
      TF_RETURN_IF_ERROR(dims.Input("sids", "BTL"));
      TF_RETURN_IF_ERROR(dims.Input("facets", "BTF"));
      for (const char* name : {"length", "string_features", "int64_features", "float_features"}) {
        TF_RETURN_IF_ERROR(dims.Input(name, "B"));
      }
      TF_RETURN_IF_ERROR(dims.Output("tokens", "BP"));
      TF_RETURN_IF_ERROR(dims.Output("num_tokens", "B"));
      return dims.Output("stable_prefix", "B");
    })
    .Doc(R"doc(
Writes each row's prompt by the compiled prompt spec. Behaviours of items that the index does not know are left out.

prompt: <resource>[], of PromptHandle.
action: <int32>[B, T], cleaned behaviours, oldest first.
domain: <int32>[B, T].
sids: <int32>[B, T, L], of LookupSemanticIds; -1 for an unknown item.
facets: <int16>[B, T, F].
length: <int32>[B], 0..T.
string_features: <string>[B] each, the spec's features of kind string, in its order.
int64_features: <int64>[B] each, those of kind int64.
float_features: <float>[B] each, those of kind bucket.
tokens: <int32>[B, P], P the longest prompt of the batch; 0 pads.
num_tokens: <int32>[B].
stable_prefix: <int32>[B], tokens before the first that depends on recent behaviours.
)doc");

// The inputs, each checked.
struct PromptInputs {
  int64_t rows, width, levels, facets;
  const int32_t *action, *domain, *sids, *length;
  const int16_t* facet_values;
  OpInputList features[3];  // by FeatureKind

  absl::Status Read(OpKernelContext* ctx, const Prompt& prompt) {
    InputDims dims;
    dims.Bind('L', static_cast<int64_t>(prompt.sid_space().level_sizes.size()));
    dims.Bind('F', prompt.num_facets());
    TF_RETURN_IF_ERROR(dims.Input(ctx, "action", "BT", &action));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "domain", "BT", &domain));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "sids", "BTL", &sids));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "facets", "BTF", &facet_values));
    TF_RETURN_IF_ERROR(dims.Input(ctx, "length", "B", &length));
    rows = dims['B'], width = dims['T'], levels = dims['L'], facets = dims['F'];
    for (int64_t b = 0; b < rows; ++b) {
      TF_RETURN_IF_ERROR(CheckLength("length", b, length[b], 'T', width));
      for (int64_t t = 0; t < length[b]; ++t) TF_RETURN_IF_ERROR(CheckSid(prompt, b, t));
    }
    return ReadFeatures(ctx, prompt, &dims);
  }

  // Prompt::Assemble looks codes up without a check.
  absl::Status CheckSid(const Prompt& prompt, int64_t b, int64_t t) const {
    const int32_t* codes = sids + (b * width + t) * levels;
    if (codes[0] < 0) return absl::OkStatus();  // unknown, skipped
    for (int64_t l = 0; l < levels; ++l) {
      const int32_t size = prompt.sid_space().level_sizes[l];
      if (codes[l] < 0 || codes[l] >= size) {
        return absl::InvalidArgumentError(absl::StrCat("sids[", b, ", ", t, ", ", l, "] = ", codes[l],
                                                       ": expected 0..C - 1 = ", size - 1,
                                                       ", or -1 for the whole SID"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadFeatures(OpKernelContext* ctx, const Prompt& prompt, InputDims* dims) {
    const char* const names[] = {"string_features", "int64_features", "float_features"};
    for (int kind = 0; kind < 3; ++kind) {
      TF_RETURN_IF_ERROR(ctx->input_list(names[kind], &features[kind]));
      int at = 0;
      for (int f = 0; f < prompt.num_features(); ++f) {
        if (static_cast<int>(prompt.feature_kind(f)) != kind) continue;
        if (at < features[kind].size()) {
          TF_RETURN_IF_ERROR(dims->Check(prompt.feature_name(f), features[kind][at], "B"));
        }
        ++at;
      }
      if (at != features[kind].size()) {
        return absl::InvalidArgumentError(absl::StrCat(names[kind], ": got ", features[kind].size(),
                                                       " tensors: expected ", at,
                                                       ", as the prompt spec has"));
      }
    }
    return absl::OkStatus();
  }

  // Row b's behaviours, less those of unknown items.
  PromptBehaviors Behaviors(int64_t b) const {
    PromptBehaviors out;
    for (int64_t t = b * width; t < b * width + length[b]; ++t) {
      const int32_t* codes = sids + t * levels;
      if (codes[0] < 0) continue;
      out.action.push_back(action[t]);
      out.domain.push_back(domain[t]);
      out.codes.insert(out.codes.end(), codes, codes + levels);
      out.facets.insert(out.facets.end(), facet_values + t * facets, facet_values + (t + 1) * facets);
      ++out.length;
    }
    return out;
  }

  std::vector<int32_t> FeatureValues(const Prompt& prompt, int64_t b) const {
    std::vector<int32_t> values;
    int next[3] = {0, 0, 0};
    for (int f = 0; f < prompt.num_features(); ++f) {
      const int kind = static_cast<int>(prompt.feature_kind(f));
      const tensorflow::Tensor& tensor = features[kind][next[kind]++];
      if (prompt.feature_kind(f) == FeatureKind::kString) {
        const tensorflow::tstring& value = tensor.flat<tensorflow::tstring>()(b);
        values.push_back(prompt.FeatureValue(f, std::string_view(value.data(), value.size())));
      } else if (prompt.feature_kind(f) == FeatureKind::kInt64) {
        values.push_back(prompt.FeatureValue(f, tensor.flat<int64_t>()(b)));
      } else {
        values.push_back(prompt.FeatureValue(f, tensor.flat<float>()(b)));
      }
    }
    return values;
  }
};

class AssemblePromptOp : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    tensorflow::core::RefCountPtr<PromptResource> resource;
    OP_REQUIRES_OK(ctx, ResourceInput(ctx, "prompt", &resource));
    const Prompt& prompt = resource->prompt();
    PromptInputs in{};
    OP_REQUIRES_OK(ctx, in.Read(ctx, prompt));
    std::vector<AssembledPrompt> prompts(in.rows);
    size_t longest = 0;
    for (int64_t b = 0; b < in.rows; ++b) {
      prompt.Assemble(in.FeatureValues(prompt, b).data(), in.Behaviors(b), &prompts[b]);
      longest = std::max(longest, prompts[b].tokens.size());
    }
    int32_t *tokens = nullptr, *num_tokens = nullptr, *stable_prefix = nullptr;
    const int64_t width = static_cast<int64_t>(longest);
    OP_REQUIRES_OK(ctx, Output(ctx, "tokens", {in.rows, width}, &tokens));
    OP_REQUIRES_OK(ctx, Output(ctx, "num_tokens", {in.rows}, &num_tokens));
    OP_REQUIRES_OK(ctx, Output(ctx, "stable_prefix", {in.rows}, &stable_prefix));
    for (int64_t b = 0; b < in.rows; ++b) {
      WriteRow(prompts[b].tokens, b, width, int32_t{0}, tokens);
      num_tokens[b] = static_cast<int32_t>(prompts[b].tokens.size());
      stable_prefix[b] = prompts[b].stable_prefix;
    }
  }
};

REGISTER_KERNEL_BUILDER(Name("Genrecall>AssemblePrompt").Device(tensorflow::DEVICE_CPU), AssemblePromptOp);

}  // namespace
}  // namespace genrecall
