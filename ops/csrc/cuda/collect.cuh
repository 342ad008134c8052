// What happens around the scans: carries folded from chunk to chunk, sums over
// slots, and rows collected from the steps that visited them. Each thread makes
// one output (or four side by side) and adds in a fixed order, hence there are
// no atomic sums.
#pragma once

#include "cuda/device.cuh"

namespace mmvssm::cuda {

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

// Where so many threads share an item: neighbours have the same share of
// neighbouring items.
struct SharedItem {
  __device__ __forceinline__ explicit SharedItem(int shares)
      : of_block(kCollectThreads / shares),
        item(static_cast<int>(threadIdx.x) % of_block),
        share(static_cast<int>(threadIdx.x) / of_block),
        index(static_cast<int64_t>(blockIdx.x) * of_block + item) {}

  // What the thread with that share of this item wrote.
  template <typename T>
  __device__ __forceinline__ T of(int share,
                                  const T (&shares)[kCollectThreads]) const {
    return shares[share * of_block + item];
  }

  const int of_block, item, share;
  const int64_t index;
};

// A share of a state of a channel is up to kFoldedChunks side by side: a thread
// folds them, and then starts anew from what comes out of the shares before.
template <typename, int, int>
__global__ void __launch_bounds__(kCollectThreads)
    fold_carries_kernel(const FoldParams p) {
  constexpr int kOwn = kFoldedChunks;
  const SharedItem at(p.shares);
  const int64_t columns = static_cast<int64_t>(p.d_state) * p.channels;
  const int64_t wanted = at.index / columns;
  const bool there = wanted < static_cast<int64_t>(p.batch) * p.num_routes;
  const int64_t image = there ? wanted : 0;
  const int column = static_cast<int>(at.index - wanted * columns);
  const int state = column / p.channels;
  const int channel = column - state * p.channels;
  const int row = static_cast<int>(image % p.num_routes) * p.channels + channel;
  const float A = p.A[static_cast<int64_t>(row) * p.d_state + state];

  const int64_t pitch = columns + p.channels;
  const int64_t begin = image * p.chunks + (p.backward ? p.chunks - 1 : 0);
  const int64_t by = p.backward ? -pitch : pitch;
  float* totals = p.carries + begin * pitch + channel;
  float* outs = p.carries + begin * pitch + p.channels + column;
  // The decay of each share, and what comes out of it if zero enters.
  __shared__ float2 shares[kCollectThreads];
  float value = 0.0f;  // what comes out of all shares so far
  // Nothing follows the last chunk.
  for (int done = 0; done < p.chunks - 1; done += kOwn * p.shares) {
    const int first = done + at.share * kOwn;
    const int count = min(p.chunks - 1 - first, kOwn);
    float decays[kOwn], own[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      decays[i] = i < count ? totals[(first + i) * by] : 0.0f;
      own[i] = i < count ? outs[(first + i) * by] : 0.0f;
    }
    float2 out = {1.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      decays[i] = exp2_approx(decays[i] * A);
      out = {out.x * decays[i], fmaf(decays[i], out.y, own[i])};
    }
    shares[threadIdx.x] = out;
    __syncthreads();
    float enters = 0.0f;
#pragma unroll 4
    for (int share = 0; share < p.shares; ++share) {
      if (share == at.share) enters = value;
      const float2 next = at.of(share, shares);
      value = fmaf(next.x, value, next.y);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      enters = fmaf(decays[i], enters, own[i]);
      if (there && i < count) outs[(first + i) * by] = enters;
    }
  }
}

// A share of a sum is every so many-th piece.
template <typename, int, int>
__global__ void __launch_bounds__(kCollectThreads)
    sum_pieces_kernel(const PieceParams p) {
  const SharedItem at(p.num_shares);
  int64_t index = at.index;
  PieceParams::Array array{};
#pragma unroll
  for (const auto& next : p.arrays) {
    if (array.count > 0) continue;
    if (index < next.count) {
      array = next;
    } else {
      index -= next.count;
    }
  }
  const bool there = array.count > 0;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t c = at.share; c < (there ? p.pieces : 0); c += p.num_shares) {
    sum += array.shares[c * array.count + index];
  }
  __shared__ float shares[kCollectThreads];
  shares[threadIdx.x] = sum;
  __syncthreads();
  if (!there || at.share > 0) return;
#pragma unroll 4
  for (int share = 1; share < p.num_shares; ++share) {
    sum += at.of(share, shares);
  }
  array.total[index] = sum;
}

