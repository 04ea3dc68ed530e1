#include "tf_ops/metrics.h"

#include "tensorflow/core/lib/monitoring/counter.h"
#include "tensorflow/core/lib/monitoring/gauge.h"
#include "tensorflow/core/lib/monitoring/sampler.h"

namespace genrecall::metrics {
namespace {

using tensorflow::monitoring::Buckets;
using tensorflow::monitoring::Counter;
using tensorflow::monitoring::Gauge;
using tensorflow::monitoring::Sampler;

auto* checked = Counter<1>::New("/genrecall/request/checked", "Request rows checked, by status.", "status");
auto* decoded =
    Counter<1>::New("/genrecall/decode/finished", "Rows that the engine ended, by status.", "status");
auto* decode_latency =
    Sampler<0>::New({"/genrecall/decode/latency_ms",
                     "Milliseconds from the bridge op's start to the end of a row's decoding."},
                    Buckets::Exponential(1, 1.5, 28));  // 1 ms .. 57 s
auto* prefix_rows = Counter<1>::New("/genrecall/prefix_cache/rows",
                                    "Rows decoded, by whether a part of their prompt was kept.", "outcome");
auto* prompt_tokens =
    Counter<1>::New("/genrecall/prefix_cache/tokens",
                    "Prompt tokens of decoded rows, by where their keys and values came from.", "source");
auto* index_replaced = Counter<0>::New("/genrecall/index/replaced", "Recall indexes replaced in place.");
auto* index_rejected = Counter<0>::New("/genrecall/index/rejected", "Recall index files refused.");
auto* index_items =
    Gauge<int64_t, 1>::New("/genrecall/index/items", "Items of the recall index that serves.", "sid_space");

}  // namespace

const char* StatusLabel(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kCancelled:
      return "CANCELLED";
    case Code::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Code::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Code::kNotFound:
      return "NOT_FOUND";
    case Code::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case Code::kUnimplemented:
      return "UNIMPLEMENTED";
    case Code::kInternal:
      return "INTERNAL";
    case Code::kUnavailable:
      return "UNAVAILABLE";
    case Code::kDataLoss:
      return "DATA_LOSS";
  }
  return "UNKNOWN";
}

void CountChecked(Code code) { checked->GetCell(StatusLabel(code))->IncrementBy(1); }

void CountDecoded(Code code, double latency_ms) {
  decoded->GetCell(StatusLabel(code))->IncrementBy(1);
  decode_latency->GetCell()->Add(latency_ms);
}

void CountPrefix(int64_t cached, int64_t computed) {
  prefix_rows->GetCell(cached > 0 ? "hit" : "miss")->IncrementBy(1);
  prompt_tokens->GetCell("cached")->IncrementBy(cached);
  prompt_tokens->GetCell("computed")->IncrementBy(computed);
}

void CountIndexReplaced() { index_replaced->GetCell()->IncrementBy(1); }
void CountIndexRejected() { index_rejected->GetCell()->IncrementBy(1); }

void SetIndexItems(const std::string& sid_space_digest, int64_t items) {
  index_items->GetCell(sid_space_digest.substr(0, 12))->Set(items);  // a digest's head names it among a few
}

}  // namespace genrecall::metrics
