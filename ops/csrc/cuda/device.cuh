// The device as the kernels see it: vector and 16-bit types, shared memory,
// launches, and the few PTX instructions, each behind a function.
//
// Kernels reach the device through this file and CUDA's own headers only.
// Where no GPU is, the tests compile the same kernels as C++: their shim
// stands in for CUDA's headers and offers the functions below. Where no nvcc
// is, NVRTC compiles them at run time over nvrtc/headers.h; MMVSSM_PLAN is then
// defined, and the host code notes what it would start (nvrtc/launch_plan.h).
//
// A kernel is a type, whose name tells which instantiation it is:
//   Params            what it takes, one struct
//   kThreads          of a block, at most
//   kBlocks           that shall fit a multiprocessor (0: the compiler's
//                     choice); it bounds registers
//   run(params)       what each thread does
// and not in an unnamed namespace: NVRTC keeps what lies there to itself.
// launch<Kernel>(blocks, threads, shared_bytes, stream, params) starts it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/scan_common.h"

#ifndef __CUDACC__
#include "cuda_shim.h"
#else
namespace mmvssm::cuda {

// 2^x to 2 ulp; 0 for x = -inf.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies Bytes (4, 8 or 16, both addresses aligned to it) from global to
// shared memory. The data is there after copy_async_wait() and a barrier.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target),
               "l"(global), "n"(Bytes)
               : "memory");
#else
  for (int i = 0; i < Bytes / 4; ++i) {
    static_cast<uint32_t*>(shared)[i] = static_cast<const uint32_t*>(global)[i];
  }
#endif
}

// Waits for every copy that this thread has started.
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char mmvssm_dynamic_shared[];
  return mmvssm_dynamic_shared;
}

// Nothing lies between arrays in shared memory; the tests put a forbidden
// zone there.
constexpr int kSharedGap = 0;
__host__ __device__ __forceinline__ void forbid_shared(unsigned char*, int) {}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    run_kernel(const typename Kernel::Params params) {
  Kernel::run(params);
}

#ifndef MMVSSM_PLAN
template <typename Kernel>
cudaError_t launch(int64_t blocks, int threads, int shared_bytes,
                   cudaStream_t stream, const typename Kernel::Params& params) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(
        run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        shared_bytes);
    if (status != cudaSuccess) return status;
  }
  run_kernel<Kernel>
      <<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(
          params);
  return cudaGetLastError();
}
#endif

}  // namespace mmvssm::cuda
#endif

namespace mmvssm::cuda {

// Lays arrays out one after the other in the block's dynamic shared memory.
// The host walks the same calls with a null base to learn the size.
class SharedArena {
 public:
  __host__ __device__ explicit SharedArena(unsigned char* base)
      : base_(base), bytes_(0) {}

  template <typename T>
  __host__ __device__ T* take(int count) {
    unsigned char* array = base_ == nullptr ? nullptr : base_ + bytes_;
    const int used = count * static_cast<int>(sizeof(T));
    const int padded = (used + 15) / 16 * 16 + kSharedGap;
    if (array != nullptr) forbid_shared(array + used, padded - used);
    bytes_ += padded;
    return reinterpret_cast<T*>(array);
  }

  __host__ __device__ int bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  int bytes_;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// launch(InputType<T>{}) for the element type T that dtype stands for.
template <typename T>
struct InputType {
  using type = T;
};

template <typename Launch>
cudaError_t with_input_type(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kFloat:
      return launch(InputType<float>{});
    case DType::kHalf:
      return launch(InputType<__half>{});
    case DType::kBFloat16:
      return launch(InputType<__nv_bfloat16>{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace mmvssm::cuda
