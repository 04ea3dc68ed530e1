// Python door of the recall index.
#include <algorithm>

#include "kernels/bindings.h"
#include "kernels/recall_index.h"

namespace genrecall {

namespace {

std::string PathString(const py::object& path) {
  return py::module_::import("os").attr("fspath")(path).cast<std::string>();
}

// pybind11 holds what it is given by a pointer to non-const; no method of RecallIndex changes it.
std::shared_ptr<RecallIndex> Hold(std::shared_ptr<const RecallIndex> index) {
  return std::const_pointer_cast<RecallIndex>(std::move(index));
}

std::shared_ptr<RecallIndex> Build(std::vector<int32_t> level_sizes, const py::object& item_id,
                                   const py::object& codes, const py::object& weight,
                                   const py::object& facets, const std::string& digest) {
  const SidSpace space{std::move(level_sizes), digest};
  ThrowIfError(CheckLevelSizes(space.level_sizes));
  const auto ids = IntArray<int64_t>(item_id, "item_id", 1);
  const auto sids = IntArray<int32_t>(codes, "codes", 2);
  CatalogueRows rows;
  rows.num_items = ids.shape(0);
  rows.item_id = ids.data();
  rows.codes = sids.data();
  const auto levels = static_cast<py::ssize_t>(space.level_sizes.size());
  if (sids.shape(0) != rows.num_items || sids.shape(1) != levels) {
    throw py::value_error(Cat("codes has shape ", ShapeString(sids), ": expected [N, L] = [", rows.num_items,
                              ", ", levels, "]"));
  }
  Array<float> weights;
  if (!weight.is_none()) {
    weights = FloatArray(weight, "weight", 1);
    if (weights.shape(0) != rows.num_items) {
      throw py::value_error(
          Cat("weight has shape ", ShapeString(weights), ": expected [N] = [", rows.num_items, "]"));
    }
    rows.weight = weights.data();
  }
  Array<int16_t> facet_values;
  if (!facets.is_none()) {
    facet_values = IntArray<int16_t>(facets, "facets", 2);
    if (facet_values.shape(0) != rows.num_items) {
      throw py::value_error(
          Cat("facets has shape ", ShapeString(facet_values), ": expected [N, F], N = ", rows.num_items));
    }
    rows.num_facets = static_cast<int>(facet_values.shape(1));
    rows.facets = facet_values.data();
  }
  return Hold(ValueOrThrow(WithoutGil([&] { return RecallIndex::Build(space, rows); })));
}

std::shared_ptr<RecallIndex> Load(const py::object& path, const std::string& digest) {
  const std::string source = PathString(path);
  return Hold(ValueOrThrow(WithoutGil([&] { return RecallIndex::Load(source, digest); })));
}

void Save(const RecallIndex& index, const py::object& path) {
  const std::string target = PathString(path);
  ThrowIfError(WithoutGil([&] { return index.Save(target); }));
}

void CheckNode(const RecallIndex& index, int level, int64_t node) {
  if (level < 0 || level >= index.levels()) {
    throw py::value_error(Cat("level = ", level, ": expected 0..", index.levels() - 1));
  }
  if (node < 0 || node >= index.num_nodes(level)) {
    throw py::value_error(
        Cat("node = ", node, ": expected 0..", index.num_nodes(level) - 1, " at level ", level));
  }
}

py::tuple Children(const RecallIndex& index, int level, int64_t node) {
  CheckNode(index, level, node);
  const auto range = index.children(level, static_cast<uint32_t>(node));
  const py::ssize_t n = range.last - range.first;
  py::array_t<int32_t> codes(n);
  py::array_t<uint32_t> nodes(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    nodes.mutable_at(i) = range.first + static_cast<uint32_t>(i);
    codes.mutable_at(i) = index.codes(level)[nodes.at(i)];
  }
  return py::make_tuple(codes, nodes);
}

int64_t Child(const RecallIndex& index, int level, int64_t node, int64_t code) {
  CheckNode(index, level, node);
  if (code < 0 || code >= index.level_size(level)) return -1;
  const uint32_t child = index.child(level, static_cast<uint32_t>(node), static_cast<int32_t>(code));
  return child == kNoNode ? -1 : int64_t{child};
}

// An array of the shape of `like` with one more dimension.
template <typename T>
py::array_t<T> ArrayLike(const py::array& like, py::ssize_t last) {
  std::vector<py::ssize_t> shape(like.shape(), like.shape() + like.ndim());
  shape.push_back(last);
  return py::array_t<T>(shape);
}

py::tuple Lookup(const RecallIndex& index, const py::object& item_ids) {
  const auto ids = IntArray<int64_t>(item_ids, "item_ids", -1);
  const int levels = index.levels(), num_facets = index.num_facets();
  auto sids = ArrayLike<int32_t>(ids, levels);
  auto facets = ArrayLike<int16_t>(ids, num_facets);
  int32_t* sid = sids.mutable_data();
  int16_t* facet = facets.mutable_data();
  for (py::ssize_t i = 0; i < ids.size(); ++i, sid += levels, facet += num_facets) {
    const uint32_t position = index.FindItem(ids.data()[i]);
    if (position == kNoNode) {
      std::fill_n(sid, levels, -1);
      std::fill_n(facet, num_facets, int16_t{-1});
      continue;
    }
    index.SidCodes(index.SidOfPosition(position), sid);
    for (int f = 0; f < num_facets; ++f) facet[f] = index.facet(position, f);
  }
  return py::make_tuple(sids, facets);
}

py::tuple Rows(const RecallIndex& index) {
  const py::ssize_t n = index.num_items();
  const int levels = index.levels(), num_facets = index.num_facets();
  py::array_t<int64_t> ids(n);
  py::array_t<int32_t> codes({n, py::ssize_t{levels}});
  py::array_t<float> weights(n);
  py::array_t<int16_t> facets({n, py::ssize_t{num_facets}});
  for (uint32_t sid = 0; sid < index.num_sids(); ++sid) {
    const auto range = index.items(sid);
    int32_t* first = codes.mutable_data() + static_cast<size_t>(range.first) * levels;
    index.SidCodes(sid, first);
    for (uint32_t p = range.first; p < range.last; ++p) {
      if (p > range.first) std::copy_n(first, levels, codes.mutable_data() + static_cast<size_t>(p) * levels);
      ids.mutable_data()[p] = index.item_id(p);
      weights.mutable_data()[p] = index.weight(p);
      for (int f = 0; f < num_facets; ++f) {
        facets.mutable_data()[static_cast<size_t>(p) * num_facets + f] = index.facet(p, f);
      }
    }
  }
  return py::make_tuple(ids, codes, weights, facets);
}

py::tuple TopItems(const RecallIndex& index, int64_t k) {
  if (k < 1) throw py::value_error(Cat("k = ", k, ": expected >= 1"));
  const auto& top = index.top_items();
  const auto n = static_cast<py::ssize_t>(std::min<size_t>(top.size(), static_cast<size_t>(k)));
  py::array_t<int64_t> ids(n);
  py::array_t<float> weights(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    ids.mutable_at(i) = index.item_id(top[static_cast<size_t>(i)]);
    weights.mutable_at(i) = index.weight(top[static_cast<size_t>(i)]);
  }
  return py::make_tuple(ids, weights);
}

}  // namespace

void BindIndex(py::module_& m) {
  RecallIndexClass type(
      m, "RecallIndex",
      R"(The catalogue compiled to one read-only value: trie of semantic IDs, SID -> items, item -> SID, weights, facets.

Items are stored in SID order, within a SID by descending weight, ties by ascending item_id; that order number is the
item's position. Immutable, so any thread may read it.)");
  type.def_static("build", &Build, py::arg("level_sizes"), py::arg("item_id"), py::arg("codes"),
                  py::arg("weight") = py::none(), py::arg("facets") = py::none(),
                  py::arg("sid_space_digest") = "",
                  R"(Builds an index from rows in any order.

Args:
  level_sizes: L numbers of codes, L in 1..8, each in 1..65535.
  item_id: int64 [N], >= 0, distinct.
  codes: int32 [N, L], code l in 0..level_sizes[l]-1. Several items may share a SID.
  weight: float32 [N], finite, heavier is better; None: all 1.
  facets: int16 [N, F], value index or -1 for none; None: F = 0.
  sid_space_digest: name of the SID space the codes belong to.

Raises:
  ValueError: names the row, the value and what was expected.)")
      .def_static(
          "load", &Load, py::arg("path"), py::arg("sid_space_digest") = "",
          R"(Reads a saved index into private memory, verifies checksum and structure, then returns it.

Args:
  path: the file.
  sid_space_digest: if not empty, the file's must be equal.

Raises:
  FileNotFoundError; DataLossError: truncated or corrupt; FailedPreconditionError: another format version, or another
  SID space.)")
      .def("save", &Save, py::arg("path"),
           "Writes the index beside `path` and renames: readers see the old file or the new.")
      .def_property_readonly(
          "level_sizes", [](const RecallIndex& i) { return py::tuple(py::cast(i.sid_space().level_sizes)); })
      .def_property_readonly("sid_space_digest", [](const RecallIndex& i) { return i.sid_space().digest; })
      .def_property_readonly("num_items", &RecallIndex::num_items)
      .def_property_readonly("num_sids", &RecallIndex::num_sids)
      .def_property_readonly("num_facets", &RecallIndex::num_facets)
      .def_property_readonly("checksum", &RecallIndex::checksum,
                             "CRC-32C of what save() writes; equal catalogues have equal checksums.")
      .def_property_readonly("memory_bytes", &RecallIndex::memory_bytes)
      .def(
          "num_nodes",
          [](const RecallIndex& index, int level) {
            if (level < 0 || level > index.levels()) {
              throw py::value_error(Cat("level = ", level, ": expected 0..", index.levels()));
            }
            return index.num_nodes(level);
          },
          py::arg("level"), "Distinct SID prefixes of length `level`, 0..L.")
      .def("children", &Children, py::arg("level"), py::arg("node"),
           "Children of a node of level 0..L-1: codes int32 [n], ascending, and their nodes uint32 [n] of "
           "level + 1.")
      .def("child", &Child, py::arg("level"), py::arg("node"), py::arg("code"),
           "Node of level + 1 entered by `code`, or -1 when it is not allowed.")
      .def("lookup", &Lookup, py::arg("item_ids"),
           "item_ids int64 [...] -> (sids int32 [..., L], facets int16 [..., F]); -1 for items not in the "
           "index.")
      .def("rows", &Rows,
           "All rows by position: item_id int64 [N], codes int32 [N, L], weight float32 [N], facets int16 "
           "[N, F].")
      .def("top_items", &TopItems, py::arg("k"),
           "The k heaviest items (at most 4096): item_id int64 [n], weight float32 [n]; ties: smaller "
           "item_id first.")
      .def("__repr__", [](const RecallIndex& i) {
        return Cat("<RecallIndex: ", i.num_items(), " items, ", i.num_sids(), " SIDs, ", i.levels(),
                   " levels>");
      });
  BindExpand(m, type);
}

}  // namespace genrecall
