// Python door of behaviour cleaning and prompt assembly.
#include <algorithm>
#include <cmath>

#include "kernels/behaviors.h"
#include "kernels/bindings.h"
#include "kernels/prompt.h"

namespace genrecall {

namespace {

template <typename T>
py::array_t<T> ToArray(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void CheckShape(const py::array& array, const char* name, const std::vector<py::ssize_t>& shape) {
  if (static_cast<size_t>(array.ndim()) == shape.size() &&
      std::equal(shape.begin(), shape.end(), array.shape())) {
    return;
  }
  std::string expected;
  for (py::ssize_t dim : shape) expected += (expected.empty() ? "[" : ", ") + std::to_string(dim);
  throw py::value_error(Cat(name, " has shape ", ShapeString(array), ": expected ", expected, "]"));
}

py::dict Clean(const py::object& item, const py::object& action, const py::object& domain,
               const py::object& time, int64_t request_time, int max_events, int block, uint32_t actions,
               uint32_t domains, int64_t attribution_window_s, int64_t repeat_window_s) {
  const auto items = IntArray<int64_t>(item, "item", 1);
  const auto acts = IntArray<int32_t>(action, "action", 1);
  const auto doms = IntArray<int32_t>(domain, "domain", 1);
  const auto times = IntArray<int64_t>(time, "time", 1);
  const py::ssize_t n = items.shape(0);
  CheckShape(acts, "action", {n});
  CheckShape(doms, "domain", {n});
  CheckShape(times, "time", {n});
  if (max_events < 1) throw py::value_error(Cat("max_events = ", max_events, ": expected >= 1"));
  if (block < 1 || block > max_events) {
    throw py::value_error(Cat("block = ", block, ": expected 1..max_events = ", max_events));
  }
  const CleanOptions options{max_events, block, actions, domains, attribution_window_s, repeat_window_s};
  CleanedBehaviors out;
  {
    py::gil_scoped_release release;
    CleanBehaviors({items.data(), acts.data(), doms.data(), times.data(), static_cast<int>(n)}, request_time,
                   options, &out);
  }
  py::dict result;
  result["item"] = ToArray(out.item);
  result["action"] = ToArray(out.action);
  result["domain"] = ToArray(out.domain);
  result["time"] = ToArray(out.time);
  return result;
}

const char* KindName(FeatureKind kind) {
  switch (kind) {
    case FeatureKind::kString:
      return "string";
    case FeatureKind::kInt64:
      return "int64";
    case FeatureKind::kBucket:
      return "bucket";
  }
  return "";
}

const char* KindName(SegmentKind kind) {
  static constexpr const char* kNames[kNumSegmentKinds] = {"text", "feature", "interest", "long_term",
                                                           "recent"};
  return kNames[static_cast<int>(kind)];
}

// Value number of one cell of a feature column; None is missing.
int32_t FeatureCell(const Prompt& prompt, int f, const py::handle& cell, py::ssize_t row) {
  if (cell.is_none()) return -1;
  const auto where = [&] { return Cat("features['", prompt.feature_name(f), "'][", row, "]"); };
  try {
    switch (prompt.feature_kind(f)) {
      case FeatureKind::kString:
        if (py::isinstance<py::str>(cell) || py::isinstance<py::bytes>(cell)) {
          return prompt.FeatureValue(f, std::string_view(cell.cast<std::string>()));
        }
        break;
      case FeatureKind::kInt64:
        if (!py::isinstance<py::float_>(cell)) return prompt.FeatureValue(f, cell.cast<int64_t>());
        break;
      case FeatureKind::kBucket: {
        const float value = cell.cast<float>();
        if (std::isnan(value)) throw py::value_error(Cat(where(), " = nan: expected a number"));
        return prompt.FeatureValue(f, value);
      }
    }
  } catch (const py::cast_error&) {  // the message below
  }
  throw py::value_error(Cat(where(), " = ", std::string(py::repr(cell)), ": expected a ",
                            KindName(prompt.feature_kind(f)), " value"));
}

// The [rows, num_features] value numbers of a dict of columns; features without a column are missing.
std::vector<int32_t> FeatureValues(const Prompt& prompt, const py::object& features, py::ssize_t rows) {
  const int num_features = prompt.num_features();
  std::vector<int32_t> values(static_cast<size_t>(rows) * num_features, -1);
  if (features.is_none()) return values;
  for (const auto& [key, column] : features.cast<py::dict>()) {
    const std::string name = key.cast<std::string>();
    int f = 0;
    while (f < num_features && prompt.feature_name(f) != name) ++f;
    if (f == num_features)
      throw py::value_error(Cat("features['", name, "']: the prompt spec has no such feature"));
    const py::sequence cells = py::hasattr(column, "tolist")  // NumPy scalars as Python's
                                   ? py::sequence(column.attr("tolist")())
                                   : py::reinterpret_borrow<py::sequence>(column);
    if (static_cast<py::ssize_t>(py::len(cells)) != rows) {
      throw py::value_error(
          Cat("features['", name, "'] has ", py::len(cells), " values: expected B = ", rows));
    }
    py::ssize_t row = 0;
    for (const py::handle& cell : cells) {
      values[static_cast<size_t>(row) * num_features + f] = FeatureCell(prompt, f, cell, row);
      ++row;
    }
  }
  return values;
}

// A batch of users as Python hands it over, checked.
struct Batch {
  Array<int64_t> item;
  Array<int32_t> action, domain;
  Array<int64_t> time;
  Array<int32_t> length;
  Array<int64_t> request_time;
  std::vector<int32_t> features;
  py::ssize_t rows, steps;

  Batch(const Prompt& prompt, const py::object& item_in, const py::object& action_in,
        const py::object& domain_in, const py::object& time_in, const py::object& length_in,
        const py::object& request_time_in, const py::object& features_in)
      : item(IntArray<int64_t>(item_in, "item", 2)),
        action(IntArray<int32_t>(action_in, "action", 2)),
        domain(IntArray<int32_t>(domain_in, "domain", 2)),
        time(IntArray<int64_t>(time_in, "time", 2)),
        length(IntArray<int32_t>(length_in, "length", 1)),
        request_time(IntArray<int64_t>(request_time_in, "request_time", 1)),
        rows(item.shape(0)),
        steps(item.shape(1)) {
    CheckShape(action, "action", {rows, steps});
    CheckShape(domain, "domain", {rows, steps});
    CheckShape(time, "time", {rows, steps});
    CheckShape(length, "length", {rows});
    CheckShape(request_time, "request_time", {rows});
    for (py::ssize_t b = 0; b < rows; ++b) {
      if (length.at(b) < 0 || length.at(b) > steps) {
        throw py::value_error(Cat("length[", b, "] = ", length.at(b), ": expected 0..T = ", steps));
      }
    }
    features = FeatureValues(prompt, features_in, rows);
  }

  BehaviorView row(py::ssize_t b) const {
    const py::ssize_t at = b * steps;
    return {item.data() + at, action.data() + at, domain.data() + at, time.data() + at, length.data()[b]};
  }
};

// The prompts of a batch and the behaviours they were written from.
struct AssembledRows {
  std::vector<PromptBehaviors> behaviors;
  std::vector<AssembledPrompt> prompts;

  // Cleans, looks up and assembles every row.
  AssembledRows(const Prompt& prompt, const RecallIndex& index, const Batch& batch)
      : behaviors(batch.rows), prompts(batch.rows) {
    ThrowIfError(prompt.CheckIndex(index));
    py::gil_scoped_release release;
    CleanedBehaviors cleaned;
    for (py::ssize_t b = 0; b < batch.rows; ++b) {
      CleanBehaviors(batch.row(b), batch.request_time.data()[b], prompt.clean_options(), &cleaned);
      LookupBehaviors(index, cleaned, &behaviors[b]);
      prompt.Assemble(batch.features.data() + b * prompt.num_features(), behaviors[b], &prompts[b]);
    }
  }

  // (tokens [B, P], length [B], stable_prefix [B])
  py::tuple ToTuple() const {
    const auto rows = static_cast<py::ssize_t>(prompts.size());
    size_t longest = 0;
    for (const AssembledPrompt& p : prompts) longest = std::max(longest, p.tokens.size());
    py::array_t<int32_t> tokens({rows, static_cast<py::ssize_t>(longest)});
    py::array_t<int32_t> lengths(rows), stable(rows);
    std::fill_n(tokens.mutable_data(), tokens.size(), 0);
    for (py::ssize_t b = 0; b < rows; ++b) {
      const AssembledPrompt& p = prompts[b];
      std::copy(p.tokens.begin(), p.tokens.end(),
                tokens.mutable_data() + b * static_cast<py::ssize_t>(longest));
      lengths.mutable_data()[b] = static_cast<int32_t>(p.tokens.size());
      stable.mutable_data()[b] = p.stable_prefix;
    }
    return py::make_tuple(tokens, lengths, stable);
  }

  // (asked [B, N], begin [B, N], codes [B, N, L])
  py::tuple Events(py::ssize_t levels) const {
    const auto rows = static_cast<py::ssize_t>(prompts.size());
    size_t most = 0;
    for (const AssembledPrompt& p : prompts) most = std::max(most, p.events.size());
    const auto width = static_cast<py::ssize_t>(most);
    py::array_t<int32_t> asked({rows, width}), begin({rows, width}), codes({rows, width, levels});
    for (auto* array : {&asked, &begin, &codes}) std::fill_n(array->mutable_data(), array->size(), -1);
    for (py::ssize_t b = 0; b < rows; ++b) {
      py::ssize_t at = b * width;
      for (const EventPlace& place : prompts[b].events) {
        asked.mutable_data()[at] = place.asked;
        begin.mutable_data()[at++] = place.begin;
      }
      std::copy(behaviors[b].codes.begin(), behaviors[b].codes.end(),
                codes.mutable_data() + b * width * levels);
    }
    return py::make_tuple(asked, begin, codes);
  }
};

py::tuple Assemble(const Prompt& prompt, std::shared_ptr<RecallIndex> index, const py::object& item,
                   const py::object& action, const py::object& domain, const py::object& time,
                   const py::object& length, const py::object& request_time, const py::object& features) {
  const Batch batch(prompt, item, action, domain, time, length, request_time, features);
  return AssembledRows(prompt, *index, batch).ToTuple();
}

py::tuple AssembleEvents(const Prompt& prompt, std::shared_ptr<RecallIndex> index, const py::object& item,
                         const py::object& action, const py::object& domain, const py::object& time,
                         const py::object& length, const py::object& request_time,
                         const py::object& features) {
  const Batch batch(prompt, item, action, domain, time, length, request_time, features);
  const AssembledRows rows(prompt, *index, batch);
  return rows.ToTuple() + rows.Events(static_cast<py::ssize_t>(prompt.sid_space().level_sizes.size()));
}

py::list Segments(const Prompt& prompt, std::shared_ptr<RecallIndex> index, const py::object& item,
                  const py::object& action, const py::object& domain, const py::object& time,
                  const py::object& length, const py::object& request_time, const py::object& features) {
  const Batch batch(prompt, item, action, domain, time, length, request_time, features);
  py::list out;
  const AssembledRows rows(prompt, *index, batch);
  for (const AssembledPrompt& p : rows.prompts) {
    py::list segments;
    int begin = 0;
    for (int s = 0; s < prompt.num_segments(); ++s) {
      const int end = p.segment_end[s];
      py::list tokens;
      for (int i = begin; i < end; ++i) tokens.append(p.tokens[i]);
      segments.append(py::make_tuple(KindName(prompt.segment_kind(s)), tokens));
      begin = end;
    }
    out.append(segments);
  }
  return out;
}

std::shared_ptr<Prompt> Load(const py::object& path, const std::string& digest) {
  const std::string source = py::module_::import("os").attr("fspath")(path).cast<std::string>();
  Result<std::shared_ptr<const Prompt>> result = Status();
  {
    py::gil_scoped_release release;
    result = Prompt::Load(source, digest);
  }
  return std::const_pointer_cast<Prompt>(ValueOrThrow(std::move(result)));
}

py::list Features(const Prompt& prompt) {
  py::list out;
  for (int f = 0; f < prompt.num_features(); ++f) {
    out.append(py::make_tuple(prompt.feature_name(f), KindName(prompt.feature_kind(f))));
  }
  return out;
}

py::list Facets(const Prompt& prompt) {
  py::list out;
  for (int f = 0; f < prompt.num_facets(); ++f) out.append(prompt.facet_name(f));
  return out;
}

py::list TokenIds(const Prompt& prompt) {
  py::list out;
  const std::vector<int32_t>& sizes = prompt.sid_space().level_sizes;
  for (size_t level = 0; level < sizes.size(); ++level) {
    py::array_t<int32_t> ids(sizes[level]);
    for (int32_t code = 0; code < sizes[level]; ++code) {
      ids.mutable_data()[code] = prompt.sid_token(static_cast<int>(level), code);
    }
    out.append(ids);
  }
  return out;
}

py::dict CleanOptionsDict(const Prompt& prompt) {
  const CleanOptions& options = prompt.clean_options();
  py::dict out;
  out["max_events"] = options.max_events;
  out["block"] = options.block;
  out["actions"] = options.actions;
  out["domains"] = options.domains;
  out["attribution_window_s"] = options.attribution_window_s;
  out["repeat_window_s"] = options.repeat_window_s;
  return out;
}

constexpr const char* kAssembleDoc =
    R"(Raw events of B users -> their prompts: cleans, looks up, assembles, as serving does, in the same C++.

Args:
  index: RecallIndex of the prompt's SID space, with as many facets as the spec. Events of items it does not have are skipped.
  item, action, domain, time: integers [B, T], each row's first `length` entries in any order; time in Unix seconds.
  length: integers [B], each in 0..T.
  request_time: integers [B], Unix seconds; later events are dropped.
  features: dict of feature name to B values (str or bytes; int; number, by the feature's kind). None, unknown values and
    features left out write the spec's `missing` text.

)";

}  // namespace

void BindPrompt(py::module_& m) {
  const CleanOptions defaults;
  m.def("clean_behaviors", &Clean, py::arg("item"), py::arg("action"), py::arg("domain"), py::arg("time"),
        py::arg("request_time"), py::arg("max_events") = defaults.max_events,
        py::arg("block") = defaults.block, py::arg("actions") = defaults.actions,
        py::arg("domains") = defaults.domains,
        py::arg("attribution_window_s") = defaults.attribution_window_s,
        py::arg("repeat_window_s") = defaults.repeat_window_s,
        R"(One user's raw events -> the events a prompt is written from. The rules are in kernels/behaviors.h.

Args:
  item, action, domain, time: integers [T], in any order. Actions: 0 exposure, 1 click, 2 conversion. Domains: 0 ad,
    1 content. time: Unix seconds.
  request_time: Unix seconds; later events are dropped.
  max_events: at most this many, the latest, are kept; the oldest go in whole blocks of `block`.
  actions, domains: bit masks of what is kept.
  attribution_window_s: a conversion absorbs the clicks on its item at most this much older.
  repeat_window_s: an event of the same item and action as a kept one at most this much older is dropped.

Returns:
  dict of arrays of one length, oldest first: item int64, action int32, domain int32, time int64.

Raises:
  ValueError: shapes that differ, numbers that are not integers, options out of bounds.)");

  py::class_<Prompt, std::shared_ptr<Prompt>>(m, "Prompt",
                                              "A compiled prompt spec (kernels/prompt_spec.py writes it): "
                                              "assembles token ids without a tokenizer. Immutable, so any "
                                              "thread may use it.")
      .def_static("load", &Load, py::arg("path"), py::arg("sid_space_digest") = "",
                  R"(Reads a compiled prompt and checks all of it.

Args:
  path: the file.
  sid_space_digest: if not empty, the file's must be equal.

Raises:
  FileNotFoundError; DataLossError: truncated or corrupt; FailedPreconditionError: another format version, or another
  SID space.)")
      .def_property_readonly("max_tokens", &Prompt::max_tokens, "No prompt is longer.")
      .def_property_readonly("level_sizes",
                             [](const Prompt& p) { return py::tuple(py::cast(p.sid_space().level_sizes)); })
      .def_property_readonly("sid_space_digest", [](const Prompt& p) { return p.sid_space().digest; })
      .def_property_readonly("features", &Features,
                             "[(name, \"string\" | \"int64\" | \"bucket\")] in spec order.")
      .def_property_readonly("facets", &Facets, "Facet names in the order of the index's columns.")
      .def_property_readonly("token_ids", &TokenIds, "Token ids of the codes: L arrays int32 [C_l].")
      .def_property_readonly("clean_options", &CleanOptionsDict, "Keyword arguments of clean_behaviors.")
      .def_property_readonly("spec_json", &Prompt::spec_json, "The spec it was compiled from, as JSON text.")
      .def("assemble", &Assemble, py::arg("index"), py::arg("item"), py::arg("action"), py::arg("domain"),
           py::arg("time"), py::arg("length"), py::arg("request_time"), py::arg("features") = py::none(),
           (std::string(kAssembleDoc) +
            R"(Returns:
  tokens int32 [B, P], P = the longest prompt of the batch, padded with 0; length int32 [B]; stable_prefix int32 [B], tokens
  before the first `recent` segment.

Raises:
  ValueError: names the input, its value and what was expected.)")
               .c_str())
      .def("assemble_events", &AssembleEvents, py::arg("index"), py::arg("item"), py::arg("action"),
           py::arg("domain"), py::arg("time"), py::arg("length"), py::arg("request_time"),
           py::arg("features") = py::none(),
           (std::string(kAssembleDoc) +
            R"(Returns:
  what `assemble` returns, and the places of each row's cleaned events, N = the most of a row, oldest first, -1 pads:
  asked int32 [B, N], the event is asked for by token asked - 1 of the prompt, -1 where what stands there tells of the
  event already or the event is older than those written; begin int32 [B, N], its first SID token, -1: not written;
  codes int32 [B, N, L].

Raises:
  ValueError: names the input, its value and what was expected.)")
               .c_str())
      .def("segments", &Segments, py::arg("index"), py::arg("item"), py::arg("action"), py::arg("domain"),
           py::arg("time"), py::arg("length"), py::arg("request_time"), py::arg("features") = py::none(),
           (std::string(kAssembleDoc) +
            R"(Returns:
  one list per user of (segment kind, token ids) in spec order; joined, they are the prompt.

Raises:
  ValueError: names the input, its value and what was expected.)")
               .c_str())
      .def("__repr__", [](const Prompt& p) {
        return Cat("<Prompt: ", p.num_segments(), " segments, ", p.num_features(), " features, at most ",
                   p.max_tokens(), " tokens>");
      });
}

}  // namespace genrecall
