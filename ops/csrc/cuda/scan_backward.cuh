// The backward scan, for either form, its carry pass and its main pass. Tiles
// supplies what the form reads and writes: RouteBackward (route_backward.cuh),
// SequenceBackward (sequence_backward.cuh). The main pass of 9 to 16 states
// along routes is in scan_backward_quads.cuh.
//
// With e = dL/dy and a_l = exp(d_l A), per channel and state:
//   g_l = e_l C_l + a_{l+1} g_{l+1}          (dL/dh_l)
//   dC_l = e_l h_l,  dB_l = g_l d_l u_l      (summed over channels)
//   du_l = D e_l + d_l sum_n g_l B_l
//   dd_l = u_l sum_n g_l B_l + sum_n A g_l a_l h_{l-1}
//   dA = sum_l d_l g_l a_l h_{l-1},  dD = sum_l e_l u_l
// d is kept times log2(e), see scan_math.cuh.
//
// What enters a chunk from its right is a_{l+1} g_{l+1} of its last step; the
// carry pass finds what a chunk hands on to its left if nothing enters:
//   sum_l 2^(A (d_first + ... + d_l)) e_l C_l.
// The states h are not kept: tile after tile from the end, a thread scans
// forward from the saved state, marks the state that enters each kSub steps,
// and then goes back, scanning kSub steps once more into registers before it
// sweeps over them.
#pragma once

#include "cuda/scan_backward_quads.cuh"

namespace mmvssm::cuda {

template <typename Tiles, int NT, int CH>
__device__ __forceinline__ void scan_backward_carry(
    const typename Tiles::Params& p) {
  const ScanShape& s = p.shape;
  const Place<CH> place(s);
  if (place.chunk == 0) return;  // nothing comes before it
  Tiles tiles(p, place);
  float A[CH][NT], out[CH][NT] = {}, total[CH] = {};
  load_rates(s, place, A);

  const int first = place.first_tile(s);
  const int end = place.end_tile(s);
  tiles.begin(first);
#pragma unroll 1
  for (int tile = first - 1; tile < end; ++tile) {
    tiles.advance(tile >= first ? tile : -1, tile + 1 < end ? tile + 1 : -1,
                  tile + 2 < end ? tile + 2 : -1);
    if (tile < first) continue;
    const MapRows<NT> maps = tiles.maps();
    const int subs = subs_of_tile(s, tile);
#pragma unroll 1
    for (int sub = 0; sub < subs; ++sub) {
      const int step = sub * kSub;
      if (step % kGroup == 0) tiles.enter_group(step, true);
      float e[CH][kSub], d[CH][kSub];
      tiles.request_grads(tiles.ring(step));
      tiles.load_steps(step, d);
      tiles.load_grads(step, e);
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float C[NT];
        maps.read_C(step + t, C);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          total[i] += d[i][t];
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            out[i][n] = fmaf(exp2_approx(total[i] * A[i][n]), e[i][t] * C[n],
                             out[i][n]);
          }
        }
      }
    }
  }
  store_carry(s, Place<CH>::anew(s), total, out);
}

template <typename Tiles, int NT, int CH>
class BackwardThread {
 public:
  using Params = typename Tiles::Params;

  __device__ __forceinline__ BackwardThread(const Params& p,
                                            const Place<CH>& place,
                                            Tiles& tiles)
      : p_(p), place_(place), tiles_(tiles) {}

  __device__ __forceinline__ void run() {
    const ScanShape& s = p_.shape;
    load_rates(s, place_, A_);
    if (place_.chunk < s.chunks - 1) {
      load_carry(s, place_, (place_.chunk + 1) * s.carry_split, g_);
    }
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      skip_[i] = s.D != nullptr ? s.D[place_.row(s, i)] : 0.0f;
      // Threads past the last channel add nothing to the sums over channels.
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        g_[i][n] = place_.active[i] ? g_[i][n] : 0.0f;
      }
    }

    const int first = place_.first_tile(s);
    const int last = place_.end_tile(s) - 1;
    tiles_.begin(last);
