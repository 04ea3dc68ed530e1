// Thread-local working memory of the numeric kernels: grows, is never given back, is aligned for any vector.
#ifndef GENRECALL_KERNELS_SCRATCH_H_
#define GENRECALL_KERNELS_SCRATCH_H_

#include <cstdint>

namespace genrecall {

// Independent areas: asking for one again may move it, and leaves the others alone.
enum class ScratchArea : int {
  kShared = 0,  // handed to other threads by a ParallelFor
  kTask = 1,    // of one range of a ParallelFor
  kTiles = 2,   // the same, for what AMX needs besides
};

// At least `bytes` bytes, 64-byte aligned, of this thread's area; contents unspecified.
void* ThreadScratch(ScratchArea area, int64_t bytes);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_SCRATCH_H_
