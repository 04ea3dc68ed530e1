// Python door of item expansion, the popular branch and the merge of branches.
#include <algorithm>
#include <vector>

#include "kernels/bindings.h"
#include "kernels/expand_items.h"

namespace genrecall {

namespace {

template <typename T>
py::array_t<T> ToArray(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple Expand(const RecallIndex& index, const py::object& sids, const py::object& scores, int k,
                 int per_sid_cap, const py::object& exclude) {
  const auto codes = IntArray<int32_t>(sids, "sids", 2);
  const auto beam_scores = FloatArray(scores, "scores", 1);
  const auto excluded = IntArray<int64_t>(exclude, "exclude", 1);
  const py::ssize_t beams = codes.shape(0);
  if (codes.shape(1) != index.levels()) {
    throw py::value_error(
        Cat("sids has shape ", ShapeString(codes), ": expected [W, L], L = ", index.levels()));
  }
  if (beam_scores.shape(0) != beams) {
    throw py::value_error(
        Cat("scores has shape ", ShapeString(beam_scores), ": expected [W] = [", beams, "]"));
  }
  ExpandOptions options;
  options.k = k;
  options.per_sid_cap = per_sid_cap;
  ItemList items;
  ThrowIfError(WithoutGil([&] {
    return ExpandItems(index, codes.data(), beam_scores.data(), static_cast<int>(beams), excluded.data(),
                       static_cast<int>(excluded.size()), options, &items);
  }));
  return py::make_tuple(ToArray(items.item), ToArray(items.score), ToArray(items.beam));
}

py::tuple Popular(const RecallIndex& index, int k, const py::object& exclude) {
  if (k < 1) throw py::value_error(Cat("k = ", k, ": expected >= 1"));
  const auto excluded = IntArray<int64_t>(exclude, "exclude", 1);
  ItemList items;
  PopularItems(index, excluded.data(), static_cast<int>(excluded.size()), k, &items);
  return py::make_tuple(ToArray(items.item), ToArray(items.score));
}

py::tuple Merge(const std::vector<py::object>& items, const std::vector<py::object>& scores,
                const std::vector<int>& quotas, int k) {
  if (items.size() > kMaxBranches || scores.size() != items.size() || quotas.size() != items.size()) {
    throw py::value_error(Cat("items, scores and quotas have ", items.size(), ", ", scores.size(), " and ",
                              quotas.size(), " entries: expected one a branch, at most ", kMaxBranches));
  }
  std::vector<Array<int64_t>> item_arrays;  // what `branches` borrows
  std::vector<Array<float>> score_arrays;
  std::vector<BranchItems> branches;
  for (size_t b = 0; b < items.size(); ++b) {
    item_arrays.push_back(IntArray<int64_t>(items[b], Cat("items[", b, "]").c_str(), 1));
    score_arrays.push_back(FloatArray(scores[b], Cat("scores[", b, "]").c_str(), 1));
    if (item_arrays[b].shape(0) != score_arrays[b].shape(0)) {
      throw py::value_error(Cat("scores[", b, "] has shape ", ShapeString(score_arrays[b]), ": expected ",
                                ShapeString(item_arrays[b])));
    }
    branches.push_back(
        {item_arrays[b].data(), score_arrays[b].data(), static_cast<int>(item_arrays[b].shape(0))});
  }
  MergedItems merged;
  MergeBranches(branches.data(), quotas.data(), static_cast<int>(branches.size()), k, &merged);
  return py::make_tuple(ToArray(merged.item), ToArray(merged.score), ToArray(merged.branch_mask),
                        ToArray(merged.source));
}

}  // namespace

void BindExpand(py::module_& m, RecallIndexClass& type) {
  type.def(
      "expand", &Expand, py::arg("sids"), py::arg("scores"), py::arg("k"), py::arg("per_sid_cap") = 0,
      py::arg("exclude") = py::tuple(),
      R"(Items of beams, round-robin: the heaviest eligible item of every beam, then the second of each, ...

Args:
  sids: int32 [W, L], best beam first; rows of -1 are padding, SIDs not in the index give nothing.
  scores: float32 [W].
  k: at most this many items, >= 1.
  per_sid_cap: at most this many items of one SID; 0: no cap.
  exclude: item ids that are skipped; they use up no cap.

Returns:
  item_id int64 [n], score float32 [n] (its beam's), beam int32 [n]; n <= k, no item twice.

Raises:
  ValueError: a code outside -1..C-1, k < 1, a wrong shape.)");
  type.def("popular", &Popular, py::arg("k"), py::arg("exclude") = py::tuple(),
           "The k heaviest items that are not excluded: item_id int64 [n], weight float32 [n]. Looks at the "
           "4096 heaviest.");
  m.def("merge_branches", &Merge, py::arg("items"), py::arg("scores"), py::arg("quotas"), py::arg("k"),
        R"(Several branches' items -> one answer of at most k items.

Branch b first places up to quotas[b] items not placed yet (< 0: no limit); what is left of k is then filled from the
branches in order.

Args:
  items: for each branch int64 [n_b], best first; -1 is skipped.
  scores: for each branch float32 [n_b].
  quotas: int for each branch.
  k: at most this many items.

Returns:
  item_id int64 [n], score float32 [n] (of the branch that placed it), branch_mask int32 [n] (bit b: branch b proposed
  it), source int32 [n] (the branch that placed it).)");
}

}  // namespace genrecall
