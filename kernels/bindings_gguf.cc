// Python door of crc32c and GGUF files.
#include "kernels/bindings.h"
#include "kernels/crc32c.h"
#include "kernels/gguf.h"

namespace genrecall {

namespace {

template <typename T>
T Cast(const std::string& key, const py::handle& value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::value_error(
        Cat("metadata '", key, "' has value ", std::string(py::str(value)), ": expected one of 64 bits"));
  }
}

template <typename T>
std::vector<T> Elements(const std::string& key, const py::sequence& values) {
  std::vector<T> out;
  for (const py::handle& v : values) out.push_back(Cast<T>(key, v));
  return out;
}

GgufValue ToGgufValue(const std::string& key, py::object value) {
  if (py::hasattr(value, "tolist")) value = value.attr("tolist")();  // NumPy arrays and scalars
  if (py::isinstance<py::bool_>(value)) return value.cast<bool>();
  if (py::isinstance<py::int_>(value)) return Cast<int64_t>(key, value);
  if (py::isinstance<py::float_>(value)) return Cast<double>(key, value);
  if (py::isinstance<py::str>(value)) return value.cast<std::string>();
  if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
    const py::sequence items(value);
    bool ints = true, floats = true, strings = true;
    for (const py::handle& v : items) {
      const bool is_int = py::isinstance<py::int_>(v) && !py::isinstance<py::bool_>(v);
      ints = ints && is_int;
      floats = floats && (is_int || py::isinstance<py::float_>(v));
      strings = strings && py::isinstance<py::str>(v);
    }
    if (ints) return Elements<int64_t>(key, items);
    if (floats) return Elements<double>(key, items);
    if (strings) return Elements<std::string>(key, items);
  }
  throw py::value_error(Cat("metadata '", key, "' is ", std::string(py::str(py::type::of(value))),
                            ": expected bool, int, float, str, or a list of int, of float or of str"));
}

GgufType TypeOf(const std::string& name, const py::array& array, const std::string& type_name) {
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  if (type_name == "BF16" || type_name == "F16") {
    if (size == 2) return type_name == "BF16" ? GgufType::kBF16 : GgufType::kF16;
    throw py::value_error(Cat("tensor '", name, "': ", type_name, " needs 2-byte elements"));
  }
  if (!type_name.empty()) {
    throw py::value_error(Cat("tensor '", name, "': type '", type_name, "', expected BF16 or F16"));
  }
  if (kind == 'f' && size == 4) return GgufType::kF32;
  if (kind == 'f' && size == 2) return GgufType::kF16;
  if (kind == 'i' || kind == 'u') {
    if (size == 1) return GgufType::kI8;
    if (size == 2) return GgufType::kI16;
    if (size == 4) return GgufType::kI32;
    if (size == 8) return GgufType::kI64;
  }
  throw py::value_error(Cat("tensor '", name, "' has dtype ", std::string(py::str(array.dtype())),
                            ": expected float32, float16 or integers"));
}

void WriteGguf(const py::object& path, const py::dict& metadata, const py::dict& tensors,
               const py::dict& types) {
  GgufWriter writer;
  for (const auto& [key, value] : metadata) {
    const std::string name = key.cast<std::string>();
    writer.Set(name, ToGgufValue(name, py::reinterpret_borrow<py::object>(value)));
  }
  for (const auto& [key, value] : types) {
    if (!tensors.contains(key)) {
      throw py::value_error(Cat("types names '", std::string(py::str(key)), "', which is no tensor"));
    }
  }
  std::vector<py::array> kept;  // the writer borrows their memory
  for (const auto& [key, value] : tensors) {
    const std::string name = key.cast<std::string>();
    const py::array array = py::array::ensure(value, py::array::c_style);
    if (!array) throw py::value_error(Cat("tensor '", name, "': expected an array"));
    const std::string type_name = types.contains(key) ? types[key].cast<std::string>() : "";
    writer.Add(name, TypeOf(name, array, type_name), {array.shape(), array.shape() + array.ndim()},
               array.data());
    kept.push_back(array);
  }
  const std::string target = py::module_::import("os").attr("fspath")(path).cast<std::string>();
  ThrowIfError(WithoutGil([&] { return writer.Write(target); }));
}

