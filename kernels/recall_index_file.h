// The recall index as a GGUF file. Internal to kernels/recall_index*.cc.
//
// Metadata: genrecall.format = "recall_index", genrecall.format_version, genrecall.level_sizes,
// genrecall.sid_space_digest, genrecall.num_items, genrecall.num_facets.
//
// | tensor           | type, shape                | holds |
// |------------------|----------------------------|---------------------------------------------------------------|
// | codes.<l>        | I8 or I16 [nodes of l + 1] | unsigned code that enters the node; I8 if the level has
// <= 256 codes | | first_child.<l>  | I8 [ceil(nodes / 8)]       | l >= 1: bit n is set when node n of level
// l + 1 is its parent's first child; absent when every node of level l has one child | | first_item       |
// I8 [ceil(items / 8)]       | bit p is set when position p begins a SID; absent when every SID has one item
// | | item_id          | I64 [items]                | by position | | weight           | F32 [items] | by
// position; absent: all 1                                    | | by_item_id       | I32 [items] | unsigned
// positions in ascending item_id order                 | | facets           | I16 [items, F]             | by
// position; absent when F = 0                                | | top_items        | I32 [min(items, 4096)] |
// unsigned positions, heaviest first                            |
//
// One bit a node instead of a begin offset keeps the file small, and a range can then not be anything but
// monotone.
#ifndef GENRECALL_KERNELS_RECALL_INDEX_FILE_H_
#define GENRECALL_KERNELS_RECALL_INDEX_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/recall_index.h"
#include "kernels/status.h"

namespace genrecall {

class RecallIndexFile {
 public:
  static constexpr int kFormatVersion = 1;
  static Result<std::shared_ptr<const RecallIndex>> Load(const std::string& path,
                                                         const std::string& expected_digest);
  static Status Save(const RecallIndex& index, const std::string& path);
  // The checksum that a saved file would carry.
  static Result<uint32_t> Checksum(const RecallIndex& index);

 private:
  class Loader;
  class Saver;
};

// The order of top items: heavier first, ties by smaller item_id.
bool Heavier(const RecallIndex& index, uint32_t a, uint32_t b);
// Positions of the kTopItems heaviest items, in that order.
std::vector<uint32_t> HeaviestItems(const RecallIndex& index);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_RECALL_INDEX_FILE_H_