#pragma unroll 1
    for (int tile = last + 1; tile >= first; --tile) {
      tiles_.advance(tile <= last ? tile : -1,
                     tile - 1 >= first ? tile - 1 : -1,
                     tile - 2 >= first ? tile - 2 : -1);
      if (tile > last) {
        tiles_.request(tiles_.ring(kTile));
      } else {
        visit(tile);
        add_totals(tile == last);
      }
    }
    store_sums();
  }

 private:
  static constexpr int kFlush = BackwardLayout::flush_steps(NT);

  __device__ __forceinline__ void visit(int tile) {
    const ScanShape& s = p_.shape;
    float h[CH][NT] = {};
    if (tile > 0) {
      SavedStates<NT, CH>(s, Place<CH>::anew(s), tile)
          .each(s, [&](int i, int n, const float* from) { h[i][n] = *from; });
    }
    const MapRows<NT> maps = tiles_.maps();
    const int subs = subs_of_tile(s, tile);
    tiles_.request_grads(tiles_.ring((subs - 1) * kSub));
#pragma unroll 1
    for (int sub = 0; sub < subs; ++sub) {
      mark_state(sub, h);
      if (sub == subs - 1) break;
      const int step = sub * kSub;
      if (step % kGroup == 0) tiles_.enter_group(step, false);
      float u[CH][kSub], d[CH][kSub];
      tiles_.load(step, u, d);
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float B[NT];
        maps.read_B(step + t, B);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          step_state<NT>(A_[i], d[i][t], step_input(d[i][t], u[i][t]), B, h[i]);
        }
      }
      tiles_.request(tiles_.ring(step + kSub));
    }
    walk_back<kFlush>(tiles_, subs,
                      [&](int step, int next) { sweep(step, next, maps); });
  }

  __device__ __forceinline__ float& mark(int sub, int i, int n) {
    return shared_array<float>(
        p_.backward
            .marks)[((sub * CH + i) * NT + n) * blockDim.x + threadIdx.x];
  }
  __device__ __forceinline__ void mark_state(int sub,
                                             const float (&h)[CH][NT]) {
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int n = 0; n < NT; ++n) mark(sub, i, n) = h[i][n];
    }
  }

  struct Steps {
    float u[CH][kSub], d[CH][kSub], slope[CH][kSub], e[CH][kSub];
    float sums[16];
  };

  // Scans kSub steps into registers, then goes back over them. With one state,
  // registers hold the state before every step; with more, before every other
  // step, and the one between is made again with a decay that is needed
  // in reverse anyway. du takes the place of u, the gradient of what softplus
  // is applied to that of d.
  __device__ __forceinline__ void sweep(int step, int next,
                                        const MapRows<NT>& maps) {
    constexpr int kept = NT == 1 ? 1 : 2;
    Steps steps;
    tiles_.load_grads(step, steps.e);
    tiles_.load(step, steps.u, steps.d, steps.slope);
    if (step > 0) tiles_.request_grads(next);
    tiles_.request(next);
    float before[kSub / kept][CH][NT];
    float decays[kSub / kept][CH][NT];  // with one state
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int n = 0; n < NT; ++n) before[0][i][n] = mark(step / kSub, i, n);
    }
    if constexpr (kept == 1) {
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float B[NT];
        maps.read_B(step + t, B);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          const float d = steps.d[i][t];
          decays[t][i][0] = exp2_approx(d * A_[i][0]);
          if (t < kSub - 1) {
            before[t + 1][i][0] = fmaf(decays[t][i][0], before[t][i][0],
                                       step_input(d, steps.u[i][t]) * B[0]);
          }
        }
      }
#pragma unroll
      for (int t = kSub - 1; t >= 0; --t) {
        sweep_step(step, t, maps, decays[t], before[t], steps);
      }
    } else {
#pragma unroll
      for (int t = 0; t < kSub - 2; ++t) {
        float B[NT];
        maps.read_B(step + t, B);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          const float d = steps.d[i][t];
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            if (t % 2 == 0) before[t / 2 + 1][i][n] = before[t / 2][i][n];
          }
          step_state<NT>(A_[i], d, step_input(d, steps.u[i][t]), B,
                         before[t / 2 + 1][i]);
        }
      }
