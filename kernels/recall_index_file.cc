// Saving and loading a recall index. Loading trusts nothing: a file whose checksum was recomputed by someone
// else still has to be a well-formed index.
#include "kernels/recall_index_file.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <new>

#include "kernels/gguf.h"

namespace genrecall {

namespace {

constexpr char kFormatKey[] = "genrecall.format";
constexpr char kFormat[] = "recall_index";
constexpr char kVersionKey[] = "genrecall.format_version";
constexpr char kLevelSizesKey[] = "genrecall.level_sizes";
constexpr char kDigestKey[] = "genrecall.sid_space_digest";
constexpr char kNumItemsKey[] = "genrecall.num_items";
constexpr char kNumFacetsKey[] = "genrecall.num_facets";
constexpr int kNarrowLevelSize = 256;  // codes of a level this small fit a byte

size_t BitBytes(size_t bits) { return (bits + 7) / 8; }

// One bit for each element of the ranges [begin[i], begin[i + 1]): set for the first of a range.
std::vector<uint8_t> BitsFromBegins(const IndexArray<uint32_t>& begin) {
  std::vector<uint8_t> bits(BitBytes(begin[begin.size() - 1]), 0);
  for (size_t i = 0; i + 1 < begin.size(); ++i)
    bits[begin[i] / 8] |= static_cast<uint8_t>(1u << (begin[i] % 8));
  return bits;
}

}  // namespace

class RecallIndexFile::Saver {
 public:
  explicit Saver(const RecallIndex& index) : index_(index) {
    const auto& sizes = index.space_.level_sizes;
    writer_.Set(kFormatKey, std::string(kFormat));
    writer_.Set(kVersionKey, int64_t{kFormatVersion});
    writer_.Set(kLevelSizesKey, std::vector<int64_t>(sizes.begin(), sizes.end()));
    writer_.Set(kDigestKey, index.space_.digest);
    writer_.Set(kNumItemsKey, index.num_items());
    writer_.Set(kNumFacetsKey, int64_t{index.num_facets_});
    AddTrie();
    AddItems();
  }

  const GgufWriter& writer() const { return writer_; }

 private:
  void AddTrie() {
    for (int l = 0; l < index_.levels(); ++l) {
      const IndexArray<uint16_t>& codes = index_.codes_[l];
      if (index_.level_size(l) <= kNarrowLevelSize) {
        AddBytes(Cat("codes.", l), std::vector<uint8_t>(codes.begin(), codes.end()));
      } else {
        Add(Cat("codes.", l), GgufType::kI16, codes);
      }
      if (l > 0 && index_.num_nodes(l) < index_.num_nodes(l + 1)) {
        AddBytes(Cat("first_child.", l), BitsFromBegins(index_.child_begin_[l]));
      }
    }
  }

  void AddItems() {
    if (!index_.sid_item_begin_.empty()) AddBytes("first_item", BitsFromBegins(index_.sid_item_begin_));
    Add("item_id", GgufType::kI64, index_.item_id_);
    const IndexArray<float>& weight = index_.weight_;
    if (std::any_of(weight.begin(), weight.end(), [](float w) { return w != 1.0f; })) {
      Add("weight", GgufType::kF32, weight);
    }
    Add("by_item_id", GgufType::kI32, index_.by_item_id_);
    if (index_.num_facets_ > 0) {
      writer_.Add("facets", GgufType::kI16, {index_.num_items(), index_.num_facets_}, index_.facets_.data());
    }
    const auto& top = index_.top_items_;
    writer_.Add("top_items", GgufType::kI32, {static_cast<int64_t>(top.size())}, top.data());
  }

  template <typename T>
  void Add(const std::string& name, GgufType type, const IndexArray<T>& array) {
    writer_.Add(name, type, {static_cast<int64_t>(array.size())}, array.data());
  }

  void AddBytes(const std::string& name, std::vector<uint8_t> bytes) {
    scratch_.push_back(std::move(bytes));
    writer_.Add(name, GgufType::kI8, {static_cast<int64_t>(scratch_.back().size())}, scratch_.back().data());
  }

  const RecallIndex& index_;
  GgufWriter writer_;
  std::deque<std::vector<uint8_t>> scratch_;  // what the writer borrows; a deque moves nothing
};

class RecallIndexFile::Loader {
 public:
  Loader(std::shared_ptr<const GgufFile> file, const std::string& expected_digest)
      : file_(std::move(file)), expected_digest_(expected_digest), index_(std::make_shared<RecallIndex>()) {}

