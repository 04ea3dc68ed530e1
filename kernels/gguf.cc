// Reading GGUF. Every length, count and offset in the file is taken for an attack until it is checked.
#include "kernels/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <new>

#include "kernels/crc32c.h"
#include "kernels/gguf_format.h"
#include "kernels/huge_pages.h"

namespace genrecall {

const char* GgufTypeName(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return "F32";
    case GgufType::kF16:
      return "F16";
    case GgufType::kI8:
      return "I8";
    case GgufType::kI16:
      return "I16";
    case GgufType::kI32:
      return "I32";
    case GgufType::kI64:
      return "I64";
    case GgufType::kBF16:
      return "BF16";
  }
  return nullptr;
}

int GgufTypeSize(GgufType type) {
  switch (type) {
    case GgufType::kI8:
      return 1;
    case GgufType::kF16:
    case GgufType::kI16:
    case GgufType::kBF16:
      return 2;
    case GgufType::kF32:
    case GgufType::kI32:
      return 4;
    case GgufType::kI64:
      return 8;
  }
  return 0;
}

namespace {

using gguf::ValueType;

// Closes a file descriptor at the end of its scope.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

constexpr size_t kReadChunk = size_t{1} << 20;  // small enough that the checksum reads it from cache

}  // namespace

void GgufFile::Discard(const GgufTensor& tensor) const {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data), end = begin + tensor.bytes;
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

// Parses one file into a GgufFile.
class GgufReader {
 public:
  explicit GgufReader(const std::string& path) : file_(std::make_shared<GgufFile>()) { file_->path_ = path; }

  Result<std::shared_ptr<const GgufFile>> Read(bool require_checksum) {
    GENRECALL_RETURN_IF_ERROR(ReadBytes());
    GENRECALL_RETURN_IF_ERROR(CheckTrailer(require_checksum));
    GENRECALL_RETURN_IF_ERROR(ParseHeader());
    for (uint64_t i = 0; i < num_metadata_; ++i) GENRECALL_RETURN_IF_ERROR(ParseMetadata());
    GENRECALL_RETURN_IF_ERROR(ParseAlignment());
    for (uint64_t i = 0; i < num_tensors_; ++i) GENRECALL_RETURN_IF_ERROR(ParseTensor());
    GENRECALL_RETURN_IF_ERROR(PlaceTensors());
    return std::shared_ptr<const GgufFile>(std::move(file_));
  }

 private:
  template <typename... Args>
  Status DataLoss(const Args&... args) const {
    return Status(Code::kDataLoss, Cat(file_->path_, ": ", args...));
  }
  template <typename... Args>
  Status Truncated(const Args&... what) const {
    return DataLoss("truncated: ", what..., " at byte ", cursor_, " of ", end_);
  }

  uint64_t remaining() const { return end_ - cursor_; }

  template <typename T>
  bool Get(T* value) {
    if (remaining() < sizeof(T)) return false;
    memcpy(value, bytes_ + cursor_, sizeof(T));
    cursor_ += sizeof(T);
    return true;
  }

  bool GetString(std::string* value) {
    uint64_t length;
    if (!Get(&length) || length > remaining()) return false;
    value->assign(reinterpret_cast<const char*>(bytes_ + cursor_), length);
    cursor_ += length;
    return true;
  }

