// What the ops count: tensorflow::monitoring metrics, so TF Serving's Prometheus page shows them.
// (engine_metrics.h has those of engines.)
//   /genrecall/request/checked{status}   rows seen by CheckRequest
//   /genrecall/decode/finished{status}   rows ended by the engine
//   /genrecall/decode/latency_ms         histogram, from the op's start to the row's end
//   /genrecall/prefix_cache/rows{outcome}    rows decoded: "hit" when a part of the prompt was kept, else
//   "miss" /genrecall/prefix_cache/tokens{source}   their prompts' tokens: "cached" or "computed"
//   /genrecall/index/replaced            times an index took the place of another
//   /genrecall/index/rejected            index files refused
//   /genrecall/index/items               gauge{sid_space}: items of the index that serves
#ifndef GENRECALL_TF_OPS_METRICS_H_
#define GENRECALL_TF_OPS_METRICS_H_

#include <cstdint>
#include <string>

#include "kernels/status.h"

namespace genrecall::metrics {

// "OK", "INVALID_ARGUMENT", ...: the status label.
const char* StatusLabel(Code code);

void CountChecked(Code code);
void CountDecoded(Code code, double latency_ms);
// A decoded row's prompt tokens.
void CountPrefix(int64_t cached, int64_t computed);
void CountIndexReplaced();
void CountIndexRejected();
void SetIndexItems(const std::string& sid_space_digest, int64_t items);

// Prometheus' text format of every metric in the process, named and escaped as TF Serving's own page does.
std::string PrometheusText();

}  // namespace genrecall::metrics

#endif  // GENRECALL_TF_OPS_METRICS_H_
