#include "kernels/simd_avx512.h"
// The vectors first: what follows is written over them.
#include "kernels/row_kernels_simd.h"

namespace genrecall {

const RowKernels kAvx512RowKernels = {RmsNorm, Rope, Convert, MaxSumExp, ExpOf};

}  // namespace genrecall
