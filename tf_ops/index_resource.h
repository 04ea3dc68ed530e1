// The recall index that serves: loaded from the SavedModel's asset, replaced in place from
// GENRECALL_INDEX_DIR.
#ifndef GENRECALL_TF_OPS_INDEX_RESOURCE_H_
#define GENRECALL_TF_OPS_INDEX_RESOURCE_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/recall_index.h"
#include "tensorflow/core/framework/resource_base.h"
#include "tf_ops/index_watcher.h"

namespace genrecall {

class IndexResource : public tensorflow::ResourceBase {
 public:
  // Loads the asset, then, with GENRECALL_INDEX_DIR set, the newest valid file of that directory, and goes on
  // watching it. Errors: RecallIndex::Load's for the asset; a bad GENRECALL_INDEX_POLL_MS. A bad file in the
  // directory is no error: it is logged and counted. Which it is, too, when its SID space's digest or level
  // sizes or its facets are not the asset's.
  static Result<IndexResource*> Create(const std::string& asset_path, const std::string& sid_space_digest);

  // The index that serves now. Whoever holds it keeps it, whatever is published meanwhile. The last one to
  // let go of a replaced index does not pay for freeing it: the watcher does, within a poll.
  std::shared_ptr<const RecallIndex> snapshot() const;

  std::string DebugString() const override;
  int64_t MemoryUsed() const override { return snapshot()->memory_bytes(); }

 private:
  explicit IndexResource(std::shared_ptr<const RecallIndex> asset) : index_(std::move(asset)) {}
  Status Replace(const std::string& path);  // these two on the watcher's thread
  void FreeRetired();

  mutable std::mutex mutex_;
  std::shared_ptr<const RecallIndex> index_;
  std::vector<std::shared_ptr<const RecallIndex>> retired_;  // replaced; the watcher's thread only
  std::unique_ptr<IndexWatcher> watcher_;                    // last: its thread uses the rest
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_INDEX_RESOURCE_H_
