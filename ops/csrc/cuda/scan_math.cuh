// Arithmetic of one thread and one warp, shared by all scan kernels.
#pragma once

#include "cuda/device.cuh"

namespace mmvssm::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr unsigned kFullWarp = 0xffffffffu;

// log(1 + t) for t in [0, 1], relative error 2e-7: t times a minimax
// polynomial, for log2(1 + t) would lose the small values.
__device__ __forceinline__ float log1p_unit(float t) {
  float p = -3.2440254e-3f;
  p = fmaf(p, t, 1.9851465e-2f);
  p = fmaf(p, t, -5.6959543e-2f);
  p = fmaf(p, t, 1.0603657e-1f);
  p = fmaf(p, t, -1.5305594e-1f);
  p = fmaf(p, t, 1.967594e-1f);
  p = fmaf(p, t, -2.4954134e-1f);
  p = fmaf(p, t, 3.3329964e-1f);
  p = fmaf(p, t, -4.99999e-1f);
  p = fmaf(p, t, 1.0f);
  return p * t;
}

// softplus(x) = max(x, 0) + log(1 + e^-|x|) and its derivative. Above
// kSoftplusThreshold they round to x and 1 by themselves.
__device__ __forceinline__ float softplus(float x, float& slope) {
  const float t = exp2_approx(-fabsf(x) * kLog2E);
  const float r = __fdividef(1.0f, 1.0f + t);
  slope = x >= 0.0f ? r : t * r;
  return fmaxf(x, 0.0f) + log1p_unit(t);
}

// Count values that all lanes read from one place in shared memory, by
// 128-bit loads where Count allows (the address is then aligned to 16 bytes).
template <int Count>
__device__ __forceinline__ void read_broadcast(const float* shared,
                                               float (&values)[Count]) {
  if constexpr (Count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(shared + i);
      values[i] = v.x;
      values[i + 1] = v.y;
      values[i + 2] = v.z;
      values[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Count; ++i) values[i] = shared[i];
  }
}

// One exchange of reduce16: a lane keeps one half of its values and gives the
// other to the lane that keeps that one.
template <int Half>
__device__ __forceinline__ void exchange_halves(float (&values)[16]) {
  const bool upper = threadIdx.x & (2 * Half);
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float keep = upper ? values[i + Half] : values[i];
    const float send = upper ? values[i] : values[i + Half];
    values[i] = keep + __shfl_xor_sync(kFullWarp, send, 2 * Half);
  }
}

// Sums 16 values over the lanes of a warp; lanes 2i and 2i + 1 receive the
// total of values[i]. It takes 16 shuffles, not the 80 of 16 butterflies.
__device__ __forceinline__ float reduce16(float (&values)[16]) {
  exchange_halves<8>(values);
  exchange_halves<4>(values);
  exchange_halves<2>(values);
  exchange_halves<1>(values);
  return values[0] + __shfl_xor_sync(kFullWarp, values[0], 1);
}

}  // namespace mmvssm::cuda
