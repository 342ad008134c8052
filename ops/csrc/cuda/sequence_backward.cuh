// Backward scan of channel-first sequences.
#pragma once

#include "cuda/scan_backward.cuh"
#include "cuda/sequence_tiles.cuh"

namespace mmvssm::cuda {

template <typename T, int NT>
class SequenceBackward : public SequenceTiles<T, NT> {
 public:
  using Params = SequenceBackwardParams;
  using Base = SequenceTiles<T, NT>;

  __device__ __forceinline__ SequenceBackward(const Params& p,
                                              const Place<1>& place)
      : Base(p.inputs, p.layout, p.shape, place),
        p_(p),
        dy_(p.layout.dy, p.shape, place) {}

  __device__ __forceinline__ void enter_group(int step, bool with_grads) {
    Base::enter_group(step);
    if (with_grads) {
      dy_.load(p_.dy, this->tile() * kTile + step);
      __syncwarp();
    }
  }

  __device__ __forceinline__ void load_grads(int step, float (&e)[1][kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) e[0][t] = dy_.own(step + t);
  }

  // The gradients take the place of u and delta in shared memory.
  __device__ __forceinline__ void store_grads(
      int step, const float (&du)[1][kSub],
      const float (&d_raw_step)[1][kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      this->u_.own(step + t) = du[0][t];
      this->delta_.own(step + t) = d_raw_step[0][t];
    }
  }

  __device__ __forceinline__ void leave_group(int step) {
    const int l = this->tile() * kTile + step;
    __syncwarp();
    this->u_.store(p_.du, l);
    this->delta_.store(p_.ddelta, l);
  }

  __device__ __forceinline__ void store_sums(int64_t, int) const {}

  // Adds the warps up for `steps` (a power of two) steps from `step` on.
  __device__ __forceinline__ void flush(int step, int steps) const {
    const ScanShape& s = this->shape_;
    const int states = NT * s.state_lanes;
    const int64_t maps = this->place_.part * p_.part_stride +
                         this->place_.image(s) * s.d_state * s.length;
    const int shift = __ffs(steps) - 1;
    const int first = this->tile() * kTile + step;
#pragma unroll 1
    for (int i = threadIdx.x; i < 2 * states * steps; i += blockDim.x) {
      const int column = i >> shift;
      const int l = first + (i & (steps - 1));
      const bool is_B = column < states;
      const int n = is_B ? column : column - states;
      if (n >= s.d_state || l >= s.length) continue;
      float* to = is_B ? p_.dB : p_.dC;
      to[maps + n * s.length + l] =
          warp_sums(p_.backward, (i & (steps - 1)) * 2 * states + column,
                    2 * states * steps);
    }
  }

 private:
  const Params& p_;
  OwnRows<T> dy_;
};

// A lane has one channel here: CH is 1.
template <typename T, int NT, int CH>
__global__ void __launch_bounds__(kMaxThreads)
    sequence_backward_carry_kernel(const SequenceBackwardParams p) {
  scan_backward_carry<SequenceBackward<T, NT>, NT, CH>(p);
}

template <typename T, int NT, int CH>
__global__ void __launch_bounds__(max_threads(NT, true),
                                  backward_blocks(NT, CH))
    sequence_backward_kernel(const SequenceBackwardParams p) {
  scan_backward<SequenceBackward<T, NT>, NT, CH>(p);
}

}  // namespace mmvssm::cuda
