// Puts each ISA's kernels into its table.
#include "kernels/transformer_ops.h"

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/row_ops.h"

namespace genrecall {
namespace {

// The tables hold plain functions, so what an ISA provides is bound as template arguments.
template <const GemmKernel& kGemm, const RowOps& kRowOps, const AttentionKernel& kAttention>
TransformerOps MakeTable(CpuIsa isa) {
  TransformerOps ops;
  ops.isa = isa;
  ops.gemm = [](const GemmArgs& args, ThreadPool* pool) { RunGemm(kGemm, args, pool); };
  ops.rms_norm = kRowOps.rms_norm;
  ops.rope = kRowOps.rope;
  ops.kv_append = KvAppend;
  ops.convert = kRowOps.convert;
  ops.prefill_attention = [](const PrefillAttentionArgs& args, ThreadPool* pool) {
    RunPrefillAttention(kAttention, args, pool);
  };
  ops.beam_attention = [](const BeamAttentionArgs& args, ThreadPool* pool) {
    RunBeamAttention(kAttention, args, pool);
  };
  ops.max_sum_exp = kRowOps.max_sum_exp;
  return ops;
}

}  // namespace

const TransformerOps* TransformerOpsFor(CpuIsa isa) {
  static const TransformerOps scalar =
      MakeTable<kScalarGemm, kScalarRowOps, kScalarAttention>(CpuIsa::kScalar);
  switch (isa) {
    case CpuIsa::kScalar:
      return &scalar;
    default:
      return &scalar;  // until the ISA's own table is in: same results, slower
  }
}

}  // namespace genrecall