py::dtype NumpyType(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return py::dtype::of<float>();
    case GgufType::kF16:
      return py::dtype("float16");
    case GgufType::kI8:
      return py::dtype::of<int8_t>();
    case GgufType::kI16:
      return py::dtype::of<int16_t>();
    case GgufType::kI32:
      return py::dtype::of<int32_t>();
    case GgufType::kI64:
      return py::dtype::of<int64_t>();
    case GgufType::kBF16:
      return py::dtype::of<uint16_t>();
  }
  throw std::logic_error("unreachable: the reader refuses other types");
}

template <typename T>
py::object ToPython(const T& value) {
  return py::cast(value);
}

// Strings of an array may hold any bytes.
py::object ToPython(const std::vector<std::string>& texts) {
  py::list out;
  for (const std::string& text : texts) {
    out.append(py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape")));
  }
  return out;
}

py::dict ReadGguf(const py::object& path, bool require_checksum) {
  const std::string source = py::module_::import("os").attr("fspath")(path).cast<std::string>();
  const std::shared_ptr<const GgufFile> file =
      ValueOrThrow(WithoutGil([&] { return GgufFile::Read(source, require_checksum); }));
  const py::capsule owner(new std::shared_ptr<const GgufFile>(file),
                          [](void* p) { delete static_cast<std::shared_ptr<const GgufFile>*>(p); });
  py::dict metadata, tensors, types;
  for (const auto& [key, value] : file->metadata()) {
    metadata[py::str(key)] = std::visit([](const auto& v) { return ToPython(v); }, value);
  }
  for (const auto& [name, tensor] : file->tensors()) {
    py::array array(NumpyType(tensor.type), tensor.shape, tensor.data, owner);
    array.attr("setflags")(false);
    tensors[py::str(name)] = array;
    types[py::str(name)] = GgufTypeName(tensor.type);
  }
  py::dict out;
  out["metadata"] = metadata;
  out["tensors"] = tensors;
  out["types"] = types;
  out["checksum"] = file->checksum();
  return out;
}

}  // namespace

void BindGguf(py::module_& m) {
  m.def(
      "crc32c",
      [](const py::buffer& data, bool scalar) {
        const py::buffer_info info = data.request();
        const size_t size = static_cast<size_t>(info.size * info.itemsize);
        return scalar ? Crc32cScalar(0, info.ptr, size) : Crc32c(0, info.ptr, size);
      },
      py::arg("data"), py::arg("scalar") = false,
      "CRC-32C of contiguous bytes; scalar: by the table, whatever the CPU has.");
  m.def("write_gguf", &WriteGguf, py::arg("path"), py::arg("metadata"), py::arg("tensors"),
        py::arg("types") = py::dict(),
        R"(Writes a GGUF v3 file with the project's checksum trailer; beside `path` first, then renamed.

Args:
  path: target file.
  metadata: dict of str to bool, int, float, str, or a list (or array) of int, of float or of str. Integers are written as
    UINT32 when they fit, else INT64; floats as FLOAT32.
  tensors: dict of str to array: float32, float16, or integers of 1, 2, 4 or 8 bytes.
  types: for tensors whose bits are given as 2-byte integers: "BF16" or "F16", by name.

Raises:
  ValueError: a value or dtype that GGUF cannot hold. FileNotFoundError: no such folder.)");
  m.def("read_gguf", &ReadGguf, py::arg("path"), py::arg("require_checksum") = true,
        R"(Reads a GGUF file whole and checks it.

Args:
  path: the file.
  require_checksum: refuse a file without the project's checksum trailer. A wrong trailer is always refused.

Returns:
  dict: metadata (dict), tensors (dict of read-only arrays; BF16 as uint16 bits), types (dict of "F32", "BF16", ...),
  checksum (int).

Raises:
  FileNotFoundError; DataLossError: truncated or corrupt; RuntimeError: a tensor type not read here.)");
}

}  // namespace genrecall