  Result<std::shared_ptr<const RecallIndex>> Load() {
    GENRECALL_RETURN_IF_ERROR(ReadMetadata());
    for (int l = 0; l < index_->levels(); ++l) GENRECALL_RETURN_IF_ERROR(ReadLevel(l));
    GENRECALL_RETURN_IF_ERROR(ReadItems());
    GENRECALL_RETURN_IF_ERROR(CheckItemOrder());
    GENRECALL_RETURN_IF_ERROR(CheckByItemId());
    GENRECALL_RETURN_IF_ERROR(ReadFacets());
    GENRECALL_RETURN_IF_ERROR(ReadTopItems());
    index_->checksum_ = file_->checksum();
    return std::shared_ptr<const RecallIndex>(std::move(index_));
  }

 private:
  template <typename... Args>
  Status Fail(Code code, const Args&... args) const {
    return Status(code, Cat(file_->path(), ": ", args...));
  }
  template <typename... Args>
  Status DataLoss(const Args&... args) const {
    return Fail(Code::kDataLoss, args...);
  }

  Status ReadMetadata() {
    const Result<std::string> format = file_->String(kFormatKey);
    GENRECALL_RETURN_IF_ERROR(format.status());
    if (format.value() != kFormat) {
      return Fail(Code::kFailedPrecondition, kFormatKey, " = '", format.value(), "': expected '", kFormat,
                  "'");
    }
    const Result<int64_t> version = file_->Int(kVersionKey);
    GENRECALL_RETURN_IF_ERROR(version.status());
    if (version.value() != kFormatVersion) {
      return Fail(Code::kFailedPrecondition, kVersionKey, " = ", version.value(), ": expected ",
                  kFormatVersion);
    }
    const Result<std::string> digest = file_->String(kDigestKey);
    GENRECALL_RETURN_IF_ERROR(digest.status());
    if (!expected_digest_.empty() && digest.value() != expected_digest_) {
      return Fail(Code::kFailedPrecondition, kDigestKey, " = '", digest.value(), "': expected '",
                  expected_digest_, "', the SID space of the model it would serve");
    }
    const Result<std::vector<int64_t>> sizes = file_->Ints(kLevelSizesKey);
    const Result<int64_t> items = file_->Int(kNumItemsKey);
    const Result<int64_t> facets = file_->Int(kNumFacetsKey);
    for (const Status& status : {sizes.status(), items.status(), facets.status()}) {
      GENRECALL_RETURN_IF_ERROR(status);
    }
    std::vector<int32_t> level_sizes;
    for (int64_t size : sizes.value()) {
      level_sizes.push_back(
          static_cast<int32_t>(std::clamp<int64_t>(size, -1, std::numeric_limits<int32_t>::max())));
    }
    const Status valid = CheckLevelSizes(level_sizes);
    if (!valid.ok()) return DataLoss(kLevelSizesKey, ": ", valid.message());
    if (items.value() < 1 || items.value() >= int64_t{kNoNode}) {
      return DataLoss(kNumItemsKey, " = ", items.value(), ": expected 1..", kNoNode - 1);
    }
    if (facets.value() < 0 || facets.value() > kMaxFacets) {
      return DataLoss(kNumFacetsKey, " = ", facets.value(), ": expected 0..", kMaxFacets);
    }
    index_->space_ = {std::move(level_sizes), digest.value()};
    num_items_ = static_cast<size_t>(items.value());
    index_->num_facets_ = static_cast<int>(facets.value());
    return Status();
  }

  // A tensor of one dimension, borrowed from the file.
  template <typename T>
  Status Read(const std::string& name, GgufType type, IndexArray<T>* out) const {
    const Result<GgufTensor> tensor = file_->Tensor(name, type);
    GENRECALL_RETURN_IF_ERROR(tensor.status());
    const auto& shape = tensor.value().shape;
    if (shape.size() != 1) return DataLoss("tensor '", name, "' has rank ", shape.size(), ": expected 1");
    *out = IndexArray<T>(static_cast<const T*>(tensor.value().data), static_cast<size_t>(shape[0]), file_);
    return Status();
  }

  template <typename T>
  Status Read(const std::string& name, GgufType type, size_t expected_size, IndexArray<T>* out) const {
    GENRECALL_RETURN_IF_ERROR(Read(name, type, out));
    if (out->size() == expected_size) return Status();
    return DataLoss("tensor '", name, "' has ", out->size(), " elements: expected ", expected_size);
  }

  bool Has(const std::string& name) const { return file_->tensors().count(name) > 0; }

