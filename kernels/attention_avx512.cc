#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/attention_simd.h"
#include "kernels/query_block_simd.h"

namespace genrecall {

const AttentionKernel kAvx512Attention = {Prefill<QueryBlock>, Beams<QueryBlock>};

}  // namespace genrecall
