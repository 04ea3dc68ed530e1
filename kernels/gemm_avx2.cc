#include "kernels/simd_avx2.h"
// The vectors first: what follows is written over them.
#include "kernels/gemm_simd.h"

namespace genrecall {

const GemmKernel kAvx2Gemm = {PackedBytes, Pack, Columns, /*pack_grain=*/1, /*column_grain=*/kTileVecs};

}  // namespace genrecall