  Status ReadLevel(int l) {
    const std::string name = Cat("codes.", l);
    if (index_->level_size(l) <= kNarrowLevelSize) {
      IndexArray<uint8_t> narrow;
      GENRECALL_RETURN_IF_ERROR(Read(name, GgufType::kI8, &narrow));
      uint16_t* wide;
      index_->codes_[l] = IndexArray<uint16_t>::Allocate(narrow.size(), &wide);
      std::copy(narrow.begin(), narrow.end(), wide);
    } else {
      GENRECALL_RETURN_IF_ERROR(Read(name, GgufType::kI16, &index_->codes_[l]));
    }
    const size_t parents = index_->num_nodes(l);
    const size_t nodes = index_->codes_[l].size();
    if (nodes < parents || nodes > num_items_) {
      return DataLoss("tensor '", name, "' has ", nodes, " elements: expected ", parents, "..", num_items_);
    }
    if (l == 0) {
      uint32_t* begin;
      index_->child_begin_[0] = IndexArray<uint32_t>::Allocate(2, &begin);
      begin[0] = 0;
      begin[1] = static_cast<uint32_t>(nodes);
    } else {
      GENRECALL_RETURN_IF_ERROR(ReadBegins(Cat("first_child.", l), parents, nodes, &index_->child_begin_[l]));
    }
    return CheckCodes(l);
  }

  // Range begins from one bit an element. No tensor means that every range has one element.
  Status ReadBegins(const std::string& name, size_t ranges, size_t elements,
                    IndexArray<uint32_t>* out) const {
    uint32_t* begin;
    *out = IndexArray<uint32_t>::Allocate(ranges + 1, &begin);
    begin[ranges] = static_cast<uint32_t>(elements);
    if (!Has(name)) {
      if (elements != ranges) {
        return DataLoss("tensor '", name, "' is missing, but ", elements, " elements are in ", ranges,
                        " ranges");
      }
      for (size_t i = 0; i < ranges; ++i) begin[i] = static_cast<uint32_t>(i);
      return Status();
    }
    IndexArray<uint8_t> bits;
    GENRECALL_RETURN_IF_ERROR(Read(name, GgufType::kI8, BitBytes(elements), &bits));
    size_t found = 0;
    for (size_t byte = 0; byte < bits.size(); ++byte) {
      for (uint32_t rest = bits[byte]; rest != 0; rest &= rest - 1) {
        const size_t element = byte * 8 + static_cast<size_t>(__builtin_ctz(rest));
        if (found == ranges || element >= elements) {
          return DataLoss("tensor '", name, "' has a bit at ", element, " beyond its ", ranges, " ranges of ",
                          elements, " elements");
        }
        begin[found++] = static_cast<uint32_t>(element);
      }
    }
    if (found != ranges || begin[0] != 0) {
      return DataLoss("tensor '", name, "' begins ", found, " ranges, the first at ", begin[0], ": expected ",
                      ranges, ", the first at 0");
    }
    return Status();
  }

  Status CheckCodes(int l) const {
    const IndexArray<uint16_t>& codes = index_->codes_[l];
    const IndexArray<uint32_t>& begin = index_->child_begin_[l];
    const int32_t limit = index_->level_size(l);
    for (size_t parent = 0; parent + 1 < begin.size(); ++parent) {
      int32_t previous = -1;
      for (uint32_t n = begin[parent]; n < begin[parent + 1]; ++n) {
        if (codes[n] <= previous || codes[n] >= limit) {
          return DataLoss("codes.", l, "[", n, "] = ", codes[n], " under node ", parent, ": expected ",
                          previous + 1, "..", limit - 1);
        }
        previous = codes[n];
      }
    }
    return Status();
  }

  Status ReadItems() {
    if (Has("first_item") || index_->num_sids() != num_items_) {
      GENRECALL_RETURN_IF_ERROR(
          ReadBegins("first_item", index_->num_sids(), num_items_, &index_->sid_item_begin_));
    }
    GENRECALL_RETURN_IF_ERROR(Read("item_id", GgufType::kI64, num_items_, &index_->item_id_));
    GENRECALL_RETURN_IF_ERROR(Read("by_item_id", GgufType::kI32, num_items_, &index_->by_item_id_));
    if (Has("weight")) return Read("weight", GgufType::kF32, num_items_, &index_->weight_);
    float* weight;
    index_->weight_ = IndexArray<float>::Allocate(num_items_, &weight);
    std::fill_n(weight, num_items_, 1.0f);
    return Status();
  }

