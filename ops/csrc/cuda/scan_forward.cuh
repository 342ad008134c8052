// The forward scan, for either form, its carry pass and its main pass. Tiles
// supplies what the form reads and writes: RouteForward (route_forward.cuh),
// SequenceForward (sequence_forward.cuh).
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

template <int NT, int CH>
__device__ __forceinline__ void save_states(const ScanShape& s,
                                            const Place<CH>& place, int tile,
                                            const float (&h)[CH][NT]) {
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    if (!place.active[i]) continue;
    float* saved = saved_state<NT>(s, place, tile, i);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (place.state_lane * NT + n < s.d_state) *saved = h[i][n];
      saved = fixed_address(saved + s.channels);
    }
  }
}

// One thread's scan over its chunk.
template <typename Tiles, int NT, int CH, bool kCarry>
__device__ __forceinline__ void scan_forward(const typename Tiles::Params& p) {
  const ScanShape& s = p.shape;
  const Place<CH> place(s);
  if (kCarry && place.chunk == s.chunks - 1) return;  // nothing comes after it
  Tiles tiles(p, place);

  float A[CH][NT], h[CH][NT] = {}, skip[CH], total[CH] = {};
  load_rates(s, place, A);
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    skip[i] =
        s.D != nullptr && place.state_lane == 0 ? s.D[place.row(s, i)] : 0.0f;
  }
  if (!kCarry) fold_carries(s, place, 0, place.chunk, 1, A, h);

  const int first = place.first_tile(s);
  const int end = place.end_tile(s);
  tiles.begin(first);
#pragma unroll 1
  for (int tile = first - 1; tile < end; ++tile) {
    tiles.advance(tile + 2 < end ? tile + 2 : -1);
    if (tile < first) {
      tiles.request(tiles.ring(kTile));
      continue;
    }
    if (!kCarry && s.states != nullptr && tile > 0) {
      save_states(s, place, tile, h);
    }
    const MapRows<NT> maps = tiles.maps();
    const int subs = subs_of_tile(s, tile);
#pragma unroll 1
    for (int sub = 0; sub < subs; ++sub) {
      const int step = sub * kSub;
      if (step % kGroup == 0) tiles.enter_group(step);
      float u[CH][kSub], d[CH][kSub];
      tiles.load(step, u, d);
      float y[CH][kSub];
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float B[NT], C[NT];
        maps.read(step + t, B, C);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          if (kCarry) total[i] += d[i][t];
          step_state<NT>(A[i], d[i][t], d[i][t] * u[i][t], B, h[i]);
          if (kCarry) continue;
          y[i][t] = skip[i] * u[i][t];
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            y[i][t] = fmaf(h[i][n], C[n], y[i][t]);
          }
        }
      }
      tiles.request(tiles.ring(step + kSub));
      if (kCarry) continue;
      if (NT > 1 && s.state_lanes > 1) {
#pragma unroll
        for (int i = 0; i < CH; ++i) {
#pragma unroll
          for (int t = 0; t < kSub; ++t) {
            y[i][t] = sum_over_lanes(y[i][t], s.state_lanes);
          }
        }
      }
      tiles.store(step, y);
      if (sub + 1 == subs || (step + kSub) % kGroup == 0) {
        tiles.leave_group(step / kGroup * kGroup);
      }
    }
  }
  if (kCarry) {
    store_carry(s, place, total, h);
  } else if (place.chunk == s.chunks - 1) {
    tiles.store_last_state(h);
  }
}

// Blocks of kMaxThreads that shall fit a multiprocessor; it bounds registers.
constexpr int kForwardOccupancy = 5;

}  // namespace mmvssm::cuda
