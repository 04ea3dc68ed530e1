// How many bytes of keys and values a process may hold, and who gives way when they run out. Knows no page,
// no tree and no model.
//
// Bytes are committed when they are promised to a running request or kept in a prefix cache, resident while
// a block of them is held from the system. Neither ever exceeds the limit: before a commitment would, the
// least recently used of what caches keep is dropped; before residence would, spare blocks go back.
#ifndef GENRECALL_TRTLLM_BRIDGE_KV_BUDGET_H_
#define GENRECALL_TRTLLM_BRIDGE_KV_BUDGET_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace genrecall {

class KvBudget {
 public:
  // The process' budget of that many bytes: engines with the same limit share one, so that an old and a new
  // model version, both alive during a swap, do not hold twice as much.
  static std::shared_ptr<KvBudget> Shared(int64_t limit_bytes);

  explicit KvBudget(int64_t limit_bytes) : limit_(limit_bytes) {}
  KvBudget(const KvBudget&) = delete;
  KvBudget& operator=(const KvBudget&) = delete;

  int64_t limit() const { return limit_; }

  // Everything below, and everything that members guard with it, needs this lock. It is a leaf: whoever
  // holds it takes no other.
  using Lock = std::unique_lock<std::mutex>;
  Lock Acquire() { return Lock(mutex_); }

  // Who holds bytes that it can do without. Called with the lock held.
  class Member {
   public:
    static constexpr uint64_t kNothing = ~uint64_t{0};
    virtual ~Member() = default;
    // When what DropOldest would drop was last used (a Tick); kNothing when there is nothing.
    virtual uint64_t OldestUse() const { return kNothing; }
    // Drops something that is idle: calls Uncommit.
    virtual void DropOldest() {}
    // Gives spare blocks back to the system: calls AddResident with a negative number.
    virtual void FreeSpare() {}
  };
  void Join(Member* member) { members_.push_back(member); }
  void Leave(Member* member);

  // Promises bytes, dropping what is idle, least recently used first, as far as needed. False, with nothing
  // changed, when that is not enough now.
  bool Commit(int64_t bytes);
  void Uncommit(int64_t bytes) { committed_ -= bytes; }
  // Of the committed bytes, what members could drop.
  void AddIdle(int64_t bytes) { idle_ += bytes; }
  // Makes room for a block that the caller then gets from the system; to be followed by AddResident.
  void MakeResidentRoom(int64_t bytes);
  void AddResident(int64_t bytes) { resident_ += bytes; }
  uint64_t Tick() { return ++clock_; }

  int64_t committed() const { return committed_; }
  int64_t resident() const { return resident_; }

 private:
  const int64_t limit_;
  std::mutex mutex_;
  std::vector<Member*> members_;
  int64_t committed_ = 0, idle_ = 0, resident_ = 0;
  uint64_t clock_ = 0;
};

// kv_bytes where the options leave it open: GENRECALL_KV_BYTES, else 1 GiB. A value that is not a positive
// integer is a std::invalid_argument that names it.
int64_t DefaultKvBytes();

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_KV_BUDGET_H_
