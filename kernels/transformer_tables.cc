// Puts each ISA's kernels into its table. (Not named transformer_ops.cc: that suffix is for TensorFlow ops.)
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/row_kernels.h"
#include "kernels/transformer_ops.h"

namespace genrecall {
namespace {

// The tables hold plain functions, so what an ISA provides is bound as template arguments.
template <const GemmKernel& kGemm, const GemmKernel& kInt8Gemm, const RowKernels& kRow,
          const AttentionKernel& kAttention>
TransformerOps MakeTable(CpuIsa isa) {
  TransformerOps ops;
  ops.isa = isa;
  ops.gemm = [](const GemmArgs& args, ThreadPool* pool) {
    RunGemm(args.w.row_sum != nullptr ? kInt8Gemm : kGemm, args, pool);
  };
  ops.rms_norm = kRow.rms_norm;
  ops.rope = kRow.rope;
  ops.kv_append = [](DType dtype, const float* k, const float* v, int64_t stride, int n, int kv_heads,
                     int head_dim, int first_position, KvPages pages) {
    KvAppend(kRow.convert, dtype, k, v, stride, n, kv_heads, head_dim, first_position, pages);
  };
  ops.convert = kRow.convert;
  ops.prefill_attention = [](const PrefillAttentionArgs& args, ThreadPool* pool) {
    RunPrefillAttention(kAttention, args, pool);
  };
  ops.beam_attention = [](const BeamAttentionArgs& args, ThreadPool* pool) {
    RunBeamAttention(kAttention, args, pool);
  };
  ops.max_sum_exp = kRow.max_sum_exp;
  ops.exp = kRow.exp;
  return ops;
}

template <const GemmKernel& kGemm>
TransformerOps MakeAvx512Table(CpuIsa isa) {
  return HasAvx512Vnni() ? MakeTable<kGemm, kVnniInt8Gemm, kAvx512RowKernels, kAvx512Attention>(isa)
                         : MakeTable<kGemm, kAvx2Int8Gemm, kAvx512RowKernels, kAvx512Attention>(isa);
}

}  // namespace

const TransformerOps* TransformerOpsFor(CpuIsa isa) {
  static const TransformerOps scalar =
      MakeTable<kScalarGemm, kScalarInt8Gemm, kScalarRowKernels, kScalarAttention>(CpuIsa::kScalar);
  static const TransformerOps avx2 =
      HasAvxVnni() ? MakeTable<kAvx2Gemm, kAvxVnniInt8Gemm, kAvx2RowKernels, kAvx2Attention>(CpuIsa::kAvx2)
                   : MakeTable<kAvx2Gemm, kAvx2Int8Gemm, kAvx2RowKernels, kAvx2Attention>(CpuIsa::kAvx2);
  static const TransformerOps avx512 = MakeAvx512Table<kAvx512Gemm>(CpuIsa::kAvx512);
  static const TransformerOps avx512_bf16 = MakeAvx512Table<kAvx512Bf16Gemm>(CpuIsa::kAvx512Bf16);
  static const TransformerOps amx =
      MakeTable<kAmxGemm, kAmxInt8Gemm, kAvx512RowKernels, kAmxAttention>(CpuIsa::kAmx);
  switch (isa) {
    case CpuIsa::kScalar:
      return &scalar;
    case CpuIsa::kAvx2:
      return &avx2;
    case CpuIsa::kAvx512:
      return &avx512;
    case CpuIsa::kAvx512Bf16:
      return &avx512_bf16;
    case CpuIsa::kAmx:
      return &amx;
  }
  return nullptr;
}

}  // namespace genrecall
