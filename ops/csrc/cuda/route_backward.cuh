// Backward scan along routes over a channels-last map.
//
// Gradients of B and C leave it in the order of the steps, one array per part
// of the channels. Those of the step weights are added up in shared memory over
// the chunk; that of the dt rank is a matrix product of `d_raw_step`, which the
// host asks for afterwards.
#pragma once

#include "cuda/route_tiles.cuh"
#include "cuda/scan_backward.cuh"

namespace mmvssm::cuda {

template <typename T, int NT, int CH>
class RouteBackward : public RouteTiles<T, NT, CH, 3> {
 public:
  using Params = RouteBackwardParams;
  using Base = RouteTiles<T, NT, CH, 3>;

  __device__ __forceinline__ RouteBackward(const Params& p,
                                           const Place<CH>& place)
      : Base(p.inputs, p.layout, p.shape, place),
        p_(p),
        dy_(p.dy, place),
        dx_(p.dx, place) {
    this->rows_[1] = &p.dy;
    this->from_out_[1] = true;
    this->rows_[2] = &p.dx;
    this->from_out_[2] = false;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      active_[i] = place.active[i];
      d_raw_step_[i] = raw_steps(place, i);
#pragma unroll 1
      for (int quad = 0; quad < p.layout.rank_quads; ++quad) {
        *reinterpret_cast<float4*>(weight_sums(quad, i)) = float4{};
      }
    }
  }

  __device__ __forceinline__ void enter_group(int, bool) {}

  // Starts loading dy at kSub steps, from a place in the ring on.
  __device__ __forceinline__ void request_grads(int at) {
    if (!kAnew) dy_.request(this->offsets(1, at), coming_dy_);
  }
  // dy as last requested, and none for threads past the last channel.
  __device__ __forceinline__ void load_grads(int step,
                                             float (&e)[CH][kSub]) const {
    if constexpr (kAnew) {
      const Columns dy(p_.dy, Place<CH>::anew(this->shape_));
      uint32_t bits[CH][kSub];
      dy.request(this->offsets(1, this->ring(step)), bits);
      dy.convert(bits, e);
    } else {
      dy_.convert(coming_dy_, e);
    }
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSub; ++t) e[i][t] = active_[i] ? e[i][t] : 0.0f;
    }
  }

  __device__ __forceinline__ void store_grads(
      int step, const float (&du)[CH][kSub],
      const float (&d_raw_step)[CH][kSub]) const {
    add_to_weight_sums(step, d_raw_step);
    const ScanShape& s = this->shape_;
    const auto place = kAnew ? Place<CH>::anew(s) : this->place_;
    (kAnew ? Columns(p_.dx, place) : dx_)
        .store(this->offsets(2, this->ring(step)), du);
    const int l = this->tile() * kTile + step;
    const int there = s.length - l;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      if (!place.writes(i)) continue;
      float* to = (kAnew ? raw_steps(place, i) : d_raw_step_[i]) +
                  static_cast<int64_t>(l) * s.channels;
      if (there >= kSub) {
#pragma unroll
        for (int t = 0; t < kSub; ++t) to[t * s.channels] = d_raw_step[i][t];
      } else {
#pragma unroll
        for (int t = 0; t < kSub; ++t) {
          if (t < there) to[t * s.channels] = d_raw_step[i][t];
        }
      }
    }
  }

  // Adds the warps up for `steps` steps from `step` on: rows of all columns lie
  // side by side here and there.
  __device__ __forceinline__ void flush(int step, int steps) const {
    const ScanShape& s = this->shape_;
    const auto place = Place<CH>::anew(s);
    const int columns = 2 * NT * s.state_lanes;
    const int l = this->tile() * kTile + step;
    const int count = steps * columns;
    const int there = min(steps, s.length - l) * columns;
    float* to = p_.map_grads + place.part * p_.part_stride +
                (first_row(s, place) + l) * columns;
#pragma unroll 1
    for (int i = thread_anew(); i < there; i += blockDim.x) {
      to[i] = warp_sums(p_.backward, i, count);
    }
  }

  __device__ __forceinline__ void leave_group(int) {}

  // What the chunk gives to the gradients of the step weights of channel i,
  // which is `row` among those of all routes and pieces.
  __device__ __forceinline__ void store_sums(int64_t row, int i) const {
    const int rank = this->in_.dt_rank, padding = this->rank_padding();
    float* to = p_.ddt_weight + row * rank;
#pragma unroll 1
    for (int r = 0; r < rank; ++r) {
      const int c = r + padding;
      to[r] =
          this->own_quad(p_.layout.weight_sums, c / 4, i, thread_anew())[c % 4];
    }
  }

 private:
  __device__ __forceinline__ float* weight_sums(int quad, int i) const {
    return this->own_quad(p_.layout.weight_sums, quad, i);
  }
  __device__ __forceinline__ void add_to_weight_sums(
      int step, const float (&d_raw_step)[CH][kSub]) const {
#pragma unroll 1
    for (int quad = 0; quad < p_.layout.rank_quads; ++quad) {
      float share[CH][4] = {};
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float q[4];
        read_broadcast<4>(this->ranks(quad, step + t), q);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            share[i][j] = fmaf(d_raw_step[i][t], q[j], share[i][j]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < CH; ++i) {
        auto* to = reinterpret_cast<float4*>(weight_sums(quad, i));
        const float4 sum = *to;
        *to = {sum.x + share[i][0], sum.y + share[i][1], sum.z + share[i][2],
               sum.w + share[i][3]};
      }
    }
  }

  // Of this block's route and image in arrays (K, Bt, L, .).
  static __device__ __forceinline__ int64_t first_row(const ScanShape& s,
                                                      const Place<CH>& place) {
    return (static_cast<int64_t>(place.route) * s.batch + place.batch) *
           s.length;
  }

  __device__ __forceinline__ float* raw_steps(const Place<CH>& place,
                                              int i) const {
    const ScanShape& s = this->shape_;
    return fixed_address(p_.d_raw_step + first_row(s, place) * s.channels +
                         place.channel[i]);
  }

  // With 16 states registers are few, so that what depends on the thread alone
  // is worked out again instead, and dy not loaded ahead.
  static constexpr bool kAnew = NT == 16;
  using Columns = RouteColumns<T, CH>;

  const Params& p_;
  const Columns dy_, dx_;
  float* d_raw_step_[CH];
  bool active_[CH];
  uint32_t coming_dy_[CH][kSub];
};

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(max_threads(NT, true))
    route_backward_carry_kernel(const RouteBackwardParams p) {
  scan_backward_carry<RouteBackward<T, NT, CH>, NT, CH>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(max_threads(NT, true),
                                  backward_blocks(NT, CH))
    route_backward_kernel(const RouteBackwardParams p) {
  scan_backward<RouteBackward<T, NT, CH>, NT, CH>(p);
}

}  // namespace mmvssm::cuda
