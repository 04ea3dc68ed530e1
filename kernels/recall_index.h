// The recall index: the catalogue compiled to one read-only value: trie of semantic IDs, SID -> items, item
// -> SID, weights, facets. Knows no model and no tokenizer. Immutable after Build/Load, so any thread may
// read it.
//
// Trie. Level l = 0..L. The nodes of level l are the distinct SID prefixes of length l, numbered 0.. in
// ascending lexicographic order; level 0 has one node, the root; a node of level L is a SID number. The
// children of a node are a contiguous range of node numbers of the next level, in ascending order of their
// codes.
//
// Items are stored in SID order; within a SID by descending weight, ties by ascending item_id. That order
// number is the item's *position*.
#ifndef GENRECALL_KERNELS_RECALL_INDEX_H_
#define GENRECALL_KERNELS_RECALL_INDEX_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/recall_index_array.h"
#include "kernels/status.h"

namespace genrecall {

inline constexpr int kMaxLevels = 8;
inline constexpr int kMaxLevelSize = 65535;
inline constexpr int kMaxFacets = 1024;
inline constexpr uint32_t kNoNode = 0xffffffffu;

// The shape of the codes, and the name (digest) of codebooks + token table they belong to.
struct SidSpace {
  std::vector<int32_t> level_sizes;  // L in 1..kMaxLevels, each in 1..kMaxLevelSize
  std::string digest;                // sid_space_digest; "" matches any
};

// The rows an index is built from, in any order.
struct CatalogueRows {
  int64_t num_items = 0;
  const int64_t* item_id = nullptr;  // [num_items], >= 0, distinct
  const int32_t* codes = nullptr;    // [num_items, L]
  const float* weight = nullptr;     // [num_items], finite; null: all 1
  int num_facets = 0;                // F: columns such as category or price band
  const int16_t* facets = nullptr;   // [num_items, F], value index or -1
};

class RecallIndex {
 public:
  // Errors (INVALID_ARGUMENT, with the row): duplicate item id, negative id, code out of range, weight not
  // finite, no rows, more than 2^32 - 2 rows, level sizes out of bounds, more than kMaxFacets
  // facets, a facet < -1, a digest that is not UTF-8. RESOURCE_EXHAUSTED: no memory.
  static Result<std::shared_ptr<const RecallIndex>> Build(const SidSpace& space, const CatalogueRows& rows);

  // Reads a file written by Save into private memory, verifies length and checksum, then every bound, then
  // returns. Errors: NOT_FOUND; DATA_LOSS (truncated, checksum, structure); FAILED_PRECONDITION (format
  // version; digest differs from a non-empty expected_digest).
  static Result<std::shared_ptr<const RecallIndex>> Load(const std::string& path,
                                                         const std::string& expected_digest);

  // Writes beside `path` and renames, so that a reader sees the old file or the new one.
  Status Save(const std::string& path) const;

  int levels() const { return static_cast<int>(space_.level_sizes.size()); }
  int level_size(int level) const { return space_.level_sizes[level]; }
  const SidSpace& sid_space() const { return space_; }
  int64_t num_items() const { return static_cast<int64_t>(item_id_.size()); }
  uint32_t num_sids() const { return num_nodes(levels()); }
  uint32_t num_nodes(int level) const;  // level in 0..L
  // CRC-32C of what Save writes: names the catalogue's version. The same rows in any order give the same
  // checksum.
  uint32_t checksum() const { return checksum_; }

  // Children of `node` of level `level` (0..L-1): node numbers [first, last) of level + 1.
  struct Range {
    uint32_t first, last;
  };
  Range children(int level, uint32_t node) const {
    return {child_begin_[level][node], child_begin_[level][node + 1]};
  }
  // The codes by which the nodes of level + 1 are entered: codes(l)[n] for node n of level l + 1.
  const uint16_t* codes(int level) const { return codes_[level].data(); }
  // O(log children). kNoNode when `code` is not allowed under `node`.
  uint32_t child(int level, uint32_t node, int32_t code) const;
  // The leaf of a whole SID, kNoNode when it is not in the trie (codes out of range included).
  uint32_t FindSid(const int32_t* sid) const;
  // Writes the L codes of SID number `sid`.
  void SidCodes(uint32_t sid, int32_t* out) const;

  // Positions [first, last) of the items of SID number `sid`, best weight first.
  Range items(uint32_t sid) const;
  int64_t item_id(uint32_t position) const { return item_id_[position]; }
  float weight(uint32_t position) const { return weight_[position]; }
  // Position of an item, kNoNode if it is not in the catalogue. O(log items).
  uint32_t FindItem(int64_t item_id) const;
  // SID number of the item at `position`. O(log SIDs), O(1) when every SID has one item.
  uint32_t SidOfPosition(uint32_t position) const;

  int num_facets() const { return num_facets_; }
  int16_t facet(uint32_t position, int f) const {
    return facets_[static_cast<size_t>(position) * num_facets_ + f];
  }

  // Positions of the heaviest items, best first (ties: smaller item_id), at most kTopItems of them.
  static constexpr int kTopItems = 4096;
  const std::vector<uint32_t>& top_items() const { return top_items_; }

  int64_t memory_bytes() const;  // of all arrays

 private:
  friend class RecallIndexBuilder;  // recall_index_build.cc
  friend class RecallIndexFile;     // recall_index_file.cc: save and load
  SidSpace space_;
  IndexArray<uint32_t> child_begin_[kMaxLevels];  // [num_nodes(l) + 1]
  IndexArray<uint16_t> codes_[kMaxLevels];        // [num_nodes(l + 1)]
  IndexArray<uint32_t> sid_item_begin_;           // [num_sids + 1]; empty: one item per SID
  IndexArray<int64_t> item_id_;                   // [num_items] by position
  IndexArray<float> weight_;                      // [num_items] by position
  IndexArray<uint32_t> by_item_id_;               // [num_items] positions in ascending item_id order
  int num_facets_ = 0;
  IndexArray<int16_t> facets_;  // [num_items, F] by position
  std::vector<uint32_t> top_items_;
  uint32_t checksum_ = 0;
};

// INVALID_ARGUMENT unless there are 1..kMaxLevels levels of 1..kMaxLevelSize codes.
Status CheckLevelSizes(const std::vector<int32_t>& level_sizes);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_RECALL_INDEX_H_
