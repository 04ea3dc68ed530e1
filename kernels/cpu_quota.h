// How many CPUs' worth of time a container may use. Knows no thread.
#ifndef GENRECALL_KERNELS_CPU_QUOTA_H_
#define GENRECALL_KERNELS_CPU_QUOTA_H_

#include <string>

namespace genrecall {

// The control group's limit, rounded up to whole CPUs: cpu.max of version 2 ("150000 100000": 2), else
// cpu/cpu.cfs_quota_us of version 1. 0: no limit, or no control groups. Threads beyond it would be stopped,
// all at once, for the rest of every period.
int CpuQuota(const std::string& folder = "/sys/fs/cgroup");

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_CPU_QUOTA_H_
