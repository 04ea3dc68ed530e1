#include "tf_ops/index_watcher.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace genrecall {
namespace {

// Added to the nice value of the thread that loads: a tenth of a request thread's share of a busy CPU.
constexpr int kLoadNice = 10;
constexpr int kMaxNice = 19;

bool IsIndexFile(const std::string& name) {
  const std::string suffix = ".gguf";
  return name.size() > suffix.size() && name[0] != '.' &&
         name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// On Linux "process 0" is the calling thread. Anyone may lower a priority, and nothing is lost if one cannot.
void GiveWay() { setpriority(PRIO_PROCESS, 0, std::min(getpriority(PRIO_PROCESS, 0) + kLoadNice, kMaxNice)); }

}  // namespace

IndexWatcher::IndexWatcher(std::string directory, std::chrono::milliseconds poll, Load load,
                           Rejected rejected, Scanned scanned)
    : directory_(std::move(directory)),
      poll_(poll),
      load_(std::move(load)),
      rejected_(std::move(rejected)),
      scanned_(std::move(scanned)) {
  Scan();
  thread_ = std::thread([this] { Run(); });
}

IndexWatcher::~IndexWatcher() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  thread_.join();
}

std::vector<IndexWatcher::File> IndexWatcher::NewestFirst() const {
  std::vector<File> files;
  DIR* dir = opendir(directory_.c_str());
  if (dir == nullptr) return files;
  while (const dirent* entry = readdir(dir)) {
    struct stat st;
    const std::string name = entry->d_name;
    if (!IsIndexFile(name) || stat((directory_ + "/" + name).c_str(), &st) != 0 || !S_ISREG(st.st_mode))
      continue;
    const int64_t mtime_ns = static_cast<int64_t>(st.st_mtim.tv_sec) * 1000000000 + st.st_mtim.tv_nsec;
    files.push_back({mtime_ns, name, static_cast<int64_t>(st.st_size), static_cast<int64_t>(st.st_ino)});
  }
  closedir(dir);
  std::sort(files.rbegin(), files.rend());
  return files;
}

void IndexWatcher::Scan() {
  LoadNewest();
  scanned_();
}

void IndexWatcher::LoadNewest() {
  const std::vector<File> files = NewestFirst();
  std::set<File> still_refused;
  for (const File& file : files) {
    if (refused_.count(file)) still_refused.insert(file);
  }
  refused_ = std::move(still_refused);  // versions that are gone need no memory
  for (const File& file : files) {
    if (file == serving_) return;
    if (refused_.count(file)) continue;
    const std::string path = directory_ + "/" + file.name;
    const Status status = load_(path);
    if (status.ok()) {
      serving_ = file;
      return;
    }
    refused_.insert(file);
    rejected_(path, status);
  }
}

void IndexWatcher::Run() {
  GiveWay();
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_changed_.wait_for(lock, poll_, [this] { return stop_; })) {
    lock.unlock();
    Scan();
    lock.lock();
  }
}

Result<std::chrono::milliseconds> IndexPollInterval() {
  const char* text = std::getenv("GENRECALL_INDEX_POLL_MS");
  if (text == nullptr || *text == '\0') return std::chrono::milliseconds(1000);
  char* end = nullptr;
  const long ms = std::strtol(text, &end, 10);
  if (*end != '\0' || ms < 1) {
    return InvalidArgument("GENRECALL_INDEX_POLL_MS='", text, "': expected a positive integer");
  }
  return std::chrono::milliseconds(ms);
}

}  // namespace genrecall