#pragma unroll
      for (int t = kSub - 2; t >= 0; t -= 2) {
        float B[NT], decay[CH][NT], between[CH][NT], decay_after[CH][NT];
        maps.read_B(step + t, B);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          const float input = step_input(steps.d[i][t], steps.u[i][t]);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            decay[i][n] = exp2_approx(steps.d[i][t] * A_[i][n]);
            between[i][n] =
                fmaf(decay[i][n], before[t / 2][i][n], input * B[n]);
            decay_after[i][n] = exp2_approx(steps.d[i][t + 1] * A_[i][n]);
          }
        }
        sweep_step(step, t + 1, maps, decay_after, between, steps);
        sweep_step(step, t, maps, decay, before[t / 2], steps);
      }
    }
    tiles_.store_grads(step, steps.u, steps.d);
  }

  // Back over step t, from the state before it.
  __device__ __forceinline__ void sweep_step(int step, int t,
                                             const MapRows<NT>& maps,
                                             const float (&decay)[CH][NT],
                                             const float (&before)[CH][NT],
                                             Steps& steps) {
    // 16 sums over channels are taken at once: dB and dC of so many steps.
    constexpr int steps_at_once = 8 / NT;
    const int at = t % steps_at_once * 2 * NT;
    float B[NT], C[NT];
    maps.read(step + t, B, C);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      const float u = steps.u[i][t], d = steps.d[i][t], e = steps.e[i][t];
      const float input = step_input(d, u);
      float by_B = 0.0f;      // sum of g B
      float by_decay = 0.0f;  // sum of A g a h_before
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const float kept = decay[i][n] * before[i][n];
        const float g = fmaf(e, C[n], g_[i][n]);
        const float after = fmaf(input, B[n], kept);
        float& dB = steps.sums[at + n];
        float& dC = steps.sums[at + NT + n];
        dB = i == 0 ? g * input : fmaf(g, input, dB);
        dC = i == 0 ? e * after : fmaf(e, after, dC);
        by_B = fmaf(g, B[n], by_B);
        const float by_kept = g * kept;
        by_decay = fmaf(A_[i][n], by_kept, by_decay);
        dA_[i][n] = fmaf(d, by_kept, dA_[i][n]);
        g_[i][n] = g * decay[i][n];
      }
      if (NT > 1 && p_.shape.state_lanes > 1) {
        by_B = sum_over_lanes(by_B, p_.shape.state_lanes);
        by_decay = sum_over_lanes(by_decay, p_.shape.state_lanes);
      }
      const float d_raw_step = fmaf(u, by_B, by_decay) * steps.slope[i][t];
      steps.u[i][t] = fmaf(d, by_B * kLn2, skip_[i] * e);
      steps.d[i][t] = d_raw_step;
      dbias_[i] += d_raw_step;
      dD_[i] = fmaf(e, u, dD_[i]);
    }
    if (t % steps_at_once == 0) {
      const int columns = 2 * NT * p_.shape.state_lanes;
      float* sums =
          shared_array<float>(p_.backward.sums) +
          (threadIdx.x / 32 * kFlush + (step + t) % kFlush) * columns +
          place_.state_lane * NT;
      reduce16(steps.sums, NT == 1 ? 1 : p_.shape.state_lanes,
               [&](int value, float sum) {
                 const int column = value % (2 * NT);
                 sums[value / (2 * NT) * columns + column % NT +
                      (column < NT ? 0 : columns / 2)] = sum;
               });
    }
  }

  // Adds what a tile gave to the parameters' gradients to the chunk's totals:
  // one sum over all steps would round more. They wait in shared memory, where
  // they cost no registers.
  __device__ __forceinline__ void add_totals(bool is_first) {
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      const auto add = [&](int n, float& share) {
        float& sum = total(i, n);
        sum = is_first ? share : sum + share;
        share = 0.0f;
      };
#pragma unroll
      for (int n = 0; n < NT; ++n) add(n, dA_[i][n]);
      add(NT, dD_[i]);
      add(NT + 1, dbias_[i]);
    }
  }
  __device__ __forceinline__ float& total(int i, int n) {
    return total(i, n, threadIdx.x);
  }
  __device__ __forceinline__ float& total(int i, int n, int thread) {
    return shared_array<float>(
        p_.backward.totals)[(i * (NT + 2) + n) * blockDim.x + thread];
  }

  // The chunk's share of the parameters' gradients.
  __device__ __forceinline__ void store_sums() {
    const ScanShape& s = p_.shape;
    const auto place = Place<CH>::anew(s);
    const int thread = thread_anew();
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      if (!place.active[i]) continue;
      const int64_t row = sum_row(s, place, i);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int state = place.state_lane * NT + n;
        if (state < s.d_state) {
          p_.sums.dA[row * s.d_state + state] = total(i, n, thread) * kLn2;
        }
      }
      if (!place.writes(i)) continue;
      tiles_.store_sums(row, i);
      if (p_.sums.dD != nullptr) p_.sums.dD[row] = total(i, NT, thread);
      if (p_.sums.dbias != nullptr)
        p_.sums.dbias[row] = total(i, NT + 1, thread);
    }
  }

  const Params& p_;
  const Place<CH>& place_;
  Tiles& tiles_;
  float A_[CH][NT];
  float g_[CH][NT] = {};   // a_{l+1} g_{l+1} for the step l to come
  float dA_[CH][NT] = {};  // of this tile, as dD_ and dbias_
  float dD_[CH] = {}, dbias_[CH] = {}, skip_[CH];
};

template <typename Tiles, int NT, int CH>
__device__ __forceinline__ void scan_backward(const typename Tiles::Params& p) {
  const Place<CH> place(p.shape);
  Tiles tiles(p, place);
  if constexpr (NT == 16) {
    BackwardQuads<Tiles>(p, tiles).run();
  } else {
    BackwardThread<Tiles, NT, CH>(p, place, tiles).run();
  }
}

// What the warps of a block have put down for a step and column: `index` of
// [flush steps][columns].
__device__ __forceinline__ float warp_sums(const BackwardLayout& layout,
                                           int index, int count) {
  const float* sums = shared_array<float>(layout.sums) + index;
  float sum = 0.0f;
#pragma unroll 1
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
    sum += sums[warp * count];
  }
  return sum;
}

// Blocks of the most threads that shall fit a multiprocessor; it bounds
// registers. The other kernels are better off without: told how many may be
// used, the compiler loads ahead until it has to spill.
constexpr int backward_blocks(int states, int lane_channels) {
  return states >= 8 || lane_channels == 2 ? 2 : 3;
}

}  // namespace mmvssm::cuda
