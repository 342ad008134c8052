// Backward scan along routes over a channels-last map.
#include "cuda/route_tiles.cuh"
#include "cuda/scan_backward.cuh"

namespace mmvssm::cuda {

// dx_dbl of the channels of one block, in pixel order: at batch * batch_stride
// + route * route_stride + part * part_stride + pixel * pixel_stride + column.
struct RowSlots {
  float* data;
  int64_t batch_stride, route_stride, part_stride;
  int pixel_stride, pixels;
  bool clears;  // a block clears its rows before it starts
};

struct RouteBackwardParams {
  ScanShape shape;
  RouteInputs inputs;
  ParamSums sums;
  float* ddt_weight;  // (Bt, K, D, R)
  const void* dy;
  bool dy_is_float;
  int64_t dy_batch_stride;
  int dy_route_stride, dy_row_stride;
  Slots dx;
  RowSlots dx_dbl;
};

// Columns of RowSums: [B | C | kRanksAtOnce of the dt rank].
constexpr int kRanksAtOnce = 32;

template <typename T, int NT>
class RouteBackward : public RouteTiles<T, NT> {
 public:
  using Params = RouteBackwardParams;
  using Base = RouteTiles<T, NT>;

  __host__ __device__ RouteBackward(const Params& p, int threads,
                                    SharedArena& arena)
      : Base(p.inputs, p.shape, threads, arena),
        sums_(2 * NT + kRanksAtOnce, threads, arena) {
    dweights_ = arena.take<float>(Base::rank_pitch(p.inputs) * threads);
  }

  __device__ void attach(const Params& p, const Place& place) {
    Base::attach(place);
    dx_.attach(p.dx, place);
    active_ = place.active;
    dy_is_float_ = p.dy_is_float;
    dy_row_stride_ = p.dy_row_stride;
    const int64_t offset =
        place.batch * p.dy_batch_stride +
        static_cast<int64_t>(place.route) * p.dy_route_stride + place.channel;
    dy_ = static_cast<const char*>(p.dy) +
          offset * (dy_is_float_ ? sizeof(float) : sizeof(T));

    rows_ = p.dx_dbl.data + place.batch * p.dx_dbl.batch_stride +
            place.route * p.dx_dbl.route_stride +
            place.part * p.dx_dbl.part_stride;
    pixel_stride_ = p.dx_dbl.pixel_stride;
    if (p.dx_dbl.clears) {
#pragma unroll 1
      for (int i = threadIdx.x; i < p.dx_dbl.pixels * this->width_;
           i += blockDim.x) {
        const int pixel = i / this->width_;
        rows_[pixel * pixel_stride_ + i - pixel * this->width_] = 0.0f;
      }
    }
#pragma unroll 1
    for (int r = 0; r < Base::rank_pitch(p.inputs); ++r) dweight(r) = 0.0f;
  }

  __device__ RowSums& sums() { return sums_; }

  __device__ __forceinline__ void load_grad(int step, float (&e)[kSub]) const {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      const int row = this->target(step + t);
      const int offset = row * dy_row_stride_;
      e[t] = row < 0 || !active_ ? 0.0f
             : dy_is_float_      ? static_cast<const float*>(dy_)[offset]
                                 : to_float(static_cast<const T*>(dy_)[offset]);
    }
  }

