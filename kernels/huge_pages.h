// Memory for megabytes that are read again and again: on huge pages, where the system grants them.
#ifndef GENRECALL_KERNELS_HUGE_PAGES_H_
#define GENRECALL_KERNELS_HUGE_PAGES_H_

#include <cstddef>
#include <cstdint>

namespace genrecall {

// `bytes` bytes, uninitialised, aligned to 64 at least, freed by std::free; null when there are none. Whole
// huge pages (2 MiB) of it are asked for as such, for fewer page faults and address look-ups; the rest is on
// ordinary ones, so that nothing is resident that was not asked for.
uint8_t* AllocateOnHugePages(size_t bytes);

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_HUGE_PAGES_H_
