// The forward scan, for either form, its carry pass and its main pass. Tiles
// supplies what the form reads and writes: RouteForward (route_forward.cuh),
// SequenceForward (sequence_forward.cuh).
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// One thread's scan over its chunk.
template <typename Tiles, int NT, int CH, bool kCarry>
__device__ __forceinline__ void scan_forward(const typename Tiles::Params& p) {
  constexpr int kSteps = Tiles::kSteps;
  const ScanShape& s = p.shape;
  const Place<CH> place(s);
  if (kCarry && place.chunk == s.chunks - 1) return;  // nothing comes after it
  Tiles tiles(p, place);

  float A[CH][NT], h[CH][NT] = {}, total[CH] = {};
  load_rates(s, place, A);
  if (!kCarry && place.chunk > 0)
    load_carry(s, place, place.chunk * s.carry_split - 1, h);

  const int first = place.first_tile(s);
  tiles.begin(first);
  tiles.advance(-1, first, first + 1 < place.end_tile(s) ? first + 1 : -1);
  if (!Tiles::kOneBarrier) tiles.request(tiles.ring(kTile));
  // One count says which tile and which step it is, which spares registers.
#pragma unroll 1
  for (int at = first * kTile; at < s.length; at += kSteps) {
    const int tile = static_cast<unsigned>(at) / kTile;
    const int step = static_cast<unsigned>(at) % kTile;
    if (step == 0) {
      const int end = Place<CH>::anew(s).end_tile(s);
      if (tile >= end) break;
      tiles.advance(tile, tile + 1 < end ? tile + 1 : -1,
                    tile + 2 < end ? tile + 2 : -1);
      if (Tiles::kOneBarrier) tiles.request(tiles.ring(0));
      if (!kCarry && s.states != nullptr && tile > 0) {
        const auto again = Place<CH>::anew(s);
        SavedStates<NT, CH>(s, again, tile)
            .each(s, [&](int i, int n, float* to) {
              if (again.active[i]) *to = h[i][n];
            });
      }
    }
    tiles.stay(tile);
    using Maps = MapRows<NT>;
    const Maps maps = tiles.maps();
    if (step % kGroup == 0) tiles.enter_group(step);
    float u[CH][kSteps], d[CH][kSteps];
    tiles.load(step, u, d);
    float y[CH][kSteps];
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      float input[CH];
#pragma unroll
      for (int i = 0; i < CH; ++i) {
        if (kCarry) total[i] += d[i][t];
        input[i] = step_input(d[i][t], u[i][t]);
        y[i][t] = tiles.skip(i) * u[i][t];
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
            h[i][n] =
                fmaf(exp2_approx(d[i][t] * A[i][n]), h[i][n], input[i] * B[j]);
            y[i][t] = fmaf(h[i][n], C[j], y[i][t]);
          }
        }
      }
    }
    // Where registers are few, x waits for y to be gone.
    constexpr bool kEarly = kCarry || kSteps == kSub;
    const bool more = !Tiles::kOneBarrier || step + kSteps < kTile;
    if (kEarly && more) tiles.request(tiles.ring(step + kSteps));
    if (!kCarry) {
      if (!Maps::kOneLane && s.state_lanes > 1) {
#pragma unroll
        for (int i = 0; i < CH; ++i) {
#pragma unroll
          for (int t = 0; t < kSteps; ++t) {
            y[i][t] = sum_over_lanes(y[i][t], s.state_lanes);
          }
        }
      }
      tiles.store(step, y);
    }
    if (!kEarly && more) tiles.request(tiles.ring(step + kSteps));
    const bool last = (step + kSteps) % kGroup == 0 || at + kSteps >= s.length;
    if (!kCarry && last) tiles.leave_group(step / kGroup * kGroup);
  }
  const auto again = Place<CH>::anew(s);
  if (kCarry) {
    store_carry(s, again, total, h);
  } else if (again.chunk == s.chunks - 1) {
    tiles.store_last_state(again, h);
  }
}

}  // namespace mmvssm::cuda
