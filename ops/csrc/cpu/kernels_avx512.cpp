// The kernels for x86 processors with AVX-512 (F and DQ).
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <new>
#include <utility>

#include "cpu/scan_args.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,fma")
#endif

#define MMVSSM_ISA avx512
#define MMVSSM_AVX512 1
#include "cpu/kernel_table.h"

namespace mmvssm {
const KernelTable kAvx512Kernels = avx512::make_table("avx512");
}  // namespace mmvssm

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
