// genrecall.kernels._kernels._numeric: the transformer's kernels of any ISA, for tests and benchmarks. Arrays
// are float32 outside; a Tensor holds them as the kernels read them.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "kernels/bindings.h"
#include "kernels/cpu_isa.h"
#include "kernels/cpu_quota.h"
#include "kernels/int8_panels.h"
#include "kernels/kv_vector.h"
#include "kernels/quantize.h"
#include "kernels/transformer_ops.h"

namespace genrecall {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// A row-major array of T, 64-byte aligned.
class Tensor {
 public:
  Tensor(DType dtype, std::vector<int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
    for (int64_t d : shape_) size_ *= d;
    data_.reset(std::aligned_alloc(64, (size_ * DTypeSize(dtype) / 64 + 1) * 64));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  static Tensor Of(DType dtype, const Array<float>& array) {
    Tensor tensor(dtype, std::vector<int64_t>(array.shape(), array.shape() + array.ndim()));
    for (int64_t i = 0; i < tensor.size_; ++i) tensor.Set(i, array.data()[i]);
    return tensor;
  }

  Array<float> Numpy() const {
    Array<float> array(std::vector<py::ssize_t>(shape_.begin(), shape_.end()));
    for (int64_t i = 0; i < size_; ++i) array.mutable_data()[i] = Get(i);
    return array;
  }

  DType dtype() const { return dtype_; }
  int64_t dim(size_t d) const { return shape_.at(d); }
  size_t rank() const { return shape_.size(); }
  void* data() const { return data_.get(); }

 private:
  void Set(int64_t i, float x) {
    if (dtype_ == DType::kF32) {
      static_cast<float*>(data_.get())[i] = x;
    } else {
      static_cast<bf16*>(data_.get())[i] = ToBf16(x);
    }
  }
  float Get(int64_t i) const {
    return dtype_ == DType::kF32 ? static_cast<const float*>(data_.get())[i]
                                 : ToFloat(static_cast<const bf16*>(data_.get())[i]);
  }

  DType dtype_;
  std::vector<int64_t> shape_;
  int64_t size_ = 1;
  std::unique_ptr<void, Free> data_;
};

void Require(bool condition, const char* what) {
  if (!condition) throw py::value_error(what);
}

DType ParseDType(const std::string& name) {
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  throw py::value_error("dtype = '" + name + "': expected float32|bfloat16");
}

const TransformerOps& Table(const std::string& name) {
  const CpuIsa isa = ValueOrThrow(ParseCpuIsa(name));
  if (isa > DetectCpuIsa()) throw std::runtime_error("this machine has no " + name);
  const TransformerOps* ops = TransformerOpsFor(isa);
  if (ops == nullptr) throw std::runtime_error("this build has no " + name);
  return *ops;
}

Epilogue ParseEpilogue(const std::string& name) {
  if (name == "store") return Epilogue::kStore;
  if (name == "accumulate") return Epilogue::kAccumulate;
  if (name == "swiglu") return Epilogue::kSwiGlu;
  throw py::value_error("epilogue = '" + name + "': expected store|accumulate|swiglu");
}

// int8 weights [rows, k] and their scales [rows]; with quantize_inputs in panels (int8_panels.h) of `parts`
// parts.
class Int8Weights {
 public:
  Int8Weights(const Array<int8_t>& w, const Array<float>& scale, bool quantize_inputs, int parts)
      : scale_(scale.data(), scale.data() + scale.size()) {
    Require(w.ndim() == 2 && scale.size() == w.shape(0), "w, scale: expected [rows, k] and [rows]");
    Require((parts == 1 || parts == 2) && w.shape(0) % parts == 0,
            "parts: expected 1, or 2 for an even number of rows");
    matrix_ = {DType::kI8, nullptr, w.shape(0), w.shape(1), scale_.data()};
    const int64_t bytes =
        quantize_inputs ? parts * Int8PartBytes(matrix_.rows, matrix_.cols, parts) : int64_t{w.size()};
    data_.reset(static_cast<int8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    matrix_.data = data_.get();
    if (!quantize_inputs) {
      std::copy(w.data(), w.data() + w.size(), data_.get());
      return;
    }
    std::vector<const int8_t*> rows;
    for (int64_t o = 0; o < matrix_.rows; ++o) rows.push_back(w.data() + o * matrix_.cols);
    row_sum_.resize(rows.size());
    PackInt8Panels(rows, matrix_.cols, parts, data_.get(), row_sum_.data());
    matrix_.row_sum = row_sum_.data();
    matrix_.parts = parts;
  }
  const WeightMatrix& matrix() const { return matrix_; }

 private:
  std::unique_ptr<int8_t, Free> data_;
  std::vector<float> scale_;
  std::vector<int32_t> row_sum_;
  WeightMatrix matrix_;
};

// The whole arguments of a gemm; `y` is written in place ([n, rows]), swiglu returns a new Tensor instead.
py::object Gemm(const std::string& isa, const Tensor& x, const WeightMatrix& w,
                std::optional<Array<float>> bias, const std::string& epilogue,
                std::optional<py::array_t<float>> y, ThreadPool* pool) {
  const TransformerOps& ops = Table(isa);
  Require(w.cols > 0, "w: expected 1 column or more");
  Require(x.rank() == 2 && x.dim(1) == w.cols && (w.dtype == DType::kI8 || x.dtype() == w.dtype),
          "x, w: expected [n, k] and [rows, k] of one dtype, or int8 w");
  GemmArgs args;
  args.w = w;
  args.x_dtype = x.dtype();
  args.x = x.data();
  args.n = x.dim(0);
  Require(!bias || bias->size() == w.rows, "bias: expected [rows]");
  if (bias) args.bias = bias->data();
  args.epilogue = ParseEpilogue(epilogue);
  Require(w.row_sum == nullptr || w.parts == (args.epilogue == Epilogue::kSwiGlu ? 2 : 1),
          "w: expected int8 weights in 2 parts for swiglu, else in 1");
  if (args.epilogue == Epilogue::kSwiGlu) {
    Tensor out(x.dtype(), {x.dim(0), w.rows / 2});
    args.y_t = out.data();
    {
      py::gil_scoped_release release;
      ops.gemm(args, pool);
    }
    return py::cast(std::move(out));
  }
  if (!y) y = py::array_t<float>({x.dim(0), w.rows});
  Require(y->ndim() == 2 && y->shape(0) == x.dim(0) && y->shape(1) == w.rows, "y: expected [n, rows]");
  args.y = y->mutable_data();
  args.ldy = w.rows;
  {
    py::gil_scoped_release release;
    ops.gemm(args, pool);
  }
  return std::move(*y);
}

py::object FloatGemm(const std::string& isa, const Tensor& x, const Tensor& w,
                     std::optional<Array<float>> bias, const std::string& epilogue,
                     std::optional<py::array_t<float>> y, ThreadPool* pool) {
  Require(w.rank() == 2, "w: expected [rows, k]");
  return Gemm(isa, x, {w.dtype(), w.data(), w.dim(0), w.dim(1)}, std::move(bias), epilogue, std::move(y),
              pool);
}

py::object Int8Gemm(const std::string& isa, const Tensor& x, const Int8Weights& w,
                    std::optional<Array<float>> bias, const std::string& epilogue,
                    std::optional<py::array_t<float>> y, ThreadPool* pool) {
  return Gemm(isa, x, w.matrix(), std::move(bias), epilogue, std::move(y), pool);
}

// A sequence's pages, filled by kv_append; what is not written holds NaN, so that reading it shows.
class Pages {
 public:
  Pages(const TransformerOps& ops, DType dtype, const Array<float>& k, const Array<float>& v) {
    const int tokens = static_cast<int>(k.shape(0)), heads = static_cast<int>(k.shape(1));
    const int dim = static_cast<int>(k.shape(2));
    const int64_t bytes = int64_t{heads} * kPageTokens * KvVectorBytes(dtype, dim);
    for (int first = 0; first < tokens; first += kPageTokens) {
      for (auto* pages : {&k_, &v_}) pages->emplace_back(bytes, uint8_t{0xff});  // NaN in every dtype
      k_pointers_.push_back(k_.back().data());
      v_pointers_.push_back(v_.back().data());
    }
    ops.kv_append(dtype, k.data(), v.data(), int64_t{heads} * dim, tokens, heads, dim, 0, view());
  }
  KvPages view() const { return {k_pointers_.data(), v_pointers_.data()}; }

