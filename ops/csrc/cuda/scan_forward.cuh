// The forward scan, for either form, its carry pass and its main pass. Tiles
// supplies what the form reads and writes: RouteForward (route_forward.cuh),
// SequenceForward (sequence_forward.cuh).
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// Blocks that a multiprocessor shall hold at least. With one state registers
// abound: told that one block is enough, the compiler loads further ahead. With
// more it would do so until it has to spill, so it is told nothing, 0.
constexpr int forward_blocks(int states) { return states == 1 ? 1 : 0; }

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
    tiles.advance(tile >= first ? tile : -1, tile + 1 < end ? tile + 1 : -1,
                  tile + 2 < end ? tile + 2 : -1);
    if (tile < first) {
      tiles.request(tiles.ring(kTile));
      continue;
    }
    if (!kCarry && s.states != nullptr && tile > 0) {
      const auto again = Place<CH>::anew(s);
      SavedStates<NT, CH>(s, again, tile).each(s, [&](int i, int n, float* to) {
        if (again.active[i]) *to = h[i][n];
      });
    }
    using Maps = MapRows<NT>;
    const Maps maps = tiles.maps();
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
        float input[CH];
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          if (kCarry) total[i] += d[i][t];
          input[i] = step_input(d[i][t], u[i][t]);
          y[i][t] = skip[i] * u[i][t];
        }
        // A few states at a time, so that few values of B and C are at hand.
#pragma unroll
        for (int n0 = 0; n0 < NT; n0 += Maps::kWidth) {
          float B[Maps::kWidth], C[Maps::kWidth];
          maps.read(step + t, n0, B, C);
#pragma unroll
          for (int i = 0; i < CH; ++i) {
#pragma unroll
            for (int j = 0; j < Maps::kWidth; ++j) {
              const int n = n0 + j;
              h[i][n] = fmaf(exp2_approx(d[i][t] * A[i][n]), h[i][n],
                             input[i] * B[j]);
              y[i][t] = fmaf(h[i][n], C[j], y[i][t]);
            }
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
  const auto again = Place<CH>::anew(s);
  if (kCarry) {
    store_carry(s, again, total, h);
  } else if (again.chunk == s.chunks - 1) {
    tiles.store_last_state(again, h);
  }
}

}  // namespace mmvssm::cuda
