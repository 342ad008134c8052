// What happens around the scans: carries folded from chunk to chunk, sums over
// slots, and rows collected from the steps that visited them. Each thread makes
// one output (or four side by side) and adds in a fixed order, hence there are
// no atomic sums.
#pragma once

#include "cuda/device.cuh"

namespace mmvssm::cuda {

constexpr int kCollectThreads = 256;

__device__ __forceinline__ int64_t collect_index() {
  return static_cast<int64_t>(blockIdx.x) * kCollectThreads + threadIdx.x;
}

template <typename T, int Width>
struct alignas(Width * sizeof(T)) Pack {
  T values[Width];
};

template <typename T, int Width>
__device__ __forceinline__ void store_pack(void* out, int64_t index,
                                           const float (&sum)[Width]) {
  Pack<T, Width> result;
#pragma unroll
  for (int i = 0; i < Width; ++i) result.values[i] = from_float<T>(sum[i]);
  static_cast<Pack<T, Width>*>(out)[index] = result;
}
template <int Width>
__device__ __forceinline__ void add_pack(const float* from, int64_t index,
                                         float (&sum)[Width]) {
  const auto pack = reinterpret_cast<const Pack<float, Width>*>(from)[index];
#pragma unroll
  for (int i = 0; i < Width; ++i) sum[i] += pack.values[i];
}

// One state of a channel a thread, from chunk to chunk.
template <typename, int, int>
__global__ void __launch_bounds__(kCollectThreads)
    fold_carries_kernel(const FoldParams p) {
  constexpr int kAhead = 16;  // loads that do not wait for each other
  const int64_t columns = static_cast<int64_t>(p.d_state) * p.channels;
  const int64_t index = collect_index();
  const int64_t image = index / columns;
  if (image >= static_cast<int64_t>(p.batch) * p.num_routes) return;
  const int column = static_cast<int>(index - image * columns);
  const int state = column / p.channels;
  const int channel = column - state * p.channels;
  const int row = static_cast<int>(image % p.num_routes) * p.channels + channel;
  const float A = p.A[static_cast<int64_t>(row) * p.d_state + state];

  const int64_t pitch = columns + p.channels;
  const int64_t first = image * p.chunks + (p.backward ? p.chunks - 1 : 0);
  const int64_t by = p.backward ? -pitch : pitch;
  const float* total = p.carries + first * pitch + channel;
  float* out = p.carries + first * pitch + p.channels + column;
  float value = 0.0f;
  // Nothing follows the last one.
  for (int left = p.chunks - 1; left > 0; left -= kAhead) {
    float totals[kAhead], outs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      totals[i] = i < left ? total[i * by] : 0.0f;
      outs[i] = i < left ? out[i * by] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      value = fmaf(exp2_approx(totals[i] * A), value, outs[i]);
      if (i < left) out[i * by] = value;
    }
    total += kAhead * by;
    out += kAhead * by;
  }
}

// Width values of `inner` at a time; Width divides it. kSplit threads share a
// sum where there are few and long ones: each takes every kSplit-th slot, then
// the first of them adds theirs up.
template <typename T, int Width, int kSplit>
__global__ void __launch_bounds__(kCollectThreads)
    sum_slots_kernel(const SumParams p) {
  const int64_t packs = p.inner / Width;
  const int64_t index = collect_index() / kSplit;
  const int split = threadIdx.x % kSplit;
  if (index >= p.outer * packs) return;
  const int64_t outer = index / packs;
  const int64_t first = outer * p.count * packs + index - outer * packs;
  float sum[Width] = {};
#pragma unroll 4
  for (int64_t c = split; c < p.count; c += kSplit) {
    add_pack(p.slots, first + c * packs, sum);
  }
  if constexpr (kSplit > 1) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int mask = 1; mask < kSplit; mask *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], mask);
      }
    }
    if (split != 0) return;
  }
  store_pack<T>(p.out, index, sum);
}

// Links every step to the row that it visits. `first` and `next` hold -1.
template <typename T, int, int>
__global__ void __launch_bounds__(kCollectThreads)
    link_visits_kernel(const VisitParams p) {
  const int64_t index = collect_index();
  if (index >= static_cast<int64_t>(p.num_routes) * p.length) return;
  const int route = static_cast<int>(index / p.length);
  const int32_t row = p.table[index];
  if (row < 0) return;
  int32_t* head = p.visits.first + static_cast<int64_t>(route) * p.rows + row;
  const auto step =
      static_cast<int32_t>(index - static_cast<int64_t>(route) * p.length);
  p.visits.next[index] = atomicExch(head, step);
}

