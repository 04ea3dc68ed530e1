#include "kernels/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace genrecall {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, Free> data;
  int64_t bytes = 0;
};

thread_local Buffer buffers[3];

}  // namespace

void* ThreadScratch(ScratchArea area, int64_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(area)];
  if (bytes > buffer.bytes || buffer.data == nullptr) {
    const int64_t rounded = (bytes / 4096 + 1) * 4096;
    buffer.data.reset();
    buffer.bytes = 0;
    buffer.data.reset(std::aligned_alloc(64, rounded));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data.get();
}

}  // namespace genrecall