// Width values of `inner` at a time; Width divides it.
template <typename T, int Width, int>
__global__ void __launch_bounds__(kCollectThreads)
    sum_slots_kernel(const SumParams p) {
  const int64_t packs = p.inner / Width;
  const int64_t index = collect_index();
  if (index >= p.outer * packs) return;
  const int64_t outer = index / packs;
  const int64_t first = outer * p.count * packs + index - outer * packs;
  float sum[Width] = {};
#pragma unroll 4
  for (int64_t c = 0; c < p.count; ++c) {
    add_pack(p.slots, first + c * packs, sum);
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
  if (p.visits.next == nullptr) {
    *head = step;
  } else {
    p.visits.next[index] = atomicExch(head, step);
  }
}

// visit(step) for the steps at which a route comes to a row, in their order:
// almost always there is one, and lists have none.
template <typename Visit>
__device__ __forceinline__ void each_visit(const Visits& visits, int route,
                                           int rows, int length, int row,
                                           const Visit& visit) {
  const int32_t head = visits.first[static_cast<int64_t>(route) * rows + row];
  if (head < 0) return;
  const int32_t* next = visits.next + static_cast<int64_t>(route) * length;
  const bool only = visits.next == nullptr || next[head] < 0;
  int32_t step = head;
#pragma unroll 1
  for (int32_t last = -1;; last = step) {
    if (!only) {
      step = length;  // the first after `last`
      for (int32_t at = head; at >= 0; at = next[at]) {
        if (at > last && at < step) step = at;
      }
      if (step == length) return;
    }
    visit(step);
    if (only) return;
  }
}

// The pack that a thread makes.
struct GatherPlace {
  __device__ __forceinline__ explicit GatherPlace(const GatherItems& items) {
    const int block = static_cast<int>(blockIdx.x);
    const int above_block = items.by_blocks.divide(block);
    batch = above_block * items.images;
    const int index =
        (block - above_block * items.image_blocks) * kCollectThreads +
        static_cast<int>(threadIdx.x);
    const int above = items.by_packs.divide(index);
    pack = index - above * items.packs;
    row = items.by_across.divide(above);
    there = row < items.rows;
    // Of the routes, one or all.
    const int only = above - row * items.across;
    route = only;
    out =
        (static_cast<int64_t>(batch) * items.rows + row) * items.across + only;
  }

  bool there;
  int batch, row, route, pack;  // the first of its images
  int64_t out;                  // the row of the result
};

template <typename T, int Width, int>
__global__ void __launch_bounds__(kCollectThreads)
    gather_rows_kernel(const GatherParams p) {
  const GatherPlace at(p.items);
  if (!at.there) return;
  const int end = p.items.across == 1 ? p.num_routes : at.route + 1;
  float sum[Width] = {};
  for (int k = at.route; k < end; ++k) {
    const int64_t image = static_cast<int64_t>(at.batch) * p.num_routes + k;
    each_visit(p.visits, k, p.items.rows, p.length, at.row, [&](int step) {
      add_pack(p.steps, (image * p.length + step) * p.items.packs + at.pack,
               sum);
    });
  }
  store_pack<T>(p.out, at.out * p.items.packs + at.pack, sum);
}

// Some columns of a row a thread, either of the ranks or of B and C, and those
// of some images: all of them share the search for the steps. Columns are as
// far apart as there are threads, so that neighbours read side by side.
template <typename T, int Columns, int Images>
__global__ void __launch_bounds__(kCollectThreads)
    gather_projections_kernel(const ProjectionParams p) {
  const GatherPlace at(p.items);
  if (!at.there) return;
  const int images = p.batch - at.batch;
  const bool is_rank = at.pack < p.rank_packs;
  const float* source = is_rank ? p.dt_grads : p.map_grads;
  const int pitch = is_rank ? p.dt_rank : 2 * p.padded_states;
  const int parts = is_rank ? 1 : p.parts;
  const int width = is_rank ? p.dt_rank : 2 * p.d_state;
  const int first = is_rank ? at.pack : at.pack - p.rank_packs;
  const int apart = is_rank ? p.rank_packs : p.items.packs - p.rank_packs;
  const int padding = is_rank ? 0 : p.padded_states - p.d_state;
  int from[Columns];
#pragma unroll
  for (int i = 0; i < Columns; ++i) {
    const int column = min(first + i * apart, width - 1);
    from[i] = column + (column < p.d_state ? 0 : padding);
  }
  const int64_t image_pitch = static_cast<int64_t>(p.length) * pitch;
  const int64_t part_pitch = image_pitch * p.batch * p.num_routes;
  const int end = p.items.across == 1 ? p.num_routes : at.route + 1;
  float sum[Images][Columns] = {};
#pragma unroll 1
  for (int k = at.route; k < end; ++k) {
    const int64_t image = static_cast<int64_t>(k) * p.batch + at.batch;
    each_visit(p.visits, k, p.items.rows, p.length, at.row, [&](int step) {
      const float* row =
          source + image * image_pitch + static_cast<int64_t>(step) * pitch;
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int j = 0; j < Images; ++j) {
          if (j >= images) break;
#pragma unroll
          for (int i = 0; i < Columns; ++i) {
            sum[j][i] += row[j * image_pitch + from[i]];
          }
        }
        row += part_pitch;
      }
    });
  }
  const int row_width = p.dt_rank + 2 * p.d_state;
  T* out = static_cast<T*>(p.out) + at.out * row_width +
           (is_rank ? 0 : p.dt_rank) + first;
#pragma unroll
  for (int j = 0; j < Images; ++j) {
    if (j >= images) break;
#pragma unroll
    for (int i = 0; i < Columns; ++i) {
      if (first + i * apart < width) out[i * apart] = from_float<T>(sum[j][i]);
    }
    out += static_cast<int64_t>(p.items.rows) * p.items.across * row_width;
  }
}

}  // namespace mmvssm::cuda
