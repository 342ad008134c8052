// The kernels for x86 processors with AVX2 and FMA.
#if defined(__x86_64__)
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <new>
#include <utility>

#include "cpu/scan_args.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define MMVSSM_ISA avx2
#define MMVSSM_AVX512 0
#include "cpu/kernel_table.h"

namespace mmvssm {
const KernelTable kAvx2Kernels = avx2::make_table("avx2");
}  // namespace mmvssm

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
