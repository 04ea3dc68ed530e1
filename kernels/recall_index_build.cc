// Building a recall index: rows are ordered by stable counting sorts, least significant key first, then one
// pass over the ordered rows makes the trie. Any depth and any level size take the same path, and time is
// linear in the rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "kernels/recall_index.h"
#include "kernels/recall_index_file.h"

namespace genrecall {

namespace {

constexpr int64_t kMaxItems = int64_t{0xffffffff} - 1;

// A permutation of the rows, refined by stable counting sorts.
class RowOrder {
 public:
  explicit RowOrder(size_t n) : n_(n) {
    order_ = IndexArray<uint32_t>::Allocate(n, &rows_);
    spare_order_ = IndexArray<uint32_t>::Allocate(n, &spare_);
    std::iota(rows_, rows_ + n, 0u);
  }

  const uint32_t* rows() const { return rows_; }

  // Stable; `key(row)` is in 0..buckets-1.
  template <typename Key>
  void SortBy(size_t buckets, Key key) {
    std::vector<uint32_t> begin(buckets + 1, 0);
    for (uint32_t row = 0; row < n_; ++row)
      ++begin[key(row) + 1];  // in memory's order: any order counts the same
    if (*std::max_element(begin.begin(), begin.end()) == n_) return;
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    for (size_t i = 0; i < n_; ++i) spare_[begin[key(rows_[i])]++] = rows_[i];
    std::swap(rows_, spare_);
  }

  // Stable; by an unsigned key, 16 bits at a time.
  template <typename Key>
  void SortByBits(int bits, Key key) {
    for (int shift = 0; shift < bits; shift += 16) {
      SortBy(size_t{1} << 16,
             [&](uint32_t row) { return static_cast<size_t>((key(row) >> shift) & 0xffff); });
    }
  }

 private:
  size_t n_;
  uint32_t *rows_, *spare_;
  IndexArray<uint32_t> order_, spare_order_;  // own the memory
};

// Maps a float to an integer that orders descending: heavier weights get smaller keys; -0 and 0 are equal.
uint32_t DescendingKey(float weight) {
  const float normal = weight + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &normal, sizeof bits);
  return (bits & 0x80000000u) ? bits : ~(bits | 0x80000000u);
}

Status CheckRows(const SidSpace& space, const CatalogueRows& rows) {
  GENRECALL_RETURN_IF_ERROR(CheckLevelSizes(space.level_sizes));
  if (rows.num_items < 1 || rows.num_items > kMaxItems) {
    return InvalidArgument("the catalogue has ", rows.num_items, " rows: expected 1..", kMaxItems);
  }
  if (rows.num_facets < 0 || rows.num_facets > kMaxFacets) {
    return InvalidArgument("num_facets = ", rows.num_facets, ": expected 0..", kMaxFacets);
  }
  const size_t levels = space.level_sizes.size();
  for (int64_t i = 0; i < rows.num_items; ++i) {
    if (rows.item_id[i] < 0)
      return InvalidArgument("item_id[", i, "] = ", rows.item_id[i], ": expected >= 0");
    for (size_t l = 0; l < levels; ++l) {
      const int32_t code = rows.codes[i * levels + l];
      if (code < 0 || code >= space.level_sizes[l]) {
        return InvalidArgument("codes[", i, ", ", l, "] = ", code, ": expected 0..", space.level_sizes[l] - 1,
                               " (item_id ", rows.item_id[i], ")");
      }
    }
    if (rows.weight != nullptr && !std::isfinite(rows.weight[i])) {
      return InvalidArgument("weight[", i, "] = ", rows.weight[i], ": expected finite (item_id ",
                             rows.item_id[i], ")");
    }
  }
  for (int64_t i = 0; i < rows.num_items * rows.num_facets; ++i) {
    if (rows.facets[i] < -1) {
      const int64_t row = i / rows.num_facets;
      return InvalidArgument("facets[", row, ", ", i % rows.num_facets, "] = ", rows.facets[i],
                             ": expected >= -1 (item_id ", rows.item_id[row], ")");
    }
  }
  return Status();
}

// `by_id`: rows in ascending item_id order, equal ids in row order.
Status CheckDistinct(const CatalogueRows& rows, const uint32_t* by_id) {
  for (int64_t i = 1; i < rows.num_items; ++i) {
    if (rows.item_id[by_id[i]] == rows.item_id[by_id[i - 1]]) {
      return InvalidArgument("item_id[", by_id[i], "] = ", rows.item_id[by_id[i]], ": duplicate of row ",
                             by_id[i - 1]);
    }
  }
  return Status();
}

}  // namespace

