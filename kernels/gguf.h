// GGUF v3 containers: the project's file format for weights, recall index and compiled prompt. Little endian.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files written here end with a 16-byte
// trailer after the tensor data (readers of plain GGUF ignore it): "GRCKSUM1", CRC-32C of all bytes before
// the trailer (uint32), four zero bytes.
#ifndef GENRECALL_KERNELS_GGUF_H_
#define GENRECALL_KERNELS_GGUF_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "kernels/status.h"

namespace genrecall {

// ggml tensor types used here.
enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kBF16 = 30 };

// "F32", "BF16", ...; null for a type this project does not read.
const char* GgufTypeName(GgufType type);
// Bytes of one element; 0 for a type this project does not read.
int GgufTypeSize(GgufType type);

// Metadata values, widened: every integer type to int64, every float to double, arrays alike.
using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<std::string>>;

struct GgufTensor {
  GgufType type;
  std::vector<int64_t> shape;  // outermost first (row-major): NumPy's order, the reverse of the file's
  const void* data;            // aligned to the file's alignment (32), owned by the GgufFile
  int64_t bytes;
};

// A file read whole into private memory and checked: magic, version, every length and offset, the trailer's
// checksum. Private, not mapped: a mapped file that is truncated later kills the process.
class GgufFile {
 public:
  // require_checksum: a file without the trailer is DATA_LOSS. Without it, a missing trailer is accepted (a
  // user's own GGUF), a wrong one is not. Errors: NOT_FOUND, DATA_LOSS, UNIMPLEMENTED (tensor type),
  // RESOURCE_EXHAUSTED (no memory), always with path and place.
  static Result<std::shared_ptr<const GgufFile>> Read(const std::string& path, bool require_checksum);

  const std::string& path() const { return path_; }
  uint32_t checksum() const { return checksum_; }  // CRC-32C of all bytes before the trailer
  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  // DATA_LOSS naming path and key when missing or of another type. An empty array is of every array type.
  Result<int64_t> Int(const std::string& key) const;
  Result<double> Float(const std::string& key) const;  // accepts an integer
  Result<std::string> String(const std::string& key) const;
  Result<std::vector<int64_t>> Ints(const std::string& key) const;
  Result<std::vector<std::string>> Strings(const std::string& key) const;
  bool Has(const std::string& key) const { return metadata_.count(key) > 0; }
  // DATA_LOSS naming path and tensor when missing or of another type.
  Result<GgufTensor> Tensor(const std::string& name, GgufType type) const;
  // Gives a tensor's memory back to the system, so that who copies tensors one by one never holds two copies
  // of all. For the file's only holder: the tensor's data is undefined from now on.
  void Discard(const GgufTensor& tensor) const;

 private:
  friend class GgufReader;
  std::string path_;
  std::unique_ptr<uint8_t, void (*)(void*)> bytes_{nullptr, nullptr};
  uint32_t checksum_ = 0;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

// Collects metadata and tensors and writes them: keys in alphabetical order, tensors in the order added. The
// same content always gives the same bytes. As the loaders of models expect, an integer is written as UINT32
// when it fits (else INT64), a double as FLOAT32, an array of integers as INT32 when all fit (else INT64), of
// doubles as FLOAT32.
class GgufWriter {
 public:
  void Set(const std::string& key, GgufValue value) { metadata_[key] = std::move(value); }
  // `data` is borrowed until the last call of Write or Checksum.
  void Add(const std::string& name, GgufType type, std::vector<int64_t> shape, const void* data);
  // Writes beside `path`, fsyncs and renames, so that a reader sees the old file or the new one.
  // INVALID_ARGUMENT: a name twice, a name or text that is not UTF-8, a shape of more than 4 or of negative
  // dimensions; NOT_FOUND: no such folder; else INTERNAL.
  Status Write(const std::string& path) const;
  // What GgufFile::checksum will be of the file that Write makes.
  Result<uint32_t> Checksum() const;

 private:
  Status Validate() const;
  // Everything before the tensor data, padded to the alignment.
  std::string Header() const;
  // Hands all bytes before the trailer to `sink` (null: to nobody); returns their checksum.
  Result<uint32_t> Emit(const std::function<Status(const void* data, uint64_t size)>& sink) const;
  struct Entry {
    std::string name;
    GgufType type;
    std::vector<int64_t> shape;
    const void* data;
  };
  std::map<std::string, GgufValue> metadata_;
  std::vector<Entry> entries_;
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_GGUF_H_
