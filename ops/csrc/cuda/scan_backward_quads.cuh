// The backward scan of 9 to 16 states along routes; see scan_backward.cuh for
// what it computes. Sequences stay there: here they would need more registers.
//
// Four neighbours, a quad, share four channels of 16 states: each lane has four
// states of all four channels, a square of 16. So a lane reads a quarter of B
// and C, adds four channels up before lanes add theirs up, and yet everything
// that is once a channel (step size, x, dy, and what is written) is done by one
// lane, the channel's own. What a lane tells the others of its channel goes
// through shared memory, as do the sums over the warp. What a channel gets from
// four lanes takes three shuffles: square i of a lane is the channel of the
// lane whose number differs in the bits of i, so that at each exchange all
// lanes give the same registers away.
//
// The state before every kSub steps waits in global memory, written and soon
// read by the same thread, which L2 serves: 2 * 16 / kSub floats a channel and
// step. Within kSub steps registers hold the state before every other step.
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

template <typename Tiles>
class BackwardQuads {
 public:
  using Params = typename Tiles::Params;

  __device__ __forceinline__ BackwardQuads(const Params& p, Tiles& tiles)
      : p_(p), tiles_(tiles) {}

  __device__ __forceinline__ void run() {
    const ScanShape& s = p_.shape;
    each_state([&](int i, int n, const Place<1>& of, int state) {
      const bool there = state < s.d_state;
      A_[i][n] =
          there ? s.A[static_cast<int64_t>(of.row(s, 0)) * s.d_state + state]
                : 0.0f;
      g_[i][n] = 0.0f;
      if (!there || !of.active[0]) return;
      if (of.chunk == s.chunks - 1) return;
      g_[i][n] =
          *carry_entry(s, of, (of.chunk + 1) * s.carry_split, 1 + state, 0);
    });
    const auto place = Place<1>::anew(s);
    total(kSkip) = s.D != nullptr ? s.D[place.row(s, 0)] : 0.0f;
    total(kD) = total(kBias) = 0.0f;
    write_state(dA_, marks(kTotals));

    const int last = place.end_tile(s) - 1;
    tiles_.begin(last);
    advance(last + 1);
    tiles_.request(tiles_.ring(kTile));
#pragma unroll 1
    for (int tile = last; tile >= Place<1>::anew(s).first_tile(s);
         tile = tiles_.tile() - 1) {
      advance(tile);
      visit(tile);
      add_totals();
    }
    store_sums();
  }

 private:
  static constexpr int kSide = 4;  // lanes, channels, states of a lane
  static constexpr int kFlush = BackwardLayout::flush_steps(kSide * kSide);
  static constexpr int kColumns = 2 * kSide * kSide;  // B and C of all states
  static constexpr int kTotals = kTile / kSub;        // after the marks

  // To `tile`, or to before the chunk's last one.
  __device__ __forceinline__ void advance(int tile) {
    const auto here = Place<1>::anew(p_.shape);
    const int first = here.first_tile(p_.shape);
    tiles_.advance(tile < here.end_tile(p_.shape) ? tile : -1,
                   tile - 1 >= first ? tile - 1 : -1,
                   tile - 2 >= first ? tile - 2 : -1);
  }