// Fills in one index from valid rows.
class RecallIndexBuilder {
 public:
  RecallIndexBuilder(const SidSpace& space, const CatalogueRows& rows)
      : rows_(rows),
        n_(static_cast<size_t>(rows.num_items)),
        levels_(space.level_sizes.size()),
        index_(std::make_shared<RecallIndex>()) {
    index_->space_ = space;
  }

  Result<std::shared_ptr<const RecallIndex>> Build() {
    RowOrder order(n_);
    order.SortByBits(64, [this](uint32_t row) { return static_cast<uint64_t>(rows_.item_id[row]); });
    GENRECALL_RETURN_IF_ERROR(CheckDistinct(rows_, order.rows()));
    std::vector<uint32_t> by_id(order.rows(), order.rows() + n_);
    if (rows_.weight != nullptr) {
      order.SortByBits(32, [this](uint32_t row) { return DescendingKey(rows_.weight[row]); });
    }
    for (size_t l = levels_; l-- > 0;) {
      order.SortBy(static_cast<size_t>(index_->space_.level_sizes[l]),
                   [this, l](uint32_t row) { return static_cast<size_t>(row_codes(row)[l]); });
    }
    MakeTrie(order.rows());
    PlaceItems(order.rows(), by_id);
    index_->top_items_ = HeaviestItems(*index_);
    const Result<uint32_t> checksum = RecallIndexFile::Checksum(*index_);
    GENRECALL_RETURN_IF_ERROR(checksum.status());
    index_->checksum_ = checksum.value();
    return std::shared_ptr<const RecallIndex>(std::move(index_));
  }

 private:
  const int32_t* row_codes(uint32_t row) const { return rows_.codes + static_cast<size_t>(row) * levels_; }

  // The first level at which the i-th row in order leaves the row before it; levels_ when both have one SID.
  uint8_t FirstDifference(const uint32_t* order, size_t i) const {
    if (i == 0) return 0;
    const int32_t* a = row_codes(order[i - 1]);
    const int32_t* b = row_codes(order[i]);
    return static_cast<uint8_t>(std::mismatch(a, a + levels_, b).first - a);
  }

  // A row that differs from the one before it at level d begins one new node of each level d+1..L.
  void MakeTrie(const uint32_t* order) {
    std::vector<uint8_t> difference(n_);
    size_t first_at[kMaxLevels + 1] = {};  // rows by where they differ
    for (size_t i = 0; i < n_; ++i) ++first_at[difference[i] = FirstDifference(order, i)];

    uint32_t* begin[kMaxLevels];
    uint16_t* codes[kMaxLevels];
    uint32_t nodes[kMaxLevels + 1] = {1};  // made so far, by level: the root
    size_t total = 0;
    size_t parents = 1;
    for (size_t l = 0; l < levels_; ++l) {
      total += first_at[l];
      index_->child_begin_[l] = IndexArray<uint32_t>::Allocate(parents + 1, &begin[l]);
      index_->codes_[l] = IndexArray<uint16_t>::Allocate(total, &codes[l]);
      parents = total;
    }
    uint32_t* item_begin = nullptr;
    if (first_at[levels_] > 0) {
      index_->sid_item_begin_ = IndexArray<uint32_t>::Allocate(total + 1, &item_begin);
    }
    begin[0][0] = 0;
    for (size_t i = 0; i < n_; ++i) {
      const int32_t* row = row_codes(order[i]);
      for (size_t l = difference[i]; l < levels_; ++l) {
        if (l > difference[i]) begin[l][nodes[l] - 1] = nodes[l + 1];  // the parent is new, too
        codes[l][nodes[l + 1]++] = static_cast<uint16_t>(row[l]);
      }
      if (item_begin != nullptr && difference[i] < levels_)
        item_begin[nodes[levels_] - 1] = static_cast<uint32_t>(i);
    }
    for (size_t l = 0; l < levels_; ++l) begin[l][nodes[l]] = nodes[l + 1];
    if (item_begin != nullptr) item_begin[nodes[levels_]] = static_cast<uint32_t>(n_);
  }