  // The whole file into private memory, and the checksum of all but its last 16 bytes.
  Status ReadBytes() {
    const std::string& path = file_->path_;
    Descriptor in{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (in.fd < 0) {
      const Code code = errno == ENOENT || errno == ENOTDIR ? Code::kNotFound : Code::kInternal;
      return Status(code, Cat(path, ": ", strerror(errno)));
    }
    struct stat info;
    if (::fstat(in.fd, &info) != 0) return Status(Code::kInternal, Cat(path, ": ", strerror(errno)));
    if (!S_ISREG(info.st_mode)) return Status(Code::kInternal, Cat(path, ": not a regular file"));
    size_ = static_cast<uint64_t>(info.st_size);
    uint8_t* bytes = AllocateOnHugePages(size_);
    if (bytes == nullptr)
      return Status(Code::kResourceExhausted, Cat(path, ": no memory for ", size_, " bytes"));
    file_->bytes_ = {bytes, &::free};
    bytes_ = bytes;
    const uint64_t body = size_ - std::min<uint64_t>(size_, gguf::kTrailerBytes);
    for (uint64_t done = 0; done < size_;) {
      const ssize_t got = ::read(in.fd, bytes + done, std::min<uint64_t>(kReadChunk, size_ - done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Status(Code::kInternal, Cat(path, ": ", strerror(errno)));
      if (got == 0) return DataLoss("truncated while being read: ", done, " of ", size_, " bytes");
      if (done < body) crc_ = Crc32c(crc_, bytes + done, std::min<uint64_t>(got, body - done));
      done += static_cast<uint64_t>(got);
    }
    return Status();
  }

  Status CheckTrailer(bool required) {
    const uint64_t body = size_ - std::min<uint64_t>(size_, gguf::kTrailerBytes);
    const uint8_t* trailer = bytes_ + body;
    const bool present =
        size_ >= gguf::kTrailerBytes && memcmp(trailer, gguf::kTrailerMagic, gguf::kTrailerMagicBytes) == 0;
    if (!present) {
      if (required) {
        return DataLoss("no checksum trailer in the last ", gguf::kTrailerBytes, " of ", size_,
                        " bytes: truncated, or not written by genrecall");
      }
      crc_ = Crc32c(crc_, bytes_ + body, size_ - body);
      end_ = size_;
    } else {
      uint32_t stored, padding;
      memcpy(&stored, trailer + 8, sizeof stored);
      memcpy(&padding, trailer + 12, sizeof padding);
      if (stored != crc_) return DataLoss("checksum ", crc_, ": expected ", stored, " as its trailer says");
      if (padding != 0) return DataLoss("trailer padding = ", padding, ": expected 0");
      end_ = body;
    }
    file_->checksum_ = crc_;
    return Status();
  }

  Status ParseHeader() {
    char magic[4];
    if (!Get(&magic)) return Truncated("magic");
    if (memcmp(magic, gguf::kMagic, sizeof magic) != 0) return DataLoss("not a GGUF file");
    uint32_t version;
    if (!Get(&version)) return Truncated("version");
    if (version != 2 && version != gguf::kVersion) {
      return DataLoss("GGUF version ", version, ": expected 2 or 3, little endian");
    }
    if (!Get(&num_tensors_) || !Get(&num_metadata_)) return Truncated("counts");
    if (num_tensors_ > remaining() / gguf::kLeastTensorBytes) {
      return DataLoss("truncated: ", num_tensors_, " tensors in ", size_, " bytes");
    }
    if (num_metadata_ > remaining() / gguf::kLeastMetadataBytes) {
      return DataLoss("truncated: ", num_metadata_, " metadata entries in ", size_, " bytes");
    }
    return Status();
  }

  Status ParseMetadata() {
    std::string key;
    uint32_t type;
    if (!GetString(&key)) return Truncated("metadata key");
    if (!gguf::IsUtf8(key)) return DataLoss("metadata key before byte ", cursor_, ": expected UTF-8");
    if (!Get(&type)) return Truncated("type of metadata '", key, "'");
    GgufValue value;
    GENRECALL_RETURN_IF_ERROR(ParseValue(key, static_cast<ValueType>(type), &value));
    if (!file_->metadata_.emplace(key, std::move(value)).second)
      return DataLoss("metadata '", key, "' twice");
    return Status();
  }

  Status ParseValue(const std::string& key, ValueType type, GgufValue* value) {
    if (type == ValueType::kArray) return ParseArray(key, value);
    if (type == ValueType::kString) {
      std::string text;
      if (!GetString(&text)) return Truncated("metadata '", key, "'");
      if (!gguf::IsUtf8(text)) return DataLoss("metadata '", key, "': expected UTF-8");
      *value = std::move(text);
      return Status();
    }
    if (gguf::IsFloat(type)) {
      double number;
      GENRECALL_RETURN_IF_ERROR(ParseNumber(key, type, &number));
      *value = number;
      return Status();
    }
    int64_t number;
    GENRECALL_RETURN_IF_ERROR(ParseNumber(key, type, &number));
    if (type == ValueType::kBool) {
      *value = number != 0;
    } else {
      *value = number;
    }
    return Status();
  }

  Status ParseArray(const std::string& key, GgufValue* value) {
    uint32_t raw_type;
    uint64_t count;
    if (!Get(&raw_type) || !Get(&count)) return Truncated("metadata array '", key, "'");
    const auto type = static_cast<ValueType>(raw_type);
    const uint64_t least = type == ValueType::kString ? sizeof(uint64_t) : gguf::ValueSize(type);
    if (least == 0) return DataLoss("metadata '", key, "': array of type ", raw_type, " is not supported");
    if (count > remaining() / least) return Truncated("metadata array '", key, "' of ", count, " elements");
    if (type == ValueType::kString) {
      std::vector<std::string> texts(count);  // not checked to be UTF-8: vocabularies in the wild are not
      for (std::string& text : texts) {
        if (!GetString(&text)) return Truncated("metadata array '", key, "'");
      }
      *value = std::move(texts);
      return Status();
    }
    return gguf::IsFloat(type) ? ParseNumbers<double>(key, type, count, value)
                               : ParseNumbers<int64_t>(key, type, count, value);
  }

  template <typename T>
  Status ParseNumbers(const std::string& key, ValueType type, uint64_t count, GgufValue* value) {
    std::vector<T> numbers(count);
    for (T& number : numbers) GENRECALL_RETURN_IF_ERROR(ParseNumber(key, type, &number));
    *value = std::move(numbers);
    return Status();
  }

  // Reads a number stored as S, widened to T.
  template <typename S, typename T>
  Status GetAs(const std::string& key, T* number) {
    S stored;
    if (!Get(&stored)) return Truncated("metadata '", key, "'");
    *number = static_cast<T>(stored);
    return Status();
  }

  template <typename T>
  Status ParseNumber(const std::string& key, ValueType type, T* number) {
    switch (type) {
      case ValueType::kUint8:
        return GetAs<uint8_t>(key, number);
      case ValueType::kInt8:
        return GetAs<int8_t>(key, number);
      case ValueType::kUint16:
        return GetAs<uint16_t>(key, number);
      case ValueType::kInt16:
        return GetAs<int16_t>(key, number);
      case ValueType::kUint32:
        return GetAs<uint32_t>(key, number);
      case ValueType::kInt32:
        return GetAs<int32_t>(key, number);
      case ValueType::kFloat32:
        return GetAs<float>(key, number);
      case ValueType::kInt64:
        return GetAs<int64_t>(key, number);
      case ValueType::kFloat64:
        return GetAs<double>(key, number);
      case ValueType::kBool: {
        uint8_t stored;
        if (!Get(&stored)) return Truncated("metadata '", key, "'");
        if (stored > 1) return DataLoss("metadata '", key, "' = ", int{stored}, ": expected a bool, 0 or 1");
        *number = stored;
        return Status();
      }
      case ValueType::kUint64: {
        uint64_t stored;
        if (!Get(&stored)) return Truncated("metadata '", key, "'");
        if (stored > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
          return DataLoss("metadata '", key, "' = ", stored, ": expected < 2^63");
        }
        *number = static_cast<T>(stored);
        return Status();
      }
      default:
        return DataLoss("metadata '", key, "': unknown type ", static_cast<uint32_t>(type));
    }
  }

  Status ParseAlignment() {
    const auto found = file_->metadata_.find(gguf::kAlignmentKey);
    if (found == file_->metadata_.end()) return Status();
    const int64_t* value = std::get_if<int64_t>(&found->second);
    if (value == nullptr || *value < 8 || *value > gguf::kMaxAlignment || (*value & (*value - 1)) != 0) {
      return DataLoss(gguf::kAlignmentKey, ": expected a power of two in 8..", gguf::kMaxAlignment);
    }
    alignment_ = static_cast<uint64_t>(*value);
    return Status();
  }

  Status ParseTensor() {
    std::string name;
    uint32_t rank;
    if (!GetString(&name)) return Truncated("tensor name");
    if (!gguf::IsUtf8(name)) return DataLoss("tensor name before byte ", cursor_, ": expected UTF-8");
    if (!Get(&rank)) return Truncated("tensor '", name, "'");
    if (rank > gguf::kMaxRank)
      return DataLoss("tensor '", name, "': rank ", rank, ", expected 0..", gguf::kMaxRank);
    GgufTensor tensor;
    tensor.shape.resize(rank);
    int64_t elements = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      uint64_t dim;
      if (!Get(&dim)) return Truncated("shape of tensor '", name, "'");
      // A dimension of more than the file's bytes would overflow below, except in a tensor without elements.
      if (dim > size_ || __builtin_mul_overflow(elements, static_cast<int64_t>(dim), &elements)) {
        return DataLoss("tensor '", name, "': dimension ", dim, " is larger than the file");
      }
      tensor.shape[rank - 1 - d] = static_cast<int64_t>(dim);
    }
    uint32_t type;
    uint64_t offset;
    if (!Get(&type) || !Get(&offset)) return Truncated("tensor '", name, "'");
    tensor.type = static_cast<GgufType>(type);
    const int element_size = GgufTypeSize(tensor.type);
    if (element_size == 0) {
      return Status(Code::kUnimplemented, Cat(file_->path_, ": tensor '", name, "' has ggml type ", type,
                                              ": expected one of F32, F16, BF16, I8, I16, I32, I64"));
    }
    if (__builtin_mul_overflow(elements, int64_t{element_size}, &tensor.bytes)) {
      return DataLoss("tensor '", name, "' is larger than the file");
    }
    if (offset % alignment_ != 0) {
      return DataLoss("tensor '", name, "' at offset ", offset, ": expected a multiple of ", alignment_);
    }
    offsets_.push_back(offset);
    if (!file_->tensors_.emplace(name, std::move(tensor)).second)
      return DataLoss("tensor '", name, "' twice");
    names_.push_back(std::move(name));
    return Status();
  }

  // The data section begins at the next multiple of the alignment; offsets count from there.
  Status PlaceTensors() {
    const uint64_t start = (cursor_ + alignment_ - 1) / alignment_ * alignment_;
    for (size_t i = 0; i < names_.size(); ++i) {
      GgufTensor& tensor = file_->tensors_.at(names_[i]);
      const uint64_t available = start <= end_ ? end_ - start : 0;
      if (offsets_[i] > available || static_cast<uint64_t>(tensor.bytes) > available - offsets_[i]) {
        return DataLoss("truncated: tensor '", names_[i], "' has ", tensor.bytes, " bytes at offset ",
                        offsets_[i], ", but only ", available, " bytes of data are there");
      }
      tensor.data = bytes_ + start + offsets_[i];
    }
    return Status();
  }

  std::shared_ptr<GgufFile> file_;
  const uint8_t* bytes_ = nullptr;
  uint64_t size_ = 0;    // of the file
  uint64_t end_ = 0;     // of the part before the trailer
  uint64_t cursor_ = 0;  // next byte to parse
  uint32_t crc_ = 0;
  uint64_t num_tensors_ = 0, num_metadata_ = 0;
  uint64_t alignment_ = gguf::kAlignment;
  std::vector<std::string> names_;  // of the tensors, in file order
  std::vector<uint64_t> offsets_;
};

Result<std::shared_ptr<const GgufFile>> GgufFile::Read(const std::string& path, bool require_checksum) {
  try {
    return GgufReader(path).Read(require_checksum);
  } catch (const std::bad_alloc&) {
    return Status(Code::kResourceExhausted, Cat(path, ": no memory for its metadata"));
  }
}

}  // namespace genrecall
