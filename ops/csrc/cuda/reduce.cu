// Sums over slots.
#include "cuda/device.cuh"
#include "cuda/scan_cuda.h"

namespace mmvssm::cuda {

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
struct SumSlots {
  using Params = SumParams;
  static constexpr int kThreads = 256, kBlocks = 0;

  static __device__ __forceinline__ void run(const Params& p) {
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
};

template <typename T>
cudaError_t sum_slots_of(const SumParams& p, cudaStream_t stream) {
  const bool wide = p.inner % 4 == 0;
  const int64_t packs = p.outer * (wide ? p.inner / 4 : p.inner);
  constexpr int threads = SumSlots<T, 1>::kThreads;
  const int64_t blocks = (packs + threads - 1) / threads;
  return wide ? launch<SumSlots<T, 4>>(blocks, threads, 0, stream, p)
              : launch<SumSlots<T, 1>>(blocks, threads, 0, stream, p);
}

cudaError_t sum_slots(const float* slots, void* out, DType out_type,
                      int64_t outer, int64_t count, int64_t inner,
                      cudaStream_t stream) {
  const SumParams p{slots, out, outer, count, inner};
  if (outer * inner == 0) return cudaSuccess;
  return with_input_type(out_type, [&](auto input) {
    return sum_slots_of<typename decltype(input)::type>(p, stream);
  });
}

}  // namespace mmvssm::cuda
