// Follows a directory of recall index files. Knows no TensorFlow and not what a valid index is.
#ifndef GENRECALL_TF_OPS_INDEX_WATCHER_H_
#define GENRECALL_TF_OPS_INDEX_WATCHER_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels/status.h"

namespace genrecall {

// Hands the newest *.gguf of a directory, by (modification time, name), to `load`; one that is refused is
// handed over once per version of the file, then the next older one has its turn, down to the one that
// serves. An empty or missing directory changes nothing. Put files there by writing beside and renaming; a
// file seen half written is refused, and tried again when it has grown.
//
// Its thread gives way to the threads that answer requests: a request waits for all of its compute threads,
// so a load on one of their CPUs would slow it as if it ran on all of them.
class IndexWatcher {
 public:
  // Loads and publishes the file; not OK: it was refused and nothing changed.
  using Load = std::function<Status(const std::string& path)>;
  // Called once per refused version of a file.
  using Rejected = std::function<void(const std::string& path, const Status& why)>;
  // Called at the end of every scan.
  using Scanned = std::function<void()>;

  // Scans once before returning, then every `poll` in a thread of its own. All three are called by whoever
  // scans.
  IndexWatcher(std::string directory, std::chrono::milliseconds poll, Load load, Rejected rejected,
               Scanned scanned);
  ~IndexWatcher();  // waits for a load in progress
  IndexWatcher(const IndexWatcher&) = delete;
  IndexWatcher& operator=(const IndexWatcher&) = delete;

 private:
  struct File {
    int64_t mtime_ns;
    std::string name;
    int64_t bytes, inode;  // a replacement within the clock's grain is still another version
    bool operator<(const File& o) const {
      return std::tie(mtime_ns, name, bytes, inode) < std::tie(o.mtime_ns, o.name, o.bytes, o.inode);
    }
    bool operator==(const File& o) const { return !(*this < o) && !(o < *this); }
  };
  std::vector<File> NewestFirst() const;
  void Scan();
  void LoadNewest();
  void Run();

  const std::string directory_;
  const std::chrono::milliseconds poll_;
  const Load load_;
  const Rejected rejected_;
  const Scanned scanned_;
  // Only the constructor and then the thread touch these two.
  File serving_{};
  std::set<File> refused_;

  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread thread_;
};

// GENRECALL_INDEX_POLL_MS, 1000 when unset. INVALID_ARGUMENT: "GENRECALL_INDEX_POLL_MS='x': expected a
// positive integer".
Result<std::chrono::milliseconds> IndexPollInterval();

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_INDEX_WATCHER_H_
