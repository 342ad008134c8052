// The small kernels around a scan: sums over slots, facts about routes.
#include "cuda/device.cuh"
#include "cuda/scan_cuda.h"
#include "cuda/scan_math.cuh"

namespace mmvssm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRouteThreads = 1024;

struct SumParams {
  const float* slots;  // (outer, count, inner)
  void* out;           // (outer, inner)
  int64_t outer, count, inner;
};

template <typename T, int Width>
struct alignas(Width * sizeof(T)) Pack {
  T values[Width];
};

template <typename T, int Width>
__global__ void sum_slots_kernel(const SumParams p) {
  const int64_t packs = p.inner / Width;
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.outer * packs) return;
  const int64_t outer = index / packs;
  const int64_t pack = index - outer * packs;

  const auto* slots = reinterpret_cast<const Pack<float, Width>*>(p.slots) +
                      outer * p.count * packs + pack;
  Pack<float, Width> sum = slots[0];
  for (int64_t c = 1; c < p.count; ++c) {
    const Pack<float, Width> slot = slots[c * packs];
#pragma unroll
    for (int i = 0; i < Width; ++i) sum.values[i] += slot.values[i];
  }
  Pack<T, Width> result;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    result.values[i] = from_float<T>(sum.values[i]);
  }
  reinterpret_cast<Pack<T, Width>*>(p.out)[index] = result;
}

template <typename T>
cudaError_t sum_slots_of(const SumParams& p, cudaStream_t stream) {
  const bool wide = p.inner % 4 == 0;
  const int64_t packs = p.outer * (wide ? p.inner / 4 : p.inner);
  const int64_t blocks = (packs + kThreads - 1) / kThreads;
  return launch(wide ? sum_slots_kernel<T, 4> : sum_slots_kernel<T, 1>, blocks,
                kThreads, 0, stream, p);
}

struct RouteParams {
  const int32_t* routes;  // (K, L)
  int32_t* winner;        // (K, P), any content
  int32_t* flags;         // (K)
  int length, pixels;
};

// One block a route. Every step signs its pixel; then it looks whether its own
// signature is the one that stayed. Which of two steps wins does not matter.
__global__ void route_flags_kernel(const RouteParams p) {
  SharedArena arena(dynamic_shared());
  int* totals = arena.take<int>(2 * kRouteThreads / 32);

  const int32_t* route = p.routes + static_cast<int64_t>(blockIdx.x) * p.length;
  int32_t* winner = p.winner + static_cast<int64_t>(blockIdx.x) * p.pixels;
  for (int step = threadIdx.x; step < p.length; step += blockDim.x) {
    if (route[step] >= 0) winner[route[step]] = step;
  }
  __syncthreads();
  int visits = 0;
  int distinct = 0;
  for (int step = threadIdx.x; step < p.length; step += blockDim.x) {
    if (route[step] >= 0) {
      ++visits;
      if (winner[route[step]] == step) ++distinct;
    }
  }
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) {
    visits += __shfl_xor_sync(kFullWarp, visits, mask);
    distinct += __shfl_xor_sync(kFullWarp, distinct, mask);
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    totals[2 * warp] = visits;
    totals[2 * warp + 1] = distinct;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < static_cast<int>(blockDim.x) / 32; ++w) {
      visits += totals[2 * w];
      distinct += totals[2 * w + 1];
    }
    p.flags[blockIdx.x] =
        (visits > distinct ? kRepeats : 0) | (distinct < p.pixels ? kGaps : 0);
  }
}

}  // namespace

cudaError_t sum_slots(const float* slots, void* out, DType out_type,
                      int64_t outer, int64_t count, int64_t inner,
                      cudaStream_t stream) {
  const SumParams p{slots, out, outer, count, inner};
  if (outer * inner == 0) return cudaSuccess;
  return with_input_type(out_type, [&](auto input) {
    return sum_slots_of<typename decltype(input)::type>(p, stream);
  });
}

cudaError_t find_route_flags(const int32_t* routes, int64_t num_routes,
                             int64_t length, int64_t pixels,
                             Workspace& workspace, int32_t* flags,
                             cudaStream_t stream) {
  auto* winner = static_cast<int32_t*>(
      workspace.allocate(num_routes * pixels * sizeof(int32_t)));
  const RouteParams p{routes, winner, flags, static_cast<int>(length),
                      static_cast<int>(pixels)};
  SharedArena arena(nullptr);
  arena.take<int>(2 * kRouteThreads / 32);
  return launch(route_flags_kernel, num_routes, kRouteThreads, arena.bytes(),
                stream, p);
}

}  // namespace mmvssm::cuda
