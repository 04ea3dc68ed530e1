// Writing GGUF: the same bytes go either to a file or to the checksum alone.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <set>

#include "kernels/crc32c.h"
#include "kernels/gguf.h"
#include "kernels/gguf_format.h"

namespace genrecall {

namespace {

using gguf::ValueType;

uint64_t AlignUp(uint64_t n) { return (n + gguf::kAlignment - 1) / gguf::kAlignment * gguf::kAlignment; }

uint64_t TensorBytes(GgufType type, const std::vector<int64_t>& shape) {
  uint64_t bytes = static_cast<uint64_t>(GgufTypeSize(type));
  for (int64_t dim : shape) bytes *= static_cast<uint64_t>(dim);
  return bytes;
}

template <typename T>
void Put(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof value);
}

void PutString(std::string* out, const std::string& text) {
  Put<uint64_t>(out, text.size());
  out->append(text);
}

void PutType(std::string* out, ValueType type) { Put(out, static_cast<uint32_t>(type)); }

void PutArrayHeader(std::string* out, ValueType type, uint64_t count) {
  PutType(out, ValueType::kArray);
  PutType(out, type);
  Put(out, count);
}

struct PutValue {
  std::string* out;

  void operator()(bool value) const {
    PutType(out, ValueType::kBool);
    Put<uint8_t>(out, value ? 1 : 0);
  }
  void operator()(int64_t value) const {
    if (value >= 0 && value <= std::numeric_limits<uint32_t>::max()) {
      PutType(out, ValueType::kUint32);
      Put(out, static_cast<uint32_t>(value));
    } else {
      PutType(out, ValueType::kInt64);
      Put(out, value);
    }
  }
  void operator()(double value) const {
    PutType(out, ValueType::kFloat32);
    Put(out, static_cast<float>(value));
  }
  void operator()(const std::string& value) const {
    PutType(out, ValueType::kString);
    PutString(out, value);
  }
  void operator()(const std::vector<int64_t>& values) const {
    const bool narrow = std::all_of(values.begin(), values.end(), [](int64_t v) {
      return v >= std::numeric_limits<int32_t>::min() && v <= std::numeric_limits<int32_t>::max();
    });
    PutArrayHeader(out, narrow ? ValueType::kInt32 : ValueType::kInt64, values.size());
    for (int64_t v : values) narrow ? Put(out, static_cast<int32_t>(v)) : Put(out, v);
  }
  void operator()(const std::vector<double>& values) const {
    PutArrayHeader(out, ValueType::kFloat32, values.size());
    for (double v : values) Put(out, static_cast<float>(v));
  }
  void operator()(const std::vector<std::string>& values) const {
    PutArrayHeader(out, ValueType::kString, values.size());
    for (const std::string& v : values) PutString(out, v);
  }
};

// Where the bytes of a file go, piece by piece.
using Sink = std::function<Status(const void* data, uint64_t size)>;

Status ErrnoStatus(const std::string& path, const char* what) {
  const int error = errno;
  const Code code = error == ENOENT || error == ENOTDIR ? Code::kNotFound : Code::kInternal;
  return Status(code, Cat(path, ": cannot ", what, ": ", strerror(error)));
}

Status WriteAll(int fd, const std::string& path, const void* data, uint64_t size) {
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t wrote = ::write(fd, p, std::min<uint64_t>(size, uint64_t{1} << 30));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(path, "write");
    p += wrote;
    size -= static_cast<uint64_t>(wrote);
  }
  return Status();
}

// A rename is durable only once the folder is on disk.
Status SyncFolder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(folder, "open");
  const int failed = ::fsync(fd);
  const Status status = failed != 0 && errno != EINVAL ? ErrnoStatus(folder, "sync") : Status();
  ::close(fd);
  return status;
}

// Runs `produce` on a new file beside `path` and renames it to `path` when all went well.
Status WriteBesideAndRename(const std::string& path, const std::function<Status(int fd)>& produce) {
  static std::atomic<unsigned> counter{0};
  const std::string beside = Cat(path, ".tmp-", ::getpid(), "-", counter++);
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(beside, "create");
  Status status = produce(fd);
  if (status.ok() && ::fsync(fd) != 0) status = ErrnoStatus(beside, "sync");
  if (::close(fd) != 0 && status.ok()) status = ErrnoStatus(beside, "close");
  if (status.ok() && ::rename(beside.c_str(), path.c_str()) != 0) status = ErrnoStatus(path, "rename to");
  if (!status.ok()) {
    ::unlink(beside.c_str());
    return status;
  }
  return SyncFolder(path);
}

}  // namespace

