#include "kernels/huge_pages.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>

namespace genrecall {

uint8_t* AllocateOnHugePages(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = bytes >= kHugePage;
  void* memory = nullptr;
  if (::posix_memalign(&memory, large ? kHugePage : 64, std::max<size_t>(bytes, 1)) != 0) return nullptr;
  // A hint, so its failure is harmless.
  if (large) ::madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return static_cast<uint8_t*>(memory);
}

}  // namespace genrecall
