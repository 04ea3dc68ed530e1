// Which instruction set the numeric kernels use: detected once (CPU *and* OS), overridden by
// GENRECALL_CPU_ISA.
#ifndef GENRECALL_KERNELS_CPU_ISA_H_
#define GENRECALL_KERNELS_CPU_ISA_H_

#include <string>

#include "kernels/status.h"

namespace genrecall {

// scalar: the specification. avx2: AVX2 + FMA + F16C. avx512: AVX-512 F/BW/DQ/VL (+ FMA), bf16 by widening.
// avx512_bf16: AVX-512 whose AVX512_BF16 multiplies bf16. amx: AMX tile + bf16 + int8 with that around it.
// Each includes the ones before it.
enum class CpuIsa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

const char* CpuIsaName(CpuIsa isa);

// The ISA of that name. Error (INVALID_ARGUMENT): "'avx3': expected scalar|avx2|avx512|avx512_bf16|amx".
Result<CpuIsa> ParseCpuIsa(const std::string& word);

// The best ISA of this machine. AMX counts only when the kernel grants the tile state (arch_prctl).
CpuIsa DetectCpuIsa();

// Whether the machine multiplies bytes in AVX-512 (VNNI). Without it `avx512` and `avx512_bf16` run int8
// gemms on AVX2.
bool HasAvx512Vnni();

// Whether it multiplies bytes without AVX-512 (AVX-VNNI): then `avx2` does so, too.
bool HasAvxVnni();

// The ISA in force: GENRECALL_CPU_ISA if set, else DetectCpuIsa(). Errors (INVALID_ARGUMENT): an unknown
// word, "GENRECALL_CPU_ISA='avx3': expected scalar|avx2|avx512|avx512_bf16|amx"; a known one this machine
// lacks, "GENRECALL_CPU_ISA='amx': this machine has avx512 at most".
Result<CpuIsa> ActiveCpuIsa();

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CPU_ISA_H_