 private:
  std::vector<std::vector<uint8_t>> k_, v_;
  std::vector<void*> k_pointers_, v_pointers_;
};

// [.., head_dim] as the vectors of a tail.
std::vector<uint8_t> Vectors(const TransformerOps& ops, DType dtype, const Array<float>& x) {
  const int dim = static_cast<int>(x.shape(x.ndim() - 1));
  const int64_t n = x.size() / dim, bytes = KvVectorBytes(dtype, dim);
  std::vector<uint8_t> vectors(n * bytes);
  for (int64_t i = 0; i < n; ++i) ops.convert(dtype, x.data() + i * dim, dim, vectors.data() + i * bytes);
  return vectors;
}

// q [n, q_heads, d] at positions first_position..; k, v [first_position + n, kv_heads, d].
Array<float> PrefillAttention(const std::string& isa, const std::string& dtype, const Array<float>& q,
                              const Array<float>& k, const Array<float>& v, int first_position, float scale,
                              ThreadPool* pool, bool int8_kv) {
  const TransformerOps& ops = Table(isa);
  Require(q.ndim() == 3 && k.ndim() == 3 && v.ndim() == 3, "q, k, v: expected rank 3");
  Require(k.shape(0) >= first_position + q.shape(0), "k: expected first_position + n rows");
  PrefillAttentionArgs args;
  args.dtype = ParseDType(dtype);
  args.kv_dtype = int8_kv ? DType::kI8 : args.dtype;
  args.q_heads = static_cast<int>(q.shape(1));
  args.kv_heads = static_cast<int>(k.shape(1));
  args.head_dim = static_cast<int>(q.shape(2));
  args.scale = scale;
  args.q = q.data();
  args.q_stride = q.shape(1) * q.shape(2);
  args.n = static_cast<int>(q.shape(0));
  args.first_position = first_position;
  const Pages pages(ops, args.kv_dtype, k, v);
  args.kv = pages.view();
  const Tensor out(args.dtype, {q.shape(0), q.shape(1) * q.shape(2)});
  args.out = out.data();
  {
    py::gil_scoped_release release;
    ops.prefill_attention(args, pool);
  }
  return out.Numpy();
}

// q [beams, q_heads, d]; k, v [prompt, kv_heads, d]; tail_k, tail_v [tail, rows, kv_heads, d]; ancestor
// [tail, beams].
Array<float> BeamAttention(const std::string& isa, const std::string& dtype, const Array<float>& q,
                           const Array<float>& k, const Array<float>& v, const Array<float>& tail_k,
                           const Array<float>& tail_v, const Array<int32_t>& ancestor, float scale,
                           ThreadPool* pool, bool int8_kv) {
  const TransformerOps& ops = Table(isa);
  Require(q.ndim() == 3 && k.ndim() == 3 && v.ndim() == 3, "q, k, v: expected rank 3");
  Require(tail_k.ndim() == 4 && tail_v.ndim() == 4 && ancestor.ndim() == 2, "tails: expected rank 4, 4, 2");
  BeamAttentionArgs args;
  args.dtype = ParseDType(dtype);
  args.kv_dtype = int8_kv ? DType::kI8 : args.dtype;
  args.q_heads = static_cast<int>(q.shape(1));
  args.kv_heads = static_cast<int>(k.shape(1));
  args.head_dim = static_cast<int>(q.shape(2));
  args.scale = scale;
  args.q = q.data();
  args.q_stride = q.shape(1) * q.shape(2);
  args.beams = static_cast<int>(q.shape(0));
  args.prompt_tokens = static_cast<int>(k.shape(0));
  const Pages pages(ops, args.kv_dtype, k, v);
  args.prompt = pages.view();
  args.tail_tokens = static_cast<int>(tail_k.shape(0));
  const std::vector<uint8_t> own_k = Vectors(ops, args.kv_dtype, tail_k);
  const std::vector<uint8_t> own_v = Vectors(ops, args.kv_dtype, tail_v);
  const int64_t bytes = static_cast<int64_t>(own_k.size()) / std::max<int64_t>(tail_k.shape(0), 1);
  std::vector<const void*> k_rows, v_rows;
  for (int j = 0; j < args.tail_tokens; ++j) {
    k_rows.push_back(own_k.data() + j * bytes);
    v_rows.push_back(own_v.data() + j * bytes);
  }
  args.tail_k = k_rows.data();
  args.tail_v = v_rows.data();
  args.ancestor = ancestor.data();
  const Tensor out(args.dtype, {q.shape(0), q.shape(1) * q.shape(2)});
  args.out = out.data();
  {
    py::gil_scoped_release release;
    ops.beam_attention(args, pool);
  }
  return out.Numpy();
}

Array<float> RmsNorm(const std::string& isa, const std::string& dtype, const Array<float>& x,
                     const Array<float>& weight, float eps) {
  const Tensor y(ParseDType(dtype), {x.shape(0), x.shape(1)});
  Require(weight.size() == x.shape(1), "weight: expected [dim]");
  Table(isa).rms_norm(y.dtype(), x.data(), weight.data(), eps, x.shape(0), x.shape(1), y.data());
  return y.Numpy();
}

// x [n, heads, d] -> rotated; cos_sin [positions, d].
Array<float> Rope(const std::string& isa, const Array<float>& x, const Array<int32_t>& position,
                  const Array<float>& cos_sin) {
  Require(x.ndim() == 3 && position.size() == x.shape(0) && cos_sin.ndim() == 2, "x: expected rank 3");
  Array<float> y(std::vector<py::ssize_t>(x.shape(), x.shape() + 3));
  std::copy(x.data(), x.data() + x.size(), y.mutable_data());
  Table(isa).rope(y.mutable_data(), x.shape(1) * x.shape(2), x.shape(0), static_cast<int>(x.shape(1)),
                  static_cast<int>(x.shape(2)), position.data(), cos_sin.data());
  return y;
}

Array<float> Convert(const std::string& isa, const std::string& dtype, const Array<float>& x) {
  const Tensor y(ParseDType(dtype), {x.size()});
  Table(isa).convert(y.dtype(), x.data(), x.size(), y.data());
  return y.Numpy();
}

py::tuple MaxSumExp(const std::string& isa, const Array<float>& x) {
  Array<float> m(x.shape(0)), s(x.shape(0));
  Table(isa).max_sum_exp(x.data(), x.shape(0), x.shape(1), x.shape(1), m.mutable_data(), s.mutable_data());
  return py::make_tuple(m, s);
}

Array<float> Exp(const std::string& isa, const Array<float>& x) {
  Array<float> y(x.size());
  Table(isa).exp(x.data(), x.size(), y.mutable_data());
  return y;
}

// How often ParallelFor visited each of [0, n), in `repeats` calls.
Array<int32_t> Visits(ThreadPool* pool, int64_t n, int64_t grain, int repeats) {
  Array<int32_t> visits(n);
  int32_t* count = visits.mutable_data();
  std::fill(count, count + n, 0);
  py::gil_scoped_release release;
  for (int i = 0; i < repeats; ++i) {
    pool->ParallelFor(n, grain, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) ++count[j];
    });
  }
  return visits;
}

}  // namespace