  // Takes the gradients of input and step-size argument of kSub steps: to the
  // pixels, to the weights, and with what sums() holds to the rows of x_dbl.
  __device__ __forceinline__ void store_grads(int step, const float (&du)[kSub],
                                              const float (&d_raw_step)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      const int pixel = this->source(step + t);
      if (pixel >= 0 && active_) dx_.add(pixel, du[t], this->n0_ > 0);
    }
#pragma unroll 1
    for (int r = 0; r < Base::rank_pitch(this->in_); r += 4) {
      float sum[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = dweight(r + i);
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float q[4];
        read_broadcast<4>(this->row(step + t) + r, q);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = fmaf(d_raw_step[t], q[i], sum[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) dweight(r + i) = sum[i];
    }
    const int rank = this->in_.dt_rank;
#pragma unroll 1
    for (int r0 = 0; r0 < rank; r0 += kRanksAtOnce) {
      const int end = min(r0 + kRanksAtOnce, rank);
#pragma unroll 1
      for (int r = r0; r < end; r += 2) sum_rank(r - r0, r, d_raw_step);
      flush(step, r0 == 0 ? 0 : 2 * NT, r0, end - r0);
    }
  }

  __device__ void finish_tile(const Place&) {}

  __device__ void finish(const Params& p, const Place& place) {
    if (!active_) return;
    const int rank = p.inputs.dt_rank;
    float* total =
        p.ddt_weight +
        (place.image(p.shape) * p.shape.channels + place.channel) * rank;
#pragma unroll 1
    for (int r = 0; r < rank; ++r) total[r] = dweight(r);
  }

 private:
  __device__ __forceinline__ float& dweight(int r) {
    return dweights_[r * blockDim.x + threadIdx.x];
  }

  // Sums d_raw_step * weight over the warp for ranks r, r + 1 and kSub steps.
  __device__ __forceinline__ void sum_rank(int column, int r,
                                           const float (&d_raw_step)[kSub]) {
    static_assert(2 * kSub == 16, "reduce16 takes two ranks of kSub steps");
    const float w[2] = {this->weight(r), this->weight(r + 1)};
    float values[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) values[i] = d_raw_step[i / 2] * w[i % 2];
    const float total = reduce16(values);
    const int lane = threadIdx.x % 32;
    if (lane % 2 == 0) {
      sums_.put(lane / 4, 2 * NT + column + lane / 2 % 2, total);
    }
  }

  // Columns from `begin`, with `ranks` ranks from r0.
  __device__ __forceinline__ void flush(int step, int begin, int r0,
                                        int ranks) {
    const int rank = this->in_.dt_rank;
    const int states = this->shape_.d_state;
    sums_.flush(begin, 2 * NT + ranks, [&](int t, int column, float sum) {
      const int pixel = this->source(step + t);
      if (pixel < 0) return;
      int to = r0 + column - 2 * NT;
      bool again = dx_.repeats() || this->n0_ > 0;
      if (column < 2 * NT) {
        const int n = this->n0_ + column % NT;
        if (n >= states) return;
        to = rank + n + (column < NT ? 0 : states);
        again = dx_.repeats();
      }
      float* at = rows_ + pixel * pixel_stride_ + to;
      *at = again ? *at + sum : sum;
    });
  }

  SlotColumn<T> dx_;
  RowSums sums_;
  float* dweights_;
  float* rows_;
  int pixel_stride_;
  const void* dy_;
  int dy_row_stride_;
  bool dy_is_float_, active_;
};

template <typename T>
cudaError_t backward_of(const Scan2dArgs& args, Workspace& workspace,
                        cudaStream_t stream) {
  const int64_t row = args.channels;
  const bool one = args.num_routes == 1;
  const bool x_apart = args.x_per_route || one;
  const RouteRows dx(args, read_writes(args.facts, x_apart), x_apart,
                     args.pixels, kBackwardStates, args.dx, args.in_type,
                     workspace, stream);

  BatchSums batch_sums(args.batch, workspace, stream);
  const int64_t dy_row = args.merge ? row : args.num_routes * row;
  RouteBackwardParams p;
  p.shape = scan_shape(args, 32);
  p.inputs = route_inputs<T>(args);
  p.sums = batch_sums.of(args);
  p.ddt_weight =
      batch_sums.of(args.ddt_weight, args.num_routes * row * args.dt_rank);
  p.dy = args.dy;
  p.dy_is_float = args.y_type == DType::kFloat;
  p.dy_batch_stride = args.out_rows * dy_row;
  p.dy_route_stride = static_cast<int>(args.merge ? 0 : row);
  p.dy_row_stride = static_cast<int>(dy_row);

  p.dx = dx.slots();

  // Blocks write rows of x_dbl apart from each other; a projection that the
  // routes share is summed over them too, unless they are disjoint.
  const int64_t width = args.dt_rank + 2 * args.d_state;
  const bool apart = !args.shared_projection || one;
  const RouteWrites writes = read_writes(args.facts, apart);
  const int64_t image = args.pixels * width * (apart ? args.num_routes : 1);
  int64_t count = 0;
  const auto prepare = [&](RouteBackwardParams& params, int64_t parts) {
    count = writes.exclusive ? parts : args.num_routes * parts;
    const int64_t bytes =
        args.batch * count * image * static_cast<int64_t>(sizeof(float));
    RowSlots& rows = params.dx_dbl;
    const bool is_total = count == 1 && args.in_type == DType::kFloat;
    rows.data =
        static_cast<float*>(is_total ? args.dx_dbl : workspace.allocate(bytes));
    rows.batch_stride = count * image;
    rows.part_stride = image;
    rows.route_stride = !writes.exclusive ? parts * image : apart ? width : 0;
    rows.pixel_stride =
        static_cast<int>(apart ? args.num_routes * width : width);
    rows.pixels = static_cast<int>(args.pixels);
    const bool each_its_own = apart || !writes.exclusive;
    rows.clears = writes.cleared() && each_its_own;
    p.dx_dbl = rows;
    return writes.cleared() && !each_its_own
               ? cudaMemsetAsync(rows.data, 0, static_cast<size_t>(bytes),
                                 stream)
               : cudaSuccess;
  };

  cudaError_t status = dx.begin();
  if (status != cudaSuccess) return status;
  status = with_backward_states(args.d_state, [&](auto states) {
    constexpr int NT = decltype(states)::value;
    return launch_backward<RouteBackward<T, NT>, NT>(args, p, stream, prepare);
  });
  if (status != cudaSuccess) return status;

  if (p.dx_dbl.data != args.dx_dbl) {
    status = sum_slots(p.dx_dbl.data, args.dx_dbl, args.in_type, args.batch,
                       count, image, stream);
    if (status != cudaSuccess) return status;
  }
  status = batch_sums.add_up();
  if (status != cudaSuccess) return status;
  return dx.end();
}

cudaError_t scan_2d_backward(const Scan2dArgs& args, Workspace& workspace,
                             cudaStream_t stream) {
  return with_input_type(args.in_type, [&](auto input) {
    return backward_of<typename decltype(input)::type>(args, workspace, stream);
  });
}

}  // namespace mmvssm::cuda
