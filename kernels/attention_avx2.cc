#include "kernels/simd_avx2.h"
//
#include "kernels/attention_simd.h"

namespace genrecall {

const AttentionKernel kAvx2Attention = {Prefill, Beams};

}  // namespace genrecall