void BindNumeric(py::module_& parent) {
  py::module_ m =
      parent.def_submodule("_numeric", "The transformer's kernels, per ISA: for tests and benchmarks.");
  m.def("detected_isa", [] { return CpuIsaName(DetectCpuIsa()); });
  m.def("active_isa", [] { return CpuIsaName(ValueOrThrow(ActiveCpuIsa())); });
  m.def("default_num_threads", &DefaultNumThreads);
  m.def("cpu_quota", &CpuQuota, py::arg("folder"));
  m.attr("page_tokens") = kPageTokens;

  py::class_<Tensor>(m, "Tensor")
      .def(py::init([](const Array<float>& x, const std::string& dtype) {
             return Tensor::Of(ParseDType(dtype), x);
           }),
           py::arg("array"), py::arg("dtype"))
      .def("numpy", &Tensor::Numpy);
  py::class_<ThreadPool>(m, "ThreadPool")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads)
      .def("visits", &Visits, py::arg("n"), py::arg("grain"), py::arg("repeats") = 1);

  const auto no_pool = py::arg("pool").none(true) = static_cast<ThreadPool*>(nullptr);
  py::class_<Int8Weights>(m, "Int8Weights")
      .def(py::init<const Array<int8_t>&, const Array<float>&, bool, int>(), py::arg("w"), py::arg("scale"),
           py::arg("quantize_inputs"), py::arg("parts") = 1);
  const auto def_gemm = [&](auto function) {
    m.def("gemm", function, py::arg("isa"), py::arg("x"), py::arg("w"), py::arg("bias") = py::none(),
          py::arg("epilogue") = "store", py::arg("y") = py::none(), no_pool);
  };
  def_gemm(&FloatGemm);
  def_gemm(&Int8Gemm);
  m.def("prefill_attention", &PrefillAttention, py::arg("isa"), py::arg("dtype"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("first_position"), py::arg("scale"), no_pool, py::arg("int8_kv") = false);
  m.def("beam_attention", &BeamAttention, py::arg("isa"), py::arg("dtype"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("tail_k"), py::arg("tail_v"), py::arg("ancestor"), py::arg("scale"), no_pool,
        py::arg("int8_kv") = false);
  m.def("rms_norm", &RmsNorm, py::arg("isa"), py::arg("dtype"), py::arg("x"), py::arg("weight"),
        py::arg("eps"));
  m.def("rope", &Rope, py::arg("isa"), py::arg("x"), py::arg("position"), py::arg("cos_sin"));
  m.def("convert", &Convert, py::arg("isa"), py::arg("dtype"), py::arg("x"));
  m.def("max_sum_exp", &MaxSumExp, py::arg("isa"), py::arg("x"));
  m.def("exp", &Exp, py::arg("isa"), py::arg("x"));
}

}  // namespace genrecall
