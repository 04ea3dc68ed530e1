// Constants of the GGUF byte layout, shared by its reader and its writer. Internal to kernels/gguf*.cc.
#ifndef GENRECALL_KERNELS_GGUF_FORMAT_H_
#define GENRECALL_KERNELS_GGUF_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace genrecall {
namespace gguf {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "genrecall reads and writes its little-endian files by memcpy: big-endian machines are not supported"
#endif

inline constexpr char kMagic[] = "GGUF";
inline constexpr uint32_t kVersion = 3;
inline constexpr uint64_t kAlignment = 32;
inline constexpr int64_t kMaxAlignment = 1 << 20;
inline constexpr char kAlignmentKey[] = "general.alignment";
inline constexpr uint32_t kMaxRank = 4;
inline constexpr uint64_t kLeastMetadataBytes = 8 + 4 + 1;        // empty key, type, one byte
inline constexpr uint64_t kLeastTensorBytes = 8 + 4 + 0 + 4 + 8;  // empty name, rank 0, type, offset

inline constexpr char kTrailerMagic[] = "GRCKSUM1";
inline constexpr uint64_t kTrailerMagicBytes = 8;
inline constexpr uint64_t kTrailerBytes = 16;

// Well-formed UTF-8 (RFC 3629) without NUL: names and texts end up in error messages, and those in protocol
// buffers and C strings.
bool IsUtf8(const std::string& text);

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

inline bool IsFloat(ValueType type) { return type == ValueType::kFloat32 || type == ValueType::kFloat64; }

// Bytes of a number; 0 for strings, arrays and unknown types.
inline size_t ValueSize(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace gguf
}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GGUF_FORMAT_H_
