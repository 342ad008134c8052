// Forward scan along routes over a channels-last map.
#include "cuda/route_tiles.cuh"
#include "cuda/scan_forward.cuh"

namespace mmvssm::cuda {
namespace {

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
  const int64_t row = args.channels;
  const int64_t image = args.out_rows * row;
  const bool merge = args.merge && args.num_routes > 1;
  // Sums are taken in float32: over routes, and over walks for more states.
  const bool is_float = args.y_type == DType::kFloat;
  const bool through_slots =
      merge || (!is_float && args.d_state > kForwardStates);

  auto* flags = static_cast<int32_t*>(
      workspace.allocate(args.num_routes * sizeof(int32_t)));
  cudaError_t status =
      find_route_flags(args.out_routes, args.num_routes, args.length,
                       args.out_rows, workspace, flags, stream);
  if (status != cudaSuccess) return status;

  RouteForwardParams p;
  p.shape = scan_shape(args, 32);
  p.inputs = route_inputs<T>(args);
  p.y.data = through_slots ? workspace.allocate(args.batch * args.num_routes *
                                                image * sizeof(float))
                           : args.y;
  p.y.is_float = is_float || through_slots;
  p.y.batch_stride = args.num_routes * image;
  p.y.route_stride = merge ? image : row;
  p.y.row_stride = static_cast<int>(merge ? row : args.num_routes * row);
  p.y.rows = static_cast<int>(args.out_rows);
  p.y.flags = flags;

  status = with_forward_states(args.d_state, [&](auto states) {
    constexpr int NT = decltype(states)::value;
    return launch_forward<RouteForward<T, NT>, NT>(args, p, stream);
  });
  if (status != cudaSuccess || !through_slots) return status;
  const auto* slots = static_cast<const float*>(p.y.data);
  return merge ? sum_slots(slots, args.y, args.y_type, args.batch,
                           args.num_routes, image, stream)
               : sum_slots(slots, args.y, args.y_type, args.batch, 1,
                           args.num_routes * image, stream);
}

}  // namespace

cudaError_t scan_2d_forward(const Scan2dArgs& args, Workspace& workspace,
                            cudaStream_t stream) {
  return with_input_type(args.in_type, [&](auto input) {
    return forward_of<typename decltype(input)::type>(args, workspace, stream);
  });
}

}  // namespace mmvssm::cuda
