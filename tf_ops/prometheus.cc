// Prometheus' text format. TF Serving has this page built in; a server of another build shows the same lines
// by it.
#include <cctype>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tensorflow/core/lib/monitoring/collected_metrics.h"
#include "tensorflow/core/lib/monitoring/collection_registry.h"
#include "tf_ops/metrics.h"

namespace genrecall::metrics {
namespace {

using tensorflow::monitoring::CollectionRegistry;
using tensorflow::monitoring::MetricDescriptor;
using tensorflow::monitoring::MetricKind;
using tensorflow::monitoring::Point;
using tensorflow::monitoring::PointSet;
using tensorflow::monitoring::ValueType;

// A name with every character but letters, digits and '_' replaced, not starting with a digit.
std::string Sanitize(const std::string& name, char replacement) {
  std::string out;
  if (!name.empty() && std::isdigit(static_cast<unsigned char>(name[0]))) out = "_";
  for (unsigned char c : name) out += std::isalnum(c) || c == '_' ? static_cast<char>(c) : replacement;
  return out;
}

std::vector<std::string> Labels(const Point& point) {
  std::vector<std::string> labels;
  for (const Point::Label& label : point.labels) {
    const std::string value =
        absl::StrReplaceAll(label.value, {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", "\\n"}});
    labels.push_back(absl::StrCat(Sanitize(label.name, '_'), "=\"", value, "\""));
  }
  return labels;
}

void AppendHistogram(const std::string& name, const Point& point, std::string* page) {
  const std::vector<std::string> labels = Labels(point);
  const std::string joined = absl::StrJoin(labels, ",");
  const auto& histogram = point.histogram_value;
  int64_t count = 0;
  for (int i = 0; i < histogram.bucket_size(); ++i) {
    count += static_cast<int64_t>(histogram.bucket(i));
    const bool last = i + 1 == histogram.bucket_size();
    absl::StrAppend(page, name, "_bucket{", joined, labels.empty() ? "" : ",", "le=\"",
                    last ? "+Inf" : absl::StrCat(histogram.bucket_limit(i)), "\"} ", count, "\n");
  }
  absl::StrAppend(page, name, "_sum{", joined, "} ", histogram.sum(), "\n");
  absl::StrAppend(page, name, "_count{", joined, "} ", count, "\n");
}

// Strings and percentiles have no place in this format.
std::string Value(const MetricDescriptor& metric, const Point& point) {
  if (metric.value_type == ValueType::kBool) return point.bool_value ? "1" : "0";
  if (metric.value_type == ValueType::kDouble) return absl::StrCat(point.double_value);
  return metric.value_type == ValueType::kInt64 ? absl::StrCat(point.int64_value) : "";
}

void AppendMetric(const MetricDescriptor& metric, const PointSet& points, std::string* page) {
  const std::string name = Sanitize(metric.name, ':');
  const bool histogram = metric.value_type == ValueType::kHistogram;
  const char* type = histogram                                       ? "histogram"
                     : metric.metric_kind == MetricKind::kCumulative ? "counter"
                     : metric.metric_kind == MetricKind::kGauge      ? "gauge"
                                                                     : "untyped";
  absl::StrAppend(page, "# TYPE ", name, " ", type, "\n");
  for (const auto& point : points.points) {
    const std::string value = Value(metric, *point);
    if (histogram) {
      AppendHistogram(name, *point, page);
    } else if (!value.empty()) {
      absl::StrAppend(page, name, "{", absl::StrJoin(Labels(*point), ","), "} ", value, "\n");
    }
  }
}

}  // namespace

std::string PrometheusText() {
  const auto collected =
      CollectionRegistry::Default()->CollectMetrics(CollectionRegistry::CollectMetricsOptions());
  std::string page;
  for (const auto& [name, metric] : collected->metric_descriptor_map) {
    const auto points = collected->point_set_map.find(name);
    if (points != collected->point_set_map.end()) AppendMetric(*metric, *points->second, &page);
  }
  return page;
}

}  // namespace genrecall::metrics
