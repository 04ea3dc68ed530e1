// CRC-32C (Castagnoli), the checksum of every file genrecall writes. Knows no file.
#ifndef GENRECALL_KERNELS_CRC32C_H_
#define GENRECALL_KERNELS_CRC32C_H_

#include <cstddef>
#include <cstdint>

namespace genrecall {

// The CRC-32C of the bytes hashed so far, extended by `size` more; start with crc = 0.
// Crc32c(0, "123456789", 9) == 0xe3069283. Uses the SSE4.2 instruction where the CPU has it.
uint32_t Crc32c(uint32_t crc, const void* data, size_t size);

// The specification, by table; any CPU.
uint32_t Crc32cScalar(uint32_t crc, const void* data, size_t size);

// True when Crc32c uses the instruction.
bool Crc32cIsAccelerated();

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CRC32C_H_
