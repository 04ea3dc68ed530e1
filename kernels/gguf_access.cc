// Typed access to the metadata and tensors of a GgufFile; the rule for its texts.
#include "kernels/gguf.h"
#include "kernels/gguf_format.h"

namespace genrecall {

bool gguf::IsUtf8(const std::string& text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* end = p + text.size();
  while (p < end) {
    const uint8_t lead = *p++;
    if (lead > 0 && lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || end - p < more) return false;
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;  // no overlong forms
    const uint8_t high = lead == 0xed   ? 0x9f
                         : lead == 0xf4 ? 0x8f
                                        : 0xbf;  // no surrogates, nothing above U+10FFFF
    if (*p < low || *p > high) return false;
    for (int i = 1; i < more; ++i) {
      if ((p[i] & 0xc0) != 0x80) return false;
    }
    p += more;
  }
  return true;
}

namespace {

template <typename T>
Result<T> Get(const GgufFile& file, const std::string& key, const char* expected) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    return Status(Code::kDataLoss,
                  Cat(file.path(), ": metadata '", key, "' is missing: expected ", expected));
  }
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) {
    return Status(Code::kDataLoss,
                  Cat(file.path(), ": metadata '", key, "' has another type: expected ", expected));
  }
  return *value;
}

bool IsEmptyArray(const GgufFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return false;
  const auto* ints = std::get_if<std::vector<int64_t>>(&found->second);
  const auto* floats = std::get_if<std::vector<double>>(&found->second);
  const auto* strings = std::get_if<std::vector<std::string>>(&found->second);
  return (ints && ints->empty()) || (floats && floats->empty()) || (strings && strings->empty());
}

}  // namespace

Result<int64_t> GgufFile::Int(const std::string& key) const { return Get<int64_t>(*this, key, "an integer"); }

Result<double> GgufFile::Float(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found != metadata_.end()) {
    if (const int64_t* value = std::get_if<int64_t>(&found->second)) return static_cast<double>(*value);
  }
  return Get<double>(*this, key, "a number");
}

Result<std::string> GgufFile::String(const std::string& key) const {
  return Get<std::string>(*this, key, "a string");
}

Result<std::vector<int64_t>> GgufFile::Ints(const std::string& key) const {
  if (IsEmptyArray(*this, key)) return std::vector<int64_t>();
  return Get<std::vector<int64_t>>(*this, key, "an array of integers");
}

Result<std::vector<std::string>> GgufFile::Strings(const std::string& key) const {
  if (IsEmptyArray(*this, key)) return std::vector<std::string>();
  return Get<std::vector<std::string>>(*this, key, "an array of strings");
}

Result<GgufTensor> GgufFile::Tensor(const std::string& name, GgufType type) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return Status(Code::kDataLoss, Cat(path_, ": tensor '", name, "' is missing"));
  if (found->second.type != type) {
    return Status(Code::kDataLoss, Cat(path_, ": tensor '", name, "' has type ",
                                       GgufTypeName(found->second.type), ": expected ", GgufTypeName(type)));
  }
  return found->second;
}

}  // namespace genrecall
