// The device as the kernels see it: vector and 16-bit types, shared memory, and
// the few PTX instructions, each behind a function.
//
// Kernels reach the device through this file and CUDA's own headers only.
// Where no GPU is, the tests compile the same kernels as C++: their shim
// stands in for CUDA's headers and offers the functions below.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>
#endif

#include "cuda/scan_params.h"

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
// shared memory, or zeros where it is not `there`: then nothing is read. The
// data is there after copy_async_wait() and a barrier.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global,
                                           bool there = true) {
#if __CUDA_ARCH__ >= 800
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{ .reg .pred gone; setp.eq.u32 gone, %3, 0;\n"
      "cp.async.ca.shared.global [%0], [%1], %2, gone; }" ::"r"(target),
      "l"(global), "n"(Bytes), "r"(static_cast<unsigned>(there))
      : "memory");
#else
  for (int i = 0; i < Bytes / 4; ++i) {
    static_cast<uint32_t*>(shared)[i] =
        there ? static_cast<const uint32_t*>(global)[i] : 0u;
  }
#endif
}

// Waits for every copy that this thread has started.
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The same address in global memory, computed once: the compiler would
// otherwise carry its parts along and add them up at every access.
template <typename T>
__device__ __forceinline__ T* fixed_address(T* address) {
  size_t global = __cvta_generic_to_global(address);
  asm("" : "+l"(global));
  return static_cast<T*>(__cvta_global_to_generic(global));
}

// threadIdx.x and blockIdx.x; what is derived from them is not kept in
// registers meanwhile.
__device__ __forceinline__ int thread_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
__device__ __forceinline__ int block_anew() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char mmvssm_dynamic_shared[];
  return mmvssm_dynamic_shared;
}

}  // namespace mmvssm::cuda
#endif

namespace mmvssm::cuda {

// An array of the block at an offset that the host laid out.
template <typename T>
__device__ __forceinline__ T* shared_array(int offset) {
  return reinterpret_cast<T*>(dynamic_shared() + offset);
}

template <typename T>
constexpr bool is_float = false;
template <>
inline constexpr bool is_float<float> = true;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// The value with these bits, of which T has the lower ones.
template <typename T>
__device__ __forceinline__ float from_bits(uint32_t bits);
template <>
__device__ __forceinline__ float from_bits<float>(uint32_t bits) {
  return __uint_as_float(bits);
}
template <>
__device__ __forceinline__ float from_bits<__half>(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
template <>
__device__ __forceinline__ float from_bits<__nv_bfloat16>(uint32_t bits) {
  return __uint_as_float(bits << 16);
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

}  // namespace mmvssm::cuda
