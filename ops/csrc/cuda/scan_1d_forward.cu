// Forward scan of channel-first sequences.
#include "cuda/scan_forward.cuh"
#include "cuda/sequence_tiles.cuh"

namespace mmvssm::cuda {

struct SequenceForwardParams {
  ScanShape shape;
  SequenceInputs inputs;
  Rows y;
  float* last_state;  // (Bt, K*D, N)
};

template <typename T, int NT>
class SequenceForward : public SequenceTiles<T, NT> {
 public:
  using Params = SequenceForwardParams;
  using Base = SequenceTiles<T, NT>;

  __host__ __device__ SequenceForward(const Params& p, int threads,
                                      SharedArena& arena)
      : Base(p.inputs, p.shape, threads, arena),
        y_(p.y),
        last_state_(p.last_state) {}

  __device__ void attach(const Params&, const Place& place) {
    Base::attach(place);
  }

  // The output takes the place of the input in shared memory.
  __device__ __forceinline__ void store(int step, const float (&y)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) this->u_.own(step + t) = y[t];
  }

  __device__ void finish_tile(const Place& place) {
    __syncwarp();
    this->u_.store(y_, this->shape_, place, this->tile_, this->n0_ > 0);
  }

  __device__ void store_last_state(const Place& place, const float (&h)[NT]) {
    if (!place.active) return;
    const ScanShape& s = this->shape_;
    float* to =
        last_state_ + (place.image(s) * s.channels + place.channel) * s.d_state;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (this->n0_ + n < s.d_state) to[this->n0_ + n] = h[n];
    }
  }

 private:
  const Rows y_;
  float* last_state_;
};

template <typename T>
cudaError_t forward_of(const Scan1dArgs& args, Workspace& workspace,
                       cudaStream_t stream) {
  SequenceForwardParams p;
  p.shape = scan_shape(args, 32);
  p.inputs = sequence_inputs(args);
  p.y = sum_rows(args.y, args.y_type, args, kForwardStates, workspace);
  p.last_state = args.last_state;
  const cudaError_t status =
      with_forward_states(args.d_state, [&](auto states) {
        constexpr int NT = decltype(states)::value;
        return launch_forward<SequenceForward<T, NT>, NT>(args, p, stream);
      });
  if (status != cudaSuccess) return status;
  return convert_rows(p.y, args.y, args.y_type, args, stream);
}

cudaError_t scan_1d_forward(const Scan1dArgs& args, Workspace& workspace,
                            cudaStream_t stream) {
  return with_input_type(args.in_type, [&](auto input) {
    return forward_of<typename decltype(input)::type>(args, workspace, stream);
  });
}

}  // namespace mmvssm::cuda
