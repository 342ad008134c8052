// Forward scan along routes over a channels-last map.
#include "cuda/route_tiles.cuh"
#include "cuda/scan_forward.cuh"

namespace mmvssm::cuda {

struct RouteForwardParams {
  ScanShape shape;
  RouteInputs inputs;
  Slots y;
};

template <typename T, int NT>
class RouteForward : public RouteTiles<T, NT> {
 public:
  using Params = RouteForwardParams;
  using Base = RouteTiles<T, NT>;

  __host__ __device__ RouteForward(const Params& p, int threads,
                                   SharedArena& arena)
      : Base(p.inputs, p.shape, threads, arena) {}

  __device__ void attach(const Params& p, const Place& place) {
    Base::attach(place);
    y_.attach(p.y, place);
    active_ = place.active;
  }

  __device__ __forceinline__ void store(int step, const float (&y)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      const int row = this->target(step + t);
      if (row >= 0 && active_) y_.add(row, y[t], this->n0_ > 0);
    }
  }

  __device__ void finish_tile(const Place&) {}
  __device__ void store_last_state(const Place&, const float (&)[NT]) {}

 private:
  SlotColumn<T> y_;
  bool active_;
};

template <typename T>
cudaError_t forward_of(const Scan2dArgs& args, Workspace& workspace,
                       cudaStream_t stream) {
  const bool apart = !args.merge || args.num_routes == 1;
  const RouteRows y(args, out_writes(args.facts, apart), apart, args.out_rows,
                    kForwardStates, args.y, args.y_type, workspace, stream);
  RouteForwardParams p;
  p.shape = scan_shape(args, 32);
  p.inputs = route_inputs<T>(args);
  p.y = y.slots();

  cudaError_t status = y.begin();
  if (status != cudaSuccess) return status;
  status = with_forward_states(args.d_state, [&](auto states) {
    constexpr int NT = decltype(states)::value;
    return launch_forward<RouteForward<T, NT>, NT>(args, p, stream);
  });
  if (status != cudaSuccess) return status;
  return y.end();
}

cudaError_t scan_2d_forward(const Scan2dArgs& args, Workspace& workspace,
                            cudaStream_t stream) {
  return with_input_type(args.in_type, [&](auto input) {
    return forward_of<typename decltype(input)::type>(args, workspace, stream);
  });
}

}  // namespace mmvssm::cuda
