#include "kernels/simd_avx512.h"
//
#include "kernels/attention_simd.h"

namespace genrecall {

const AttentionKernel kAvx512Attention = {Prefill, Beams};

}  // namespace genrecall
