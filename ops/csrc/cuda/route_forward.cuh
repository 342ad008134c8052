// Forward scan along routes over a channels-last map.
#pragma once

#include "cuda/route_tiles.cuh"
#include "cuda/scan_forward.cuh"

namespace mmvssm::cuda {

template <typename T, int NT, int CH>
class RouteForward : public RouteTiles<T, NT, CH, 2> {
 public:
  using Params = RouteForwardParams;
  using Base = RouteTiles<T, NT, CH, 2>;

  __device__ __forceinline__ RouteForward(const Params& p,
                                          const Place<CH>& place)
      : Base(p.inputs, p.layout, p.shape, place), y_(p.y, place) {
    this->rows_[1] = &p.y;
    this->from_out_[1] = true;
  }

  __device__ __forceinline__ void store(int step,
                                        const float (&y)[CH][kSub]) const {
    y_.store(this->offsets(1, this->ring(step)), y);
  }
  __device__ __forceinline__ void store_last_state(const Place<CH>&,
                                                   const float (&)[CH][NT]) {}

 private:
  const RouteColumns<T, CH> y_;
};

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, forward_blocks(NT))
    route_forward_carry_kernel(const RouteForwardParams p) {
  scan_forward<RouteForward<T, NT, CH>, NT, CH, true>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, forward_blocks(NT))
    route_forward_kernel(const RouteForwardParams p) {
  scan_forward<RouteForward<T, NT, CH>, NT, CH, false>(p);
}

}  // namespace mmvssm::cuda
