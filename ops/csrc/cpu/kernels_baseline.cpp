// The kernels for any processor that the compiler targets by default.
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <new>
#include <utility>

#define MMVSSM_ISA baseline
#define MMVSSM_AVX512 0
#include "cpu/kernel_table.h"

namespace mmvssm {
#ifdef __ARM_NEON
const KernelTable kBaselineKernels = baseline::make_table("neon");
#else
const KernelTable kBaselineKernels = baseline::make_table("baseline");
#endif
}  // namespace mmvssm