void GgufWriter::Add(const std::string& name, GgufType type, std::vector<int64_t> shape, const void* data) {
  entries_.push_back({name, type, std::move(shape), data});
}

Status GgufWriter::Validate() const {
  std::set<std::string> names;
  for (const Entry& e : entries_) {
    if (!gguf::IsUtf8(e.name)) return InvalidArgument("tensor ", names.size(), "'s name: expected UTF-8");
    if (!names.insert(e.name).second) return InvalidArgument("tensor '", e.name, "' was added twice");
    if (e.shape.size() > gguf::kMaxRank) {
      return InvalidArgument("tensor '", e.name, "' has rank ", e.shape.size(), ": expected 0..",
                             gguf::kMaxRank);
    }
    if (GgufTypeSize(e.type) == 0) return InvalidArgument("tensor '", e.name, "': unknown type");
    for (int64_t dim : e.shape) {
      if (dim < 0) return InvalidArgument("tensor '", e.name, "' has dimension ", dim, ": expected >= 0");
    }
  }
  for (const auto& [key, value] : metadata_) {
    if (!gguf::IsUtf8(key)) return InvalidArgument("metadata key: expected UTF-8");
    const std::string* text = std::get_if<std::string>(&value);
    if (text != nullptr && !gguf::IsUtf8(*text)) {
      return InvalidArgument("metadata '", key, "': expected UTF-8 without NUL");
    }
  }
  if (metadata_.count(gguf::kAlignmentKey) > 0) {
    return InvalidArgument("metadata '", gguf::kAlignmentKey, "' is fixed at ", gguf::kAlignment,
                           ": do not set it");
  }
  return Status();
}

std::string GgufWriter::Header() const {
  std::string out(gguf::kMagic, 4);
  Put(&out, gguf::kVersion);
  Put<uint64_t>(&out, entries_.size());
  Put<uint64_t>(&out, metadata_.size());
  for (const auto& [key, value] : metadata_) {
    PutString(&out, key);
    std::visit(PutValue{&out}, value);
  }
  uint64_t offset = 0;
  for (const Entry& e : entries_) {
    PutString(&out, e.name);
    Put(&out, static_cast<uint32_t>(e.shape.size()));
    for (auto dim = e.shape.rbegin(); dim != e.shape.rend(); ++dim) Put(&out, static_cast<uint64_t>(*dim));
    Put(&out, static_cast<uint32_t>(e.type));
    Put(&out, offset);
    offset += AlignUp(TensorBytes(e.type, e.shape));
  }
  out.resize(AlignUp(out.size()), '\0');
  return out;
}

Result<uint32_t> GgufWriter::Emit(const Sink& sink) const {
  GENRECALL_RETURN_IF_ERROR(Validate());
  static constexpr char kZeros[gguf::kAlignment] = {};
  uint32_t crc = 0;
  const auto put = [&](const void* data, uint64_t size) {
    // In pieces, so that what is written is still in cache when it is hashed.
    constexpr uint64_t kPiece = uint64_t{1} << 20;
    for (uint64_t done = 0; done < size; done += kPiece) {
      const char* piece = static_cast<const char*>(data) + done;
      const uint64_t bytes = std::min(kPiece, size - done);
      crc = Crc32c(crc, piece, bytes);
      if (sink) GENRECALL_RETURN_IF_ERROR(sink(piece, bytes));
    }
    return Status();
  };
  const std::string header = Header();
  GENRECALL_RETURN_IF_ERROR(put(header.data(), header.size()));
  for (const Entry& e : entries_) {
    const uint64_t bytes = TensorBytes(e.type, e.shape);
    GENRECALL_RETURN_IF_ERROR(put(e.data, bytes));
    GENRECALL_RETURN_IF_ERROR(put(kZeros, AlignUp(bytes) - bytes));
  }
  return crc;
}

Result<uint32_t> GgufWriter::Checksum() const { return Emit(nullptr); }

Status GgufWriter::Write(const std::string& path) const {
  return WriteBesideAndRename(path, [&](int fd) {
    const Result<uint32_t> crc =
        Emit([&](const void* data, uint64_t size) { return WriteAll(fd, path, data, size); });
    GENRECALL_RETURN_IF_ERROR(crc.status());
    std::string trailer(gguf::kTrailerMagic, gguf::kTrailerMagicBytes);
    Put(&trailer, crc.value());
    trailer.resize(gguf::kTrailerBytes, '\0');
    return WriteAll(fd, path, trailer.data(), trailer.size());
  });
}

}  // namespace genrecall
