// Arithmetic of one thread and one warp, shared by all scan kernels.
#pragma once

#include "cuda/device.cuh"

namespace mmvssm::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr unsigned kFullWarp = 0xffffffffu;

// log2(1 + t) + base for t in [0, 1], relative error of the logarithm 2e-7: t
// times a minimax polynomial, for lg2(1 + t) would lose the small values.
__device__ __forceinline__ float log2_1p_unit(float t, float base) {
  float p = -3.2440254e-3f * kLog2E;
  p = fmaf(p, t, 1.9851465e-2f * kLog2E);
  p = fmaf(p, t, -5.6959543e-2f * kLog2E);
  p = fmaf(p, t, 1.0603657e-1f * kLog2E);
  p = fmaf(p, t, -1.5305594e-1f * kLog2E);
  p = fmaf(p, t, 1.967594e-1f * kLog2E);
  p = fmaf(p, t, -2.4954134e-1f * kLog2E);
  p = fmaf(p, t, 3.3329964e-1f * kLog2E);
  p = fmaf(p, t, -4.99999e-1f * kLog2E);
  p = fmaf(p, t, 1.0f * kLog2E);
  return fmaf(p, t, base);
}

// Step sizes and what softplus is applied to are kept times log2(e) all along:
// then exp(d A) is 2^(d A), and softplus needs no factor either,
//   log2(e) softplus(x) = max(x2, 0) + log2(1 + 2^-|x2|), x2 = log2(e) x.
// Above kSoftplusThreshold it rounds to x2 and its slope to 1 by themselves.
__device__ __forceinline__ float softplus2(float x2) {
  return log2_1p_unit(exp2_approx(-fabsf(x2)), fmaxf(x2, 0.0f));
}
__device__ __forceinline__ float softplus2(float x2, float& slope) {
  const float t = exp2_approx(-fabsf(x2));
  const float r = __fdividef(1.0f, 1.0f + t);
  slope = x2 >= 0.0f ? r : t * r;
  return log2_1p_unit(t, fmaxf(x2, 0.0f));
}

// d u of a step, d being kept times log2(e).
__device__ __forceinline__ float step_input(float d, float u) {
  return d * kLn2 * u;
}

// Count values that lanes read from one place in shared memory, aligned to 16
// bytes, or two of them to 8.
__device__ __forceinline__ void read_broadcast(const float* shared,
                                               float (&values)[2]) {
  const float2 v = *reinterpret_cast<const float2*>(shared);
  values[0] = v.x;
  values[1] = v.y;
}
template <int Count>
__device__ __forceinline__ void read_broadcast(const float* shared,
                                               float (&values)[Count]) {
  static_assert(Count % 4 == 0, "whole vectors");
#pragma unroll
  for (int i = 0; i < Count; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(shared + i);
    values[i] = v.x;
    values[i + 1] = v.y;
    values[i + 2] = v.z;
    values[i + 3] = v.w;
  }
}
template <int Count>
__device__ __forceinline__ void read_broadcast(const int* shared,
                                               int (&values)[Count]) {
  static_assert(Count % 4 == 0, "whole vectors");
#pragma unroll
  for (int i = 0; i < Count; i += 4) {
    const int4 v = *reinterpret_cast<const int4*>(shared + i);
    values[i] = v.x;
    values[i + 1] = v.y;
    values[i + 2] = v.z;
    values[i + 3] = v.w;
  }
}

// Over the `lanes` (a power of two) neighbours that share a channel.
__device__ __forceinline__ float sum_over_lanes(float value, int lanes) {
#pragma unroll 1
  for (int mask = 1; mask < lanes; mask *= 2) {
    value += __shfl_xor_sync(kFullWarp, value, mask);
  }
  return value;
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

// Sums 16 values over the lanes of a warp that have the same place among the
// `state_lanes` neighbours; visit(i, sum) in the lane that receives sum i, for
// its own place. With one or two state lanes it takes 15 or 16 shuffles, not
// the 64 or 80 of 16 butterflies; more states are rare.
template <typename Visit>
__device__ __forceinline__ void reduce16(float (&values)[16], int state_lanes,
                                         const Visit& visit) {
  const int lane = threadIdx.x % 32;
  if (state_lanes <= 2) {
    exchange_halves<8>(values);
    exchange_halves<4>(values);
    exchange_halves<2>(values);
    exchange_halves<1>(values);
    if (state_lanes == 1) {
      values[0] += __shfl_xor_sync(kFullWarp, values[0], 1);
    }
    if (lane % 2 < state_lanes) visit(lane / 2, values[0]);
  } else {
#pragma unroll 1
    for (int mask = 16; mask >= state_lanes; mask /= 2) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        values[i] += __shfl_xor_sync(kFullWarp, values[i], mask);
      }
    }
    if (lane < state_lanes) {
#pragma unroll
      for (int i = 0; i < 16; ++i) visit(i, values[i]);
    }
  }
}

}  // namespace mmvssm::cuda