  // Finite weights; within a SID heavier first, ties by ascending item_id.
  Status CheckItemOrder() const {
    const RecallIndex& index = *index_;
    for (uint32_t p = 0; p < num_items_; ++p) {
      if (index.item_id_[p] < 0) return DataLoss("item_id[", p, "] = ", index.item_id_[p], ": expected >= 0");
      if (!std::isfinite(index.weight_[p])) {
        return DataLoss("weight[", p, "] = ", index.weight_[p], ": expected finite");
      }
    }
    if (index.sid_item_begin_.empty()) return Status();
    for (uint32_t sid = 0; sid < index.num_sids(); ++sid) {
      const RecallIndex::Range range = index.items(sid);
      for (uint32_t p = range.first + 1; p < range.last; ++p) {
        if (!Heavier(index, p - 1, p)) {
          return DataLoss("positions ", p - 1, " and ", p, " of SID ", sid,
                          ": expected the heavier item first");
        }
      }
    }
    return Status();
  }

  // Strictly ascending ids name distinct positions, and there are num_items of them: so it is a permutation.
  Status CheckByItemId() const {
    int64_t previous = -1;
    for (size_t i = 0; i < num_items_; ++i) {
      const uint32_t position = index_->by_item_id_[i];
      if (position >= num_items_) {
        return DataLoss("by_item_id[", i, "] = ", position, ": expected 0..", num_items_ - 1);
      }
      const int64_t id = index_->item_id_[position];
      if (id <= previous) return DataLoss("by_item_id[", i, "]: item_id ", id, " after ", previous);
      previous = id;
    }
    return Status();
  }

  Status ReadFacets() {
    if (index_->num_facets_ == 0) return Status();
    const Result<GgufTensor> tensor = file_->Tensor("facets", GgufType::kI16);
    GENRECALL_RETURN_IF_ERROR(tensor.status());
    const std::vector<int64_t> expected = {static_cast<int64_t>(num_items_), index_->num_facets_};
    if (tensor.value().shape != expected) {
      return DataLoss("tensor 'facets' has another shape: expected [", expected[0], ", ", expected[1], "]");
    }
    const size_t size = num_items_ * static_cast<size_t>(index_->num_facets_);
    index_->facets_ = IndexArray<int16_t>(static_cast<const int16_t*>(tensor.value().data), size, file_);
    for (size_t i = 0; i < size; ++i) {
      if (index_->facets_[i] < -1) {
        return DataLoss("facets, element ", i, " = ", index_->facets_[i], ": expected >= -1");
      }
    }
    return Status();
  }

  // In order, and nothing that is left out is heavier than the last: so these are the heaviest.
  Status ReadTopItems() {
    IndexArray<uint32_t> top;
    const size_t expected = std::min<size_t>(num_items_, RecallIndex::kTopItems);
    GENRECALL_RETURN_IF_ERROR(Read("top_items", GgufType::kI32, expected, &top));
    for (size_t i = 0; i < top.size(); ++i) {
      if (top[i] >= num_items_)
        return DataLoss("top_items[", i, "] = ", top[i], ": expected 0..", num_items_ - 1);
      if (i > 0 && !Heavier(*index_, top[i - 1], top[i])) {
        return DataLoss("top_items[", i, "]: expected a lighter item than the one before it");
      }
    }
    const uint32_t last = top[top.size() - 1];
    size_t heavier = 0;
    for (uint32_t p = 0; p < num_items_; ++p) heavier += Heavier(*index_, p, last);
    if (heavier + 1 != top.size()) return DataLoss("top_items: expected the ", expected, " heaviest items");
    index_->top_items_.assign(top.begin(), top.end());
    return Status();
  }

  std::shared_ptr<const GgufFile> file_;
  const std::string& expected_digest_;
  std::shared_ptr<RecallIndex> index_;
  size_t num_items_ = 0;
};

Result<std::shared_ptr<const RecallIndex>> RecallIndexFile::Load(const std::string& path,
                                                                 const std::string& expected_digest) {
  Result<std::shared_ptr<const GgufFile>> file = GgufFile::Read(path, /*require_checksum=*/true);
  GENRECALL_RETURN_IF_ERROR(file.status());
  try {
    return Loader(std::move(file.value()), expected_digest).Load();
  } catch (const std::bad_alloc&) {
    return Status(Code::kResourceExhausted, Cat(path, ": no memory to load it"));
  }
}

Status RecallIndexFile::Save(const RecallIndex& index, const std::string& path) {
  return Saver(index).writer().Write(path);
}

Result<uint32_t> RecallIndexFile::Checksum(const RecallIndex& index) {
  return Saver(index).writer().Checksum();
}

Result<std::shared_ptr<const RecallIndex>> RecallIndex::Load(const std::string& path,
                                                             const std::string& expected_digest) {
  return RecallIndexFile::Load(path, expected_digest);
}

Status RecallIndex::Save(const std::string& path) const { return RecallIndexFile::Save(*this, path); }

}  // namespace genrecall
