// Backward scan along routes over a channels-last map.
//
// Gradients of B and C leave it in the order of the steps, one array per part
// of the channels; those of the dt rank and of the step weights are matrix
// products of `d_raw_step`, which the host asks for afterwards.
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
    const ScanShape& s = p.shape;
    const int64_t row = first_row(s, place);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      d_raw_step_[i] =
          fixed_address(p.d_raw_step + row * s.channels + place.channel[i]);
      active_[i] = place.active[i];
      writes_[i] = place.writes(i);
    }
  }

  __device__ __forceinline__ void enter_group(int, bool) {}

  // dy, and none for threads past the last channel.
  __device__ __forceinline__ void load_grads(int step,
                                             float (&e)[CH][kSub]) const {
    dy_.load(this->offsets(1, this->ring(step)), e);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSub; ++t) e[i][t] = active_[i] ? e[i][t] : 0.0f;
    }
  }

  __device__ __forceinline__ void store_grads(
      int step, const float (&du)[CH][kSub],
      const float (&d_raw_step)[CH][kSub]) const {
    dx_.store(this->offsets(2, this->ring(step)), du);
    const int l = this->tile() * kTile + step;
    const int channels = this->shape_.channels;
    const int there = this->shape_.length - l;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      if (!writes_[i]) continue;
      float* to = d_raw_step_[i] + static_cast<int64_t>(l) * channels;
      if (there >= kSub) {
#pragma unroll
        for (int t = 0; t < kSub; ++t) to[t * channels] = d_raw_step[i][t];
      } else {
#pragma unroll
        for (int t = 0; t < kSub; ++t) {
          if (t < there) to[t * channels] = d_raw_step[i][t];
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

 private:
  // Of this block's route and image in arrays (K, Bt, L, .).
  static __device__ __forceinline__ int64_t first_row(const ScanShape& s,
                                                      const Place<CH>& place) {
    return (static_cast<int64_t>(place.route) * s.batch + place.batch) *
           s.length;
  }

  const Params& p_;
  const RouteColumns<T, CH> dy_, dx_;
  float* d_raw_step_[CH];
  bool active_[CH], writes_[CH];
};

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads)
    route_backward_carry_kernel(const RouteBackwardParams p) {
  scan_backward_carry<RouteBackward<T, NT, CH>, NT, CH>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, backward_blocks(CH))
    route_backward_kernel(const RouteBackwardParams p) {
  scan_backward<RouteBackward<T, NT, CH>, NT, CH>(p);
}

}  // namespace mmvssm::cuda
