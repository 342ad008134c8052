// Stands in for CUDA's header where kernels are compiled as C++ for the CPU.
// The device itself is in block.h.
#pragma once

#include <math.h>
#include <stdlib.h>

#include <cstdint>
#include <cstring>

#include "shim/block.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (shim::coordinates().thread)
#define blockIdx (shim::coordinates().block)
#define blockDim (shim::coordinates().block_size)
#define gridDim (shim::coordinates().grid_size)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline void __syncthreads() { shim::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  shim::warp_exchange(mask, shim::WarpOp::kSync, 0);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) == 4, "32-bit values");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t* all = shim::warp_exchange(mask, shim::WarpOp::kShuffle, bits);
  const int from = static_cast<int>(threadIdx.x % 32) ^ lane_mask;
  if (from >= 32 || !(mask >> from & 1)) {
    shim::fail("shuffle reads lane %d outside its mask %08x", from, mask);
  }
  std::memcpy(&value, &all[from], 4);
  return value;
}

// Fibers are not interrupted.
inline int atomicExch(int* address, int value) {
  const int old = *address;
  *address = value;
  return old;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int min(int x, int y) { return x < y ? x : y; }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __fdividef(float x, float y) { return x / y; }
