// What ops/csrc/cuda/device.cuh offers beyond CUDA's headers, as plain C++.
#pragma once

#include <cuda_runtime.h>

namespace mmvssm::cuda {

inline float exp2_approx(float x) { return exp2f(x); }

template <int Bytes>
void copy_async(void* shared, const void* global, bool there = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "sizes of cp.async");
  alignas(16) static const unsigned char zeros[16] = {};
  shim::copy_async(shared, there ? global : zeros, Bytes);
}
inline void copy_async_wait() { shim::copy_async_wait(); }

inline unsigned char* dynamic_shared() { return shim::dynamic_shared(); }

inline int thread_anew() { return static_cast<int>(threadIdx.x); }
inline int block_anew() { return static_cast<int>(blockIdx.x); }

template <typename T>
T* fixed_address(T* address) {
  return address;
}

}  // namespace mmvssm::cuda