  void PlaceItems(const uint32_t* order, const std::vector<uint32_t>& by_id) {
    int64_t* item_id;
    float* weight;
    uint32_t* by_item_id;
    int16_t* facets;
    const size_t num_facets = static_cast<size_t>(rows_.num_facets);
    index_->num_facets_ = rows_.num_facets;
    index_->item_id_ = IndexArray<int64_t>::Allocate(n_, &item_id);
    index_->weight_ = IndexArray<float>::Allocate(n_, &weight);
    index_->by_item_id_ = IndexArray<uint32_t>::Allocate(n_, &by_item_id);
    index_->facets_ = IndexArray<int16_t>::Allocate(n_ * num_facets, &facets);
    std::vector<uint32_t> position_of_row(n_);
    for (size_t p = 0; p < n_; ++p) {
      const uint32_t row = order[p];
      position_of_row[row] = static_cast<uint32_t>(p);
      item_id[p] = rows_.item_id[row];
      weight[p] =
          rows_.weight == nullptr ? 1.0f : rows_.weight[row] + 0.0f;  // no -0: one value, one checksum
      std::copy_n(rows_.facets + row * num_facets, num_facets, facets + p * num_facets);
    }
    for (size_t i = 0; i < n_; ++i) by_item_id[i] = position_of_row[by_id[i]];
  }

  const CatalogueRows& rows_;
  const size_t n_;
  const size_t levels_;
  std::shared_ptr<RecallIndex> index_;
};

bool Heavier(const RecallIndex& index, uint32_t a, uint32_t b) {
  if (index.weight(a) != index.weight(b)) return index.weight(a) > index.weight(b);
  return index.item_id(a) < index.item_id(b);
}

std::vector<uint32_t> HeaviestItems(const RecallIndex& index) {
  std::vector<uint32_t> positions(static_cast<size_t>(index.num_items()));
  std::iota(positions.begin(), positions.end(), 0u);
  const auto heavier = [&index](uint32_t a, uint32_t b) { return Heavier(index, a, b); };
  const size_t k = std::min<size_t>(positions.size(), RecallIndex::kTopItems);
  if (k < positions.size()) {
    std::nth_element(positions.begin(), positions.begin() + static_cast<std::ptrdiff_t>(k), positions.end(),
                     heavier);
    positions.resize(k);
  }
  std::sort(positions.begin(), positions.end(), heavier);
  positions.shrink_to_fit();
  return positions;
}

Result<std::shared_ptr<const RecallIndex>> RecallIndex::Build(const SidSpace& space,
                                                              const CatalogueRows& rows) {
  GENRECALL_RETURN_IF_ERROR(CheckRows(space, rows));
  try {
    return RecallIndexBuilder(space, rows).Build();
  } catch (const std::bad_alloc&) {
    return Status(Code::kResourceExhausted, Cat("no memory for an index of ", rows.num_items, " items"));
  }
}

}  // namespace genrecall
