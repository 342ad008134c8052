// Forward scan along routes over a channels-last map.
#pragma once

#include "cuda/route_tiles.cuh"
#include "cuda/scan_forward.cuh"

namespace mmvssm::cuda {

// Steps of 16 states at a time: a multiprocessor shall hold as many warps as
// keep its exponentials busy, which leaves few registers.
template <int NT>
constexpr int kForwardSteps = NT == 16 ? 4 : kSub;

template <typename T, int NT, int CH>
class RouteForward : public RouteTiles<T, NT, CH, 2, kForwardSteps<NT>> {
 public:
  using Params = RouteForwardParams;
  using Base = RouteTiles<T, NT, CH, 2, kForwardSteps<NT>>;

  __device__ __forceinline__ RouteForward(const Params& p,
                                          const Place<CH>& place)
      : Base(p.inputs, p.layout, p.shape, place), y_(p.y, place) {
    this->rows_[1] = &p.y;
    this->from_out_[1] = true;
  }

  __device__ __forceinline__ void store(
      int step, const float (&y)[CH][Base::kSteps]) const {
    y_.store(this->offsets(1, this->ring(step)), y);
  }
  __device__ __forceinline__ void store_last_state(const Place<CH>&,
                                                   const float (&)[CH][NT]) {}

 private:
  const RouteColumns<T, CH> y_;
};

// Blocks that a multiprocessor shall hold at least. With one state registers
// abound: told that one block is enough, the compiler loads further ahead. With
// some more it would do so until it has to spill, so it is told nothing, 0.
template <int NT>
constexpr int kForwardBlocks = NT == 1    ? 1
                               : NT == 16 ? 6
                                          : 0;

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks<NT>)
    route_forward_carry_kernel(const RouteForwardParams p) {
  scan_forward<RouteForward<T, NT, CH>, NT, CH, true>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks<NT>)
    route_forward_kernel(const RouteForwardParams p) {
  scan_forward<RouteForward<T, NT, CH>, NT, CH, false>(p);
}

}  // namespace mmvssm::cuda
