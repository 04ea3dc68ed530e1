#include "kernels/simd_avx2.h"
// The vectors first: what follows is written over them.
#include "kernels/row_kernels_simd.h"

namespace genrecall {

const RowKernels kAvx2RowKernels = {RmsNorm, Rope, Convert, MaxSumExp, ExpOf};

}  // namespace genrecall
