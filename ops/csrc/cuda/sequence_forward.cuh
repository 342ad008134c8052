// Forward scan of channel-first sequences.
#pragma once

#include "cuda/scan_forward.cuh"
#include "cuda/sequence_tiles.cuh"

namespace mmvssm::cuda {

template <typename T, int NT>
class SequenceForward : public SequenceTiles<T, NT> {
 public:
  using Params = SequenceForwardParams;
  using Base = SequenceTiles<T, NT>;

  __device__ __forceinline__ SequenceForward(const Params& p,
                                             const Place<1>& place)
      : Base(p.inputs, p.layout, p.shape, place), p_(p) {}

  // The output takes the place of the input in shared memory.
  __device__ __forceinline__ void store(int step, const float (&y)[1][kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) this->u_.own(step + t) = y[0][t];
  }

  __device__ __forceinline__ void leave_group(int step) {
    __syncwarp();
    this->u_.store(p_.y, this->tile() * kTile + step);
  }

  __device__ __forceinline__ void store_last_state(const Place<1>& place,
                                                   const float (&h)[1][NT]) {
    if (!place.active[0]) return;
    const ScanShape& s = this->shape_;
    const int n0 = place.state_lane * NT;
    const int64_t row = place.image(s) * s.channels + place.channel[0];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (n0 + n < s.d_state) {
        p_.last_state[row * s.d_state + n0 + n] = h[0][n];
      }
    }
  }

 private:
  const Params& p_;
};

// A lane has one channel here: CH is 1.
template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, NT == 1)
    sequence_forward_carry_kernel(const SequenceForwardParams p) {
  scan_forward<SequenceForward<T, NT>, NT, CH, true>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads, NT == 1)
    sequence_forward_kernel(const SequenceForwardParams p) {
  scan_forward<SequenceForward<T, NT>, NT, CH, false>(p);
}

}  // namespace mmvssm::cuda
