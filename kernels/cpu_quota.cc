#include "kernels/cpu_quota.h"

#include <cstdint>
#include <fstream>

namespace genrecall {
namespace {

int64_t ReadNumber(const std::string& path) {
  int64_t value = 0;
  std::ifstream(path) >> value;
  return value;
}

}  // namespace

int CpuQuota(const std::string& folder) {
  int64_t quota = 0, period = 0;
  std::ifstream version2(folder + "/cpu.max");
  if (version2.good()) {
    version2 >> quota >> period;  // "max 100000" leaves both at 0
  } else {
    quota = ReadNumber(folder + "/cpu/cpu.cfs_quota_us");  // -1: none
    period = ReadNumber(folder + "/cpu/cpu.cfs_period_us");
  }
  return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

}  // namespace genrecall