// visit(step) for the steps at which a route comes to a row, in their order:
// almost always there is one, and lists have none.
template <typename Visit>
__device__ __forceinline__ void each_visit(const Visits& visits, int route,
                                           int rows, int length, int row,
                                           const Visit& visit) {
  const int32_t* next = visits.next + static_cast<int64_t>(route) * length;
  const int32_t head = visits.first[static_cast<int64_t>(route) * rows + row];
  for (int32_t last = -1;;) {
    int32_t step = length;  // the first after `last`
    for (int32_t at = head; at >= 0; at = next[at]) {
      if (at > last && at < step) step = at;
    }
    if (step == length) return;
    visit(step);
    if (next[head] < 0) return;  // the only one
    last = step;
  }
}

template <typename T, int Width, int>
__global__ void __launch_bounds__(kCollectThreads)
    gather_rows_kernel(const GatherParams p) {
  const int packs = p.channels / Width;
  const int across = p.apart ? p.num_routes : 1;
  const int64_t index = collect_index();
  if (index >= static_cast<int64_t>(p.batch) * p.rows * across * packs) return;
  const int64_t above = index / packs;  // (batch, row, route)
  const int pack = static_cast<int>(index - above * packs);
  const int64_t image_row = above / across;
  const int batch = static_cast<int>(image_row / p.rows);
  const int row =
      static_cast<int>(image_row - static_cast<int64_t>(batch) * p.rows);
  const int only = static_cast<int>(above - image_row * across);
  float sum[Width] = {};
  for (int k = p.apart ? only : 0; k < (p.apart ? only + 1 : p.num_routes);
       ++k) {
    const int64_t image = static_cast<int64_t>(batch) * p.num_routes + k;
    each_visit(p.visits, k, p.rows, p.length, row, [&](int step) {
      add_pack(p.steps, (image * p.length + step) * packs + pack, sum);
    });
  }
  store_pack<T>(p.out, index, sum);
}

// Four columns of a row a thread, so that these share the search for the steps;
// they are `packs` apart, so that neighbours read side by side.
template <typename T, int, int>
__global__ void __launch_bounds__(kCollectThreads)
    gather_projections_kernel(const ProjectionParams p) {
  constexpr int kColumns = 4;
  const int width = p.dt_rank + 2 * p.d_state;
  const int packs = (width + kColumns - 1) / kColumns;
  const int across = p.shared ? 1 : p.num_routes;
  const int64_t index = collect_index();
  if (index >= static_cast<int64_t>(p.batch) * p.pixels * across * packs) {
    return;
  }
  const int64_t above = index / packs;  // (batch, pixel, route)
  const int first = static_cast<int>(index - above * packs);
  const int64_t image_pixel = above / across;
  const int batch = static_cast<int>(image_pixel / p.pixels);
  const int pixel =
      static_cast<int>(image_pixel - static_cast<int64_t>(batch) * p.pixels);
  const int only = static_cast<int>(above - image_pixel * across);

  // Where each column lies in the rows of the ranks, or of B and C.
  const int map_pitch = 2 * p.padded_states;
  const int64_t steps = static_cast<int64_t>(p.num_routes) * p.batch * p.length;
  const float* source[kColumns];
  int pitch[kColumns], parts[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int column = min(first + i * packs, width - 1);
    const bool is_rank = column < p.dt_rank;
    const bool is_C = column >= p.dt_rank + p.d_state;
    source[i] = is_rank ? p.dt_grads + column
                        : p.map_grads + column - p.dt_rank +
                              (is_C ? p.padded_states - p.d_state : 0);
    pitch[i] = is_rank ? p.dt_rank : map_pitch;
    parts[i] = is_rank ? 1 : p.parts;
  }
  float sum[kColumns] = {};
  for (int k = p.shared ? 0 : only; k < (p.shared ? p.num_routes : only + 1);
       ++k) {
    const int64_t image = static_cast<int64_t>(k) * p.batch + batch;
    each_visit(p.visits, k, p.pixels, p.length, pixel, [&](int step) {
      const int64_t row = image * p.length + step;
      for (int part = 0; part < p.parts; ++part) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (part < parts[i]) {
            sum[i] += source[i][(part * steps + row) * pitch[i]];
          }
        }
      }
    });
  }
  T* out = static_cast<T*>(p.out) + above * width + first;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (first + i * packs < width) out[i * packs] = from_float<T>(sum[i]);
  }
}

}  // namespace mmvssm::cuda
