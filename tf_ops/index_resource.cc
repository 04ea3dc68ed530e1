#include "tf_ops/index_resource.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tensorflow/core/platform/logging.h"
#include "tf_ops/metrics.h"

namespace genrecall {
namespace {

// Whether an index can take the place of `old`: the graph's shapes and the model's tokens were made for that
// one.
Status CheckReplaces(const RecallIndex& old, const RecallIndex& index) {
  const SidSpace& want = old.sid_space();
  const SidSpace& have = index.sid_space();
  const auto failed = [](const std::string& message) { return Status(Code::kFailedPrecondition, message); };
  if (have.level_sizes != want.level_sizes) {
    return failed(absl::StrCat("level sizes [", absl::StrJoin(have.level_sizes, ", "), "]: expected [",
                               absl::StrJoin(want.level_sizes, ", "), "]"));
  }
  if (!want.digest.empty() && have.digest != want.digest) {
    return failed(absl::StrCat("sid_space_digest '", have.digest, "': expected '", want.digest, "'"));
  }
  if (index.num_facets() != old.num_facets()) {
    return failed(absl::StrCat(index.num_facets(), " facets: expected ", old.num_facets()));
  }
  return Status();
}

}  // namespace

Result<IndexResource*> IndexResource::Create(const std::string& asset_path,
                                             const std::string& sid_space_digest) {
  auto asset = RecallIndex::Load(asset_path, sid_space_digest);
  if (!asset.ok()) return asset.status();
  tensorflow::core::RefCountPtr<IndexResource> resource(new IndexResource(asset.value()));
  metrics::SetIndexItems(asset.value()->sid_space().digest, asset.value()->num_items());
  const char* directory = std::getenv("GENRECALL_INDEX_DIR");
  if (directory != nullptr && *directory != '\0') {
    auto poll = IndexPollInterval();
    if (!poll.ok()) return poll.status();
    IndexResource* self = resource.get();
    self->watcher_ = std::make_unique<IndexWatcher>(
        directory, poll.value(), [self](const std::string& path) { return self->Replace(path); },
        [](const std::string& path, const Status& why) {
          metrics::CountIndexRejected();
          LOG(ERROR) << "genrecall: recall index " << path
                     << " refused, the old one goes on serving: " << why.message();
        },
        [self] { self->FreeRetired(); });
  }
  return resource.release();
}

Status IndexResource::Replace(const std::string& path) {
  std::shared_ptr<const RecallIndex> old = snapshot();
  auto loaded = RecallIndex::Load(path, old->sid_space().digest);
  if (!loaded.ok()) return loaded.status();
  std::shared_ptr<const RecallIndex> index = loaded.value();
  GENRECALL_RETURN_IF_ERROR(CheckReplaces(*old, *index));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    index_ = index;
  }
  retired_.push_back(std::move(old));
  metrics::CountIndexReplaced();
  metrics::SetIndexItems(index->sid_space().digest, index->num_items());
  LOG(INFO) << "genrecall: recall index " << path << " serves " << index->num_items() << " items";
  return Status();
}

void IndexResource::FreeRetired() {
  // Nobody can take a snapshot of them any more, so who holds the only reference goes on doing so.
  const auto unused = [](const std::shared_ptr<const RecallIndex>& index) { return index.use_count() == 1; };
  retired_.erase(std::remove_if(retired_.begin(), retired_.end(), unused), retired_.end());
}

std::shared_ptr<const RecallIndex> IndexResource::snapshot() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return index_;
}

std::string IndexResource::DebugString() const {
  const auto index = snapshot();
  return absl::StrCat("recall index of ", index->num_items(), " items, checksum ", index->checksum());
}

}  // namespace genrecall
