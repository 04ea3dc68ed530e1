#include "kernels/cpu_isa.h"

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace genrecall {
namespace {

#if defined(__x86_64__)

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf Cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidLeaf r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool Bit(uint64_t word, int bit) { return (word >> bit) & 1; }

// The register states the operating system saves (XCR0); 0 where it saves none.
uint64_t EnabledStates() {
  if (!Bit(Cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool HasAvx2(uint64_t states) {
  const CpuidLeaf one = Cpuid(1, 0);
  return (states & 0x6) == 0x6 && Bit(one.ecx, 12) && Bit(one.ecx, 28) && Bit(one.ecx, 29) &&  // FMA AVX F16C
         Bit(Cpuid(7, 0).ebx, 5);                                                              // AVX2
}

bool HasAvx512(uint64_t states) {
  const uint32_t ebx = Cpuid(7, 0).ebx;
  return (states & 0xe6) == 0xe6 && Bit(ebx, 16) && Bit(ebx, 17) && Bit(ebx, 30) &&
         Bit(ebx, 31);  // F DQ BW VL
}

bool HasAvx512Bf16(uint64_t states) { return HasAvx512(states) && Bit(Cpuid(7, 1).eax, 5); }

// Linux hands out the 8 KiB tile state only to a process that asks for it; asking again is harmless.
bool GrantTileState() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

bool HasAmx(uint64_t states) {
  constexpr uint64_t kTileStates = (1u << 17) | (1u << 18);
  const uint32_t edx = Cpuid(7, 0).edx;
  return (states & kTileStates) == kTileStates && Bit(edx, 22) && Bit(edx, 24) &&
         Bit(edx, 25) &&  // AMX_BF16 AMX_TILE AMX_INT8
         GrantTileState();
}

bool DetectAvx512Vnni() { return HasAvx512(EnabledStates()) && Bit(Cpuid(7, 0).ecx, 11); }
bool DetectAvxVnni() { return HasAvx2(EnabledStates()) && Bit(Cpuid(7, 1).eax, 4); }

CpuIsa Detect() {
  const uint64_t states = EnabledStates();
  if (!HasAvx2(states)) return CpuIsa::kScalar;
  if (!HasAvx512(states)) return CpuIsa::kAvx2;
  if (!HasAvx512Bf16(states)) return CpuIsa::kAvx512;
  return HasAmx(states) ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
}

#else
CpuIsa Detect() { return CpuIsa::kScalar; }
bool DetectAvx512Vnni() { return false; }
bool DetectAvxVnni() { return false; }
#endif

}  // namespace

const char* CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return "scalar";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
    case CpuIsa::kAmx:
      return "amx";
  }
  return "unknown";
}

Result<CpuIsa> ParseCpuIsa(const std::string& word) {
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    if (word == CpuIsaName(isa)) return isa;
  }
  return InvalidArgument("'", word, "': expected scalar|avx2|avx512|avx512_bf16|amx");
}

CpuIsa DetectCpuIsa() {
  static const CpuIsa detected = Detect();
  return detected;
}

bool HasAvx512Vnni() {
  static const bool has = DetectAvx512Vnni();
  return has;
}

bool HasAvxVnni() {
  static const bool has = DetectAvxVnni();
  return has;
}

Result<CpuIsa> ActiveCpuIsa() {
  const CpuIsa best = DetectCpuIsa();
  const char* forced = std::getenv("GENRECALL_CPU_ISA");
  if (forced == nullptr) return best;
  Result<CpuIsa> isa = ParseCpuIsa(forced);
  if (!isa.ok()) return InvalidArgument("GENRECALL_CPU_ISA=", isa.status().message());
  if (isa.value() > best) {  // each ISA includes the ones before it
    return InvalidArgument("GENRECALL_CPU_ISA='", forced, "': this machine has ", CpuIsaName(best),
                           " at most");
  }
  return isa;
}

}  // namespace genrecall
