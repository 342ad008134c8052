// The choice of instruction sets; no torch.
#include "cpu/scan_args.h"

namespace mmvssm {

std::vector<const KernelTable*> runnable_kernels() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    tables.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&kAvx2Kernels);
  }
#endif
  tables.push_back(&kBaselineKernels);
  return tables;
}

}  // namespace mmvssm
