#include "trtllm_bridge/kv_budget.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>

namespace genrecall {

std::shared_ptr<KvBudget> KvBudget::Shared(int64_t limit_bytes) {
  static std::mutex mutex;
  static auto* budgets = new std::map<int64_t, std::weak_ptr<KvBudget>>();
  std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<KvBudget>& known = (*budgets)[limit_bytes];
  std::shared_ptr<KvBudget> budget = known.lock();
  if (budget == nullptr) {
    budget = std::make_shared<KvBudget>(limit_bytes);
    known = budget;
  }
  return budget;
}

void KvBudget::Leave(Member* member) {
  members_.erase(std::remove(members_.begin(), members_.end(), member), members_.end());
}

bool KvBudget::Commit(int64_t bytes) {
  if (committed_ - idle_ + bytes > limit_) return false;
  while (committed_ + bytes > limit_) {
    Member* oldest =
        *std::min_element(members_.begin(), members_.end(),
                          [](const Member* a, const Member* b) { return a->OldestUse() < b->OldestUse(); });
    oldest->DropOldest();  // there is one: idle_ > 0
  }
  committed_ += bytes;
  return true;
}

void KvBudget::MakeResidentRoom(int64_t bytes) {
  for (Member* member : members_) {
    if (resident_ + bytes <= limit_) return;
    member->FreeSpare();
  }
}

int64_t DefaultKvBytes() {
  const char* text = std::getenv("GENRECALL_KV_BYTES");
  if (text == nullptr) return int64_t{1} << 30;
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text, &end, 10);
  if (end == text || *end != '\0' || value < 1 || errno == ERANGE) {
    throw std::invalid_argument(std::string("GENRECALL_KV_BYTES='") + text +
                                "': expected a positive number of bytes");
  }
  return value;
}

}  // namespace genrecall
