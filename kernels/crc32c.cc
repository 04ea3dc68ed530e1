#include "kernels/crc32c.h"

#include <array>
#include <cstring>

namespace genrecall {

// crc32c_sse42.cc; call only on a CPU that has the instruction.
uint32_t Crc32cSse42(uint32_t crc, const void* data, size_t size);

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;  // Castagnoli, reflected

// tables[k][b]: effect of byte b followed by k zero bytes, so that eight bytes are folded at once.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    t[0][b] = crc;
  }
  for (size_t k = 1; k < t.size(); ++k) {
    for (uint32_t b = 0; b < 256; ++b) t[k][b] = (t[k - 1][b] >> 8) ^ t[0][t[k - 1][b] & 0xff];
  }
  return t;
}

constexpr Tables kTables = MakeTables();

bool CpuHasCrc32() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2");
#else
  return false;
#endif
}

}  // namespace

uint32_t Crc32cScalar(uint32_t crc, const void* data, size_t size) {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; size >= 8; size -= 8, p += 8) {
    uint32_t next = 0;
    const uint8_t low[4] = {static_cast<uint8_t>(crc), static_cast<uint8_t>(crc >> 8),
                            static_cast<uint8_t>(crc >> 16), static_cast<uint8_t>(crc >> 24)};
    for (int i = 0; i < 4; ++i) next ^= kTables[7 - i][p[i] ^ low[i]];
    for (int i = 4; i < 8; ++i) next ^= kTables[7 - i][p[i]];
    crc = next;
  }
  for (; size > 0; --size, ++p) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xff];
  return ~crc;
}

bool Crc32cIsAccelerated() {
  static const bool accelerated = CpuHasCrc32();
  return accelerated;
}

uint32_t Crc32c(uint32_t crc, const void* data, size_t size) {
  return Crc32cIsAccelerated() ? Crc32cSse42(crc, data, size) : Crc32cScalar(crc, data, size);
}

}  // namespace genrecall