  // visit(i, n, the place of channel i's own lane, state) for a lane's square.
  template <typename Visit>
  __device__ __forceinline__ void each_state(const Visit& visit) const {
    const int thread = thread_anew();
    Place<1> of(p_.shape, block_anew(), thread);
    const int own = of.part * static_cast<int>(blockDim.x) + thread;
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      of.active[0] = (own ^ i) < p_.shape.channels;
      of.channel[0] = of.active[0] ? own ^ i : p_.shape.channels - 1;
#pragma unroll
      for (int n = 0; n < kSide; ++n) {
        visit(i, n, of, thread % kSide * kSide + n);
      }
    }
  }

  __device__ __forceinline__ void visit(int tile) {
    const ScanShape& s = p_.shape;
    float h[kSide][kSide];
    const int64_t before =
        (Place<1>::anew(s).image(s) * ((s.length - 1) / kTile) + tile - 1) *
        s.d_state;
    const int saved = min(tile, 1) * s.d_state;  // none before the first tile
    each_state([&](int i, int n, const Place<1>& of, int state) {
      h[i][n] = state < saved
                    ? s.states[(before + state) * s.channels + of.channel[0]]
                    : 0.0f;
    });
    const MapRows<kSide> maps = tiles_.quad_maps(threadIdx.x % kSide);
    const int subs = subs_of_tile(s, tile);
#pragma unroll 1
    for (int sub = 0; sub < subs; ++sub) {
      write_state(h, marks(sub));
      if (sub == subs - 1) break;
      const int step = sub * kSub;
      if (step % kGroup == 0) tiles_.enter_group(step, false);
      float u[1][kSub], d[1][kSub];
      tiles_.load(step, u, d);
      tell_steps(u[0], d[0]);
      __syncwarp();
#pragma unroll
      for (int t = 0; t < kSub; t += 2) {
        scan_pair(step + t, t / 2, maps, h);
        __syncwarp();
      }
      tiles_.request(tiles_.ring(step + kSub));
    }
    walk_back<kFlush>(tiles_, subs, [&](int step, int next) {
      sweep(step, maps);
      tiles_.request(next);
    });
  }

  // The state of channel i that enters a sub, of this lane's states, or, of
  // kTotals, the chunk's gradient of A.
  __device__ __forceinline__ float4* marks(int sub) const {
    const int thread = thread_anew(), warps = blockDim.x / 32;
    const int64_t at =
        (static_cast<int64_t>(block_anew()) * (kTotals + 1) + sub) * warps +
        thread / 32;
    return fixed_address(reinterpret_cast<float4*>(p_.shape.marks) +
                         at * (32 * kSide) + thread % 32);
  }

  // What a warp has for itself, of this lane and, of channel i, its own lane.
  __device__ __forceinline__ float* warp_array(int offset) const {
    return shared_array<float>(p_.backward.warps) +
           threadIdx.x / 32 * QuadLayout::kFloats + offset;
  }
  // What the own lane of channel i tells of steps 2 * pair and the next one:
  // step size and input; dy; and what it keeps for itself.
  __device__ __forceinline__ float4& told_steps(int pair, int i) const {
    return reinterpret_cast<float4*>(
        warp_array(QuadLayout::kSteps))[pair * 32 + (threadIdx.x % 32 ^ i)];
  }
  __device__ __forceinline__ float4& own_steps(int pair) const {
    return reinterpret_cast<float4*>(
        warp_array(QuadLayout::kOwn))[pair * 32 + threadIdx.x % 32];
  }
  __device__ __forceinline__ float2& told_grads(int pair, int i) const {
    return reinterpret_cast<float2*>(
        warp_array(QuadLayout::kGrads))[pair * 32 + (threadIdx.x % 32 ^ i)];
  }
  // The state before pair 1 or 2, which this lane will need again.
  __device__ __forceinline__ float4* kept_state(int pair) const {
    return reinterpret_cast<float4*>(warp_array(QuadLayout::kBefore)) +
           (pair - 1) * 32 * kSide + threadIdx.x % 32;
  }
  __device__ __forceinline__ void tell_steps(const float (&u)[kSub],
                                             const float (&d)[kSub]) const {
#pragma unroll
    for (int t = 0; t < kSub; t += 2) {
      told_steps(t / 2, 0) = {d[t], step_input(d[t], u[t]), d[t + 1],
                              step_input(d[t + 1], u[t + 1])};
    }
  }

  // Two steps forward.
  __device__ __forceinline__ void scan_pair(int step, int pair,
                                            const MapRows<kSide>& maps,
                                            float (&h)[kSide][kSide]) const {
    float B0[kSide], B1[kSide];
    maps.read_B(step, B0);
    maps.read_B(step + 1, B1);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const float4 told = told_steps(pair, i);
      step_state<kSide>(A_[i], told.x, told.y, B0, h[i]);
      step_state<kSide>(A_[i], told.z, told.w, B1, h[i]);
      __syncwarp();
    }
  }

  __device__ __forceinline__ void sweep(int step, const MapRows<kSide>& maps) {
    const int sub = step / kSub;
    {
      float e[1][kSub];
      tiles_.load_grads(step, e);
#pragma unroll
      for (int t = 0; t < kSub; t += 2) {
        told_grads(t / 2, 0) = {e[0][t], e[0][t + 1]};
      }
    }
    {
      float u[1][kSub], d[1][kSub], slope[1][kSub];
      tiles_.load(step, u, d, slope);
      tell_steps(u[0], d[0]);
      float by_D = 0.0f;
#pragma unroll
      for (int t = 0; t < kSub; t += 2) {
        const float2 e = told_grads(t / 2, 0);
        by_D = fmaf(e.x, u[0][t], fmaf(e.y, u[0][t + 1], by_D));
        own_steps(t / 2) = {u[0][t], slope[0][t], u[0][t + 1], slope[0][t + 1]};
      }
      total(kD) += by_D;
    }
    __syncwarp();
    float h[kSide][kSide];
    read_state(marks(sub), h);
#pragma unroll
    for (int pair = 0; pair + 1 < kSub / 2; ++pair) {
      scan_pair(step + 2 * pair, pair, maps, h);
      __syncwarp();  // nothing of the next pair is loaded before
      if (pair + 2 < kSub / 2) write_state(h, kept_state(pair + 1));
    }
    __syncwarp();
#pragma unroll
    for (int pair = kSub / 2 - 1; pair >= 0; --pair) {
      // Read again, they cost no registers meanwhile.
      if (pair == 1 || pair == 2) read_state(kept_state(pair), h);
      if (pair == 0) read_state(marks(sub), h);
      sweep_pair(step, pair, maps, h);
    }
    float du[1][kSub], d_raw_step[1][kSub], by_bias = 0.0f;
    const float skip = total(kSkip);
#pragma unroll
    for (int t = 0; t < kSub; t += 2) {
      const float4 own = own_steps(t / 2);
      const float2 e = told_grads(t / 2, 0);
      du[0][t] = fmaf(skip, e.x, own.x);
      du[0][t + 1] = fmaf(skip, e.y, own.z);
      d_raw_step[0][t] = own.y;
      d_raw_step[0][t + 1] = own.w;
      by_bias += own.y + own.w;
    }
    total(kBias) += by_bias;
    tiles_.store_grads(step, du, d_raw_step);
  }
  // From and to places that are a warp apart for each channel.
  static __device__ __forceinline__ void read_state(const float4* from,
                                                    float (&h)[kSide][kSide]) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const float4 v = from[32 * i];
      h[i][0] = v.x;
      h[i][1] = v.y;
      h[i][2] = v.z;
      h[i][3] = v.w;
    }
  }
  static __device__ __forceinline__ void write_state(
      const float (&h)[kSide][kSide], float4* to) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      to[32 * i] = {h[i][0], h[i][1], h[i][2], h[i][3]};
    }
  }

  // Back over two steps, from the state before them.
  __device__ __forceinline__ void sweep_pair(
      int first, int pair, const MapRows<kSide>& maps,
      const float (&before)[kSide][kSide]) {
    const int step = first + 2 * pair;
    // Sums over this lane's states: of g B, and of A g a h_before.
    float by_B0[kSide] = {}, by_decay0[kSide] = {};
    float by_B1[kSide] = {}, by_decay1[kSide] = {};
    float B0[kSide], C0[kSide], B1[kSide], C1[kSide];
    maps.read(step, B0, C0);
    maps.read(step + 1, B1, C1);
    float dB0[kSide] = {}, dC0[kSide] = {}, dB1[kSide] = {}, dC1[kSide] = {};
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const float4 told = told_steps(pair, i);
      const float d0 = told.x, input0 = told.y;
      const float d1 = told.z, input1 = told.w;
      const float2 e = told_grads(pair, i);
#pragma unroll
      for (int n = 0; n < kSide; ++n) {
        const float A = A_[i][n];
        const float decay0 = exp2_approx(d0 * A);
        const float between = fmaf(decay0, before[i][n], input0 * B0[n]);
        const float decay1 = exp2_approx(d1 * A);
        const float after = fmaf(decay1, between, input1 * B1[n]);

        const float g1 = fmaf(e.y, C1[n], g_[i][n]);
        dB1[n] = fmaf(g1, input1, dB1[n]);
        dC1[n] = fmaf(e.y, after, dC1[n]);
        by_B1[i] = fmaf(g1, B1[n], by_B1[i]);
        const float left1 = g1 * decay1;
        const float kept1 = left1 * between;
        by_decay1[i] = fmaf(A, kept1, by_decay1[i]);

        const float g0 = fmaf(e.x, C0[n], left1);
        dB0[n] = fmaf(g0, input0, dB0[n]);
        dC0[n] = fmaf(e.x, between, dC0[n]);
        by_B0[i] = fmaf(g0, B0[n], by_B0[i]);
        const float left0 = g0 * decay0;
        const float kept0 = left0 * before[i][n];
        by_decay0[i] = fmaf(A, kept0, by_decay0[i]);

        dA_[i][n] = fmaf(d0, kept0, fmaf(d1, kept1, dA_[i][n]));
        g_[i][n] = left0;
      }
      __syncwarp();  // nothing of the next channel is loaded before
    }
    put_down(0, dB0, dC0);
    put_down(1, dB1, dC1);
    __syncwarp();
    add_lanes(step % kFlush);
    // For this lane's channel, in place of u and the slope: du without the
    // share of the skip weight, and the gradient of what softplus is applied
    // to.
    const float4 told = told_steps(pair, 0), own = own_steps(pair);
    const float own_B1 = of_own(by_B1), own_B0 = of_own(by_B0);
    own_steps(pair) = {told.x * (own_B0 * kLn2),
                       fmaf(own.x, own_B0, of_own(by_decay0)) * own.y,
                       told.z * (own_B1 * kLn2),
                       fmaf(own.z, own_B1, of_own(by_decay1)) * own.w};
    __syncwarp();
  }

  // The sum over a quad for the channel of this lane.
  static __device__ __forceinline__ float of_own(const float (&sums)[kSide]) {
    const float own = sums[0] + __shfl_xor_sync(kFullWarp, sums[2], 2);
    const float next = sums[1] + __shfl_xor_sync(kFullWarp, sums[3], 2);
    return own + __shfl_xor_sync(kFullWarp, next, 1);
  }

  // A lane's share of dB and dC of a step of a pair.
  __device__ __forceinline__ void put_down(int step, const float (&dB)[kSide],
                                           const float (&dC)[kSide]) const {
    float* to = warp_array(QuadLayout::kLanes + 2 * step * QuadLayout::kPitch) +
                threadIdx.x % 32 * kSide;
    *reinterpret_cast<float4*>(to) = {dB[0], dB[1], dB[2], dB[3]};
    *reinterpret_cast<float4*>(to + QuadLayout::kPitch) = {dC[0], dC[1], dC[2],
                                                           dC[3]};
  }
  // Adds the quads up: a lane takes two columns of a step, in their order.
  __device__ __forceinline__ void add_lanes(int row) const {
    const int lane = threadIdx.x % 32;
    const float* from = warp_array(QuadLayout::kLanes) +
                        lane / 8 * QuadLayout::kPitch + lane % 8 * 2;
    float2 sum = {};
#pragma unroll
    for (int quad = 0; quad < 32 / kSide; ++quad) {
      const auto v =
          *reinterpret_cast<const float2*>(from + quad * kSide * kSide);
      sum.x += v.x;
      sum.y += v.y;
    }
    float* to = shared_array<float>(p_.backward.sums) +
                threadIdx.x / 32 * (kFlush * kColumns) + row * kColumns +
                2 * lane;
    *reinterpret_cast<float2*>(to) = sum;
  }

  // Adds what a tile gave to the gradient of A to the chunk's, which waits with
  // the marks: one sum over all steps would round more.
  __device__ __forceinline__ void add_totals() {
    float sum[kSide][kSide];
    read_state(marks(kTotals), sum);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int n = 0; n < kSide; ++n) {
        sum[i][n] += dA_[i][n];
        dA_[i][n] = 0.0f;
      }
    }
    write_state(sum, marks(kTotals));
  }
  // Of this lane's channel: its skip weight; sums over the chunk.
  static constexpr int kSkip = 0, kD = 1, kBias = 2;
  __device__ __forceinline__ float& total(int which) const {
    return total(which, threadIdx.x);
  }
  __device__ __forceinline__ float& total(int which, int thread) const {
    return shared_array<float>(p_.backward.totals)[which * blockDim.x + thread];
  }
  __device__ __forceinline__ void store_sums() const {
    const ScanShape& s = p_.shape;
    float sum[kSide][kSide];
    read_state(marks(kTotals), sum);
    each_state([&](int i, int n, const Place<1>& of, int state) {
      if (!of.active[0] || state >= s.d_state) return;
      p_.sums.dA[sum_row(s, of, 0) * s.d_state + state] = sum[i][n] * kLn2;
    });
    const auto place = Place<1>::anew(s);
    if (!place.active[0]) return;
    const int64_t row = sum_row(s, place, 0);
    tiles_.store_sums(row, 0);
    const int thread = thread_anew();
    if (p_.sums.dD != nullptr) p_.sums.dD[row] = total(kD, thread);
    if (p_.sums.dbias != nullptr) p_.sums.dbias[row] = total(kBias, thread);
  }

  const Params& p_;
  Tiles& tiles_;
  float A_[kSide][kSide];
  float g_[kSide][kSide];        // a_{l+1} g_{l+1} for the step l to come
  float dA_[kSide][kSide] = {};  // of this tile
};

}  // namespace mmvssm::cuda
