// The AMX tile instructions that gemm_amx.cc uses, on eight tiles of 16 rows x 64 bytes. With
// -DGENRECALL_EMULATE_AMX they are computed as Intel's manual defines them (TDPBF16PS: pairs summed apart
// with fused multiply-adds, subnormals as zero, round to nearest even; TDPBSSD: exact products of signed
// bytes, int32 sums that wrap), so that the kernel around them can be tested on a machine without AMX.
#ifndef GENRECALL_KERNELS_AMX_TILE_H_
#define GENRECALL_KERNELS_AMX_TILE_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace genrecall {
namespace {

constexpr int kTileDim = 16;    // rows of a tile, and its 32-bit columns
constexpr int kTileDepth = 32;  // bf16 numbers of a tile row: k taken by one TileDot
constexpr int kTileBytes = 64;  // of a tile row: k taken by one TileDotInt8
constexpr int kTileFloats = 16 * 16;

#if defined(GENRECALL_EMULATE_AMX)

struct EmulatedTile {
  uint32_t row[kTileDim][kTileDim];
};
thread_local EmulatedTile emulated_tiles[8];

inline void TileConfigure() {}
inline void TileRelease() {}

template <int kTile>
inline void TileZero() {
  emulated_tiles[kTile] = EmulatedTile{};
}

template <int kTile>
inline void TileLoad(const void* data, int64_t stride_bytes) {
  for (int r = 0; r < kTileDim; ++r) {
    __builtin_memcpy(emulated_tiles[kTile].row[r], static_cast<const char*>(data) + r * stride_bytes, 64);
  }
}

template <int kTile>
inline void TileStore(void* data, int64_t stride_bytes) {
  for (int r = 0; r < kTileDim; ++r) {
    __builtin_memcpy(static_cast<char*>(data) + r * stride_bytes, emulated_tiles[kTile].row[r], 64);
  }
}

inline float FlushSubnormal(float x) {
  return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x;
}

inline float FromBits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// The low (even k) and the high (odd k) bf16 number of a 32-bit element.
inline float LowHalf(uint32_t pair) { return FlushSubnormal(FromBits(pair << 16)); }
inline float HighHalf(uint32_t pair) { return FlushSubnormal(FromBits(pair & 0xffff0000u)); }

inline float FusedMultiplyAdd(float a, float b, float c) {
  return FlushSubnormal(__builtin_fmaf(a, b, FlushSubnormal(c)));
}

template <int kC, int kA, int kB>
inline void TileDot() {
  const EmulatedTile &a = emulated_tiles[kA], &b = emulated_tiles[kB];
  EmulatedTile& c = emulated_tiles[kC];
  for (int m = 0; m < kTileDim; ++m) {
    float even[kTileDim] = {}, odd[kTileDim] = {};
    for (int k = 0; k < kTileDim; ++k) {
      for (int n = 0; n < kTileDim; ++n) {
        even[n] = FusedMultiplyAdd(LowHalf(a.row[m][k]), LowHalf(b.row[k][n]), even[n]);
        odd[n] = FusedMultiplyAdd(HighHalf(a.row[m][k]), HighHalf(b.row[k][n]), odd[n]);
      }
    }
    for (int n = 0; n < kTileDim; ++n) {
      const float pair = FlushSubnormal(even[n] + odd[n]);
      const float sum = FlushSubnormal(FlushSubnormal(FromBits(c.row[m][n])) + pair);
      __builtin_memcpy(&c.row[m][n], &sum, sizeof sum);
    }
  }
}

inline int32_t SignedByte(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

template <int kC, int kA, int kB>
inline void TileDotInt8() {
  const EmulatedTile &a = emulated_tiles[kA], &b = emulated_tiles[kB];
  EmulatedTile& c = emulated_tiles[kC];
  for (int m = 0; m < kTileDim; ++m) {
    for (int k = 0; k < kTileDim; ++k) {
      for (int n = 0; n < kTileDim; ++n) {
        for (int i = 0; i < 4; ++i) {
          c.row[m][n] += static_cast<uint32_t>(SignedByte(a.row[m][k], i) * SignedByte(b.row[k][n], i));
        }
      }
    }
  }
}

#else

// What LDTILECFG reads: palette 1, all eight tiles at their full size.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The configuration belongs to the thread; other libraries of the process may have left theirs.
inline void TileConfigure() {
  const TileConfiguration configuration;
  __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
}
inline void TileRelease() { __asm__ volatile("tilerelease"); }

// The compilers' intrinsics take tile numbers as literals only; these take template arguments.
template <int kTile>
inline void TileZero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
inline void TileLoad(const void* data, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride_bytes), "i"(kTile) : "memory");
}

template <int kTile>
inline void TileStore(void* data, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(data), "r"(stride_bytes), "i"(kTile) : "memory");
}

// C[m][n] += sum over k of A[m][k] B[k][n]: A is 16 x 32 bf16, B 16 x 16 pairs of bf16 of successive k.
template <int kC, int kA, int kB>
inline void TileDot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

// The same for int32 C, A 16 x 64 signed bytes, B 16 x 16 quadruples of signed bytes of successive k.
template <int kC, int kA, int kB>
inline void TileDotInt8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

#endif

}  // namespace
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_AMX_TILE_H_
