// Backward scan of channel-first sequences.
#include "cuda/scan_backward.cuh"
#include "cuda/sequence_tiles.cuh"

namespace mmvssm::cuda {

struct SequenceBackwardParams {
  ScanShape shape;
  SequenceInputs inputs;
  ParamSums sums;
  Rows dy, du, ddelta;
  float *dB, *dC;       // (parts, Bt, K, N, L): of the channels of one block
  int64_t part_stride;  // Bt * K * N * L
};

template <typename T, int NT>
class SequenceBackward : public SequenceTiles<T, NT> {
 public:
  using Params = SequenceBackwardParams;
  using Base = SequenceTiles<T, NT>;

  __host__ __device__ SequenceBackward(const Params& p, int threads,
                                       SharedArena& arena)
      : Base(p.inputs, p.shape, threads, arena),
        dy_rows_(p.dy),
        du_rows_(p.du),
        ddelta_rows_(p.ddelta),
        dy_(threads, arena),
        sums_(2 * NT, threads, arena) {}

  __device__ void attach(const Params& p, const Place& place) {
    Base::attach(place);
    const int64_t maps = place.part * p.part_stride + place.image(p.shape) *
                                                          p.shape.d_state *
                                                          p.shape.length;
    dB_ = p.dB + maps;
    dC_ = p.dC + maps;
  }

  // A warp reads its own rows of dy: the barrier at the end of Base::advance
  // came before, a warp's own order is enough.
  __device__ void advance(const Place& place, int third) {
    Base::advance(place, third);
    dy_.load(dy_rows_, this->shape_, place, this->tile_);
    __syncwarp();
  }

  __device__ RowSums& sums() { return sums_; }

  __device__ __forceinline__ void load_grad(int step, float (&e)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) e[t] = dy_.own(step + t);
  }

  // The gradients take the place of u and delta in shared memory.
  __device__ __forceinline__ void store_grads(int step, const float (&du)[kSub],
                                              const float (&d_raw_step)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      this->u_.own(step + t) = du[t];
      this->delta_.own(step + t) = d_raw_step[t];
    }
    const ScanShape& s = this->shape_;
    sums_.flush(0, 2 * NT, [&](int t, int column, float sum) {
      const int n = this->n0_ + column % NT;
      const int l = this->tile_ * kTile + step + t;
      if (n >= s.d_state || l >= s.length) return;
      (column < NT ? dB_ : dC_)[n * s.length + l] = sum;
    });
  }

  // Nothing to wait for: flush() ends with a barrier.
  __device__ void finish_tile(const Place& place) {
    const bool again = this->n0_ > 0;
    this->u_.store(du_rows_, this->shape_, place, this->tile_, again);
    this->delta_.store(ddelta_rows_, this->shape_, place, this->tile_, again);
  }

  __device__ void finish(const Params&, const Place&) {}

 private:
  const Rows dy_rows_, du_rows_, ddelta_rows_;
  RowTile<T> dy_;
  RowSums sums_;
  float *dB_, *dC_;
};

template <typename T>
cudaError_t backward_of(const Scan1dArgs& args, Workspace& workspace,
                        cudaStream_t stream) {
  BatchSums batch_sums(args.batch, workspace, stream);
  SequenceBackwardParams p;
  p.shape = scan_shape(args, 32);
  p.inputs = sequence_inputs(args);
  p.sums = batch_sums.of(args);
  p.dy = {const_cast<void*>(args.dy), args.y_type == DType::kFloat};
  p.du = sum_rows(args.du, args.in_type, args, kBackwardStates, workspace);
  p.ddelta =
      sum_rows(args.ddelta, args.in_type, args, kBackwardStates, workspace);
  p.part_stride = args.batch * args.num_routes * args.d_state * args.length;

  int64_t num_parts = 0;
  const auto prepare = [&](SequenceBackwardParams& params, int64_t parts) {
    num_parts = parts;
    const int64_t bytes = parts * params.part_stride * sizeof(float);
    p.dB = params.dB = static_cast<float*>(workspace.allocate(bytes));
    p.dC = params.dC = static_cast<float*>(workspace.allocate(bytes));
    return cudaSuccess;
  };
  cudaError_t status = with_backward_states(args.d_state, [&](auto states) {
    constexpr int NT = decltype(states)::value;
    return launch_backward<SequenceBackward<T, NT>, NT>(args, p, stream,
                                                        prepare);
  });
  const auto then = [&](auto next) {
    if (status == cudaSuccess) status = next();
  };
  then([&] {
    return sum_slots(p.dB, args.dB, args.in_type, 1, num_parts, p.part_stride,
                     stream);
  });
  then([&] {
    return sum_slots(p.dC, args.dC, args.in_type, 1, num_parts, p.part_stride,
                     stream);
  });
  then([&] { return convert_rows(p.du, args.du, args.in_type, args, stream); });
  then([&] {
    return convert_rows(p.ddelta, args.ddelta, args.in_type, args, stream);
  });
  then([&] { return batch_sums.add_up(); });
  return status;
}

cudaError_t scan_1d_backward(const Scan1dArgs& args, Workspace& workspace,
                             cudaStream_t stream) {
  return with_input_type(args.in_type, [&](auto input) {
    return backward_of<typename decltype(input)::type>(args, workspace, stream);
  });
}

}  // namespace mmvssm::cuda
