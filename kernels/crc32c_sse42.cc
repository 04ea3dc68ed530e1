// CRC-32C by the SSE4.2 instruction. Only plain declarations here: code inlined from shared headers would
// carry this file's instruction set into the rest of the program.
#include <stddef.h>
#include <stdint.h>

#if defined(__SSE4_2__)
#include <immintrin.h>
#endif

namespace genrecall {

uint32_t Crc32cScalar(uint32_t crc, const void* data, size_t size);
uint32_t Crc32cSse42(uint32_t crc, const void* data, size_t size);

#if defined(__SSE4_2__)
uint32_t Crc32cSse42(uint32_t crc, const void* data, size_t size) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  uint64_t state = static_cast<uint32_t>(~crc);
  for (; size >= 8; size -= 8, p += 8) {
    uint64_t word;
    __builtin_memcpy(&word, p, sizeof word);
    state = _mm_crc32_u64(state, word);
  }
  uint32_t tail = static_cast<uint32_t>(state);
  for (; size > 0; --size, ++p) tail = _mm_crc32_u8(tail, *p);
  return ~tail;
}
#else
uint32_t Crc32cSse42(uint32_t crc, const void* data, size_t size) { return Crc32cScalar(crc, data, size); }
#endif

}  // namespace genrecall
