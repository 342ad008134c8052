// Reading the map through a route: tiles of x_dbl rows, x, and the step sizes;
// and where results along routes go.
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

struct RouteInputs {
  const void* x;
  const void* x_dbl;
  const int32_t *routes, *out_routes;
  const float* dt_weight;  // (K, D, R)
  int64_t x_batch_stride, x_dbl_batch_stride;
  int x_pixel_stride, x_route_stride;          // in elements
  int x_dbl_pixel_stride, x_dbl_route_stride;  // likewise
  int dt_rank;
  int copy_bytes;  // 16 or 4: what rows of x_dbl are aligned to; else 0
};

// T is the type of x and x_dbl. A thread keeps the weights of its channel in
// its column of shared memory: any rank does, and registers stay free.
//
// Rows of the tile, float32: [dt rank, padded with zeros | B of NT states | C].
// The rows of the next tile travel to `raw_` as they are, by cp.async, while
// this one is computed; the entries of the routes come one tile earlier still,
// since the addresses of the rows depend on them.
template <typename T, int NT>
class RouteTiles {
 public:
  static __host__ __device__ int rank_pitch(const RouteInputs& in) {
    return (in.dt_rank + 3) / 4 * 4;
  }
  static __host__ __device__ int row_pitch(const RouteInputs& in) {
    return (rank_pitch(in) + 2 * NT + 3) / 4 * 4;
  }

  __host__ __device__ RouteTiles(const RouteInputs& in, const ScanShape& s,
                                 int threads, SharedArena& arena)
      : in_(in), shape_(s) {
    width_ = in.dt_rank + 2 * s.d_state;
    constexpr int per_16_bytes = 16 / sizeof(T);
    raw_pitch_ = (width_ + per_16_bytes - 1) / per_16_bytes * per_16_bytes;
    raw_ = arena.take<T>(kTile * raw_pitch_);
    rows_ = arena.take<float>(kTile * row_pitch(in));
    entries_ = arena.take<int>(2 * 2 * kTile);
    weights_ = arena.take<float>(rank_pitch(in) * threads);
  }

  __device__ void attach(const Place& place) {
    const T* x = static_cast<const T*>(in_.x);
    const T* x_dbl = static_cast<const T*>(in_.x_dbl);
    x_ = x + place.batch * in_.x_batch_stride +
         static_cast<int64_t>(place.route) * in_.x_route_stride + place.channel;
    x_dbl_ = x_dbl + place.batch * in_.x_dbl_batch_stride +
             place.route * in_.x_dbl_route_stride;
    route_ = (threadIdx.x < kTile ? in_.routes : in_.out_routes) +
             static_cast<int64_t>(place.route) * shape_.length;
    bias_ = shape_.bias[place.row(shape_)];
    const float* w =
        in_.dt_weight + static_cast<int64_t>(place.row(shape_)) * in_.dt_rank;
#pragma unroll 1
    for (int r = 0; r < rank_pitch(in_); ++r) {
      weights_[r * blockDim.x + threadIdx.x] = r < in_.dt_rank ? w[r] : 0.0f;
    }
  }

  // Starts a walk over tiles for the states from n0: `first` will be the
  // current tile after one advance(), `second` (-1: none) after two.
  __device__ void begin(int n0, int first, int second) {
    n0_ = n0;
    next_ = 0;
    __syncthreads();  // the walk before this one may still be reading
    if (threadIdx.x < 2 * kTile) {
      entries_[threadIdx.x] = route_entry(first);
      coming_entry_ = route_entry(second);
    }
    __syncthreads();
    fetch();
  }

  // Makes the next tile the current one, and starts on those after it; `third`
  // (-1: none) is the one after the next.
  __device__ void advance(const Place&, int third) {
    copy_async_wait();
    __syncthreads();
    unpack();
    current_ = entries_ + next_ * 2 * kTile;
    next_ ^= 1;
    if (threadIdx.x < 2 * kTile) {
      entries_[next_ * 2 * kTile + threadIdx.x] = coming_entry_;
      coming_entry_ = route_entry(third);
    }
    __syncthreads();
    fetch();
  }

  // The pixel read, the row written at a step of the tile; -1: none.
  __device__ __forceinline__ int source(int step) const {
    return current_[step];
  }
  __device__ __forceinline__ int target(int step) const {
    return current_[kTile + step];
  }
  __device__ __forceinline__ const float* row(int step) const {
    return rows_ + step * row_pitch(in_);
  }
  __device__ __forceinline__ const float* B_row(int step) const {
    return row(step) + rank_pitch(in_);
  }

  // Input, step size and its derivative (by what softplus is applied to).
  __device__ __forceinline__ void load(int step, float (&u)[kSub],
                                       float (&d)[kSub],
                                       float (&slope)[kSub]) const {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      const int pixel = source(step + t);
      u[t] = pixel < 0 ? 0.0f : to_float(x_[pixel * in_.x_pixel_stride]);
    }
    project(step, d);
#pragma unroll
    for (int t = 0; t < kSub; ++t) d[t] = softplus(d[t], slope[t]);
  }

 protected:
  // Of rank r; 0 for the padding.
  __device__ __forceinline__ float weight(int r) const {
    return weights_[r * blockDim.x + threadIdx.x];
  }

  const RouteInputs in_;
  const ScanShape shape_;
  int width_;  // of a row of x_dbl
  int n0_;

 private:
  __device__ __forceinline__ int route_entry(int tile) const {
    const int step = tile * kTile + static_cast<int>(threadIdx.x % kTile);
    return tile >= 0 && step < shape_.length ? route_[step] : -1;
  }

  // Starts copying the rows of the next tile; a warp takes a row at a time.
  __device__ void fetch() {
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
#pragma unroll 1
    for (int step = threadIdx.x / 32; step < kTile; step += warps) {
      const int pixel = entries_[next_ * 2 * kTile + step];
      if (pixel < 0) continue;
      const T* from = x_dbl_ + pixel * in_.x_dbl_pixel_stride;
      T* to = raw_ + step * raw_pitch_;
      if (in_.copy_bytes == 16) {
        constexpr int count = 16 / sizeof(T);
#pragma unroll 1
        for (int c = lane * count; c < width_; c += 32 * count) {
          copy_async<16>(to + c, from + c);
        }
      } else if (in_.copy_bytes == 4) {
        constexpr int count = 4 / sizeof(T);
#pragma unroll 1
        for (int c = lane * count; c < width_; c += 32 * count) {
          copy_async<4>(to + c, from + c);
        }
      } else {
#pragma unroll 1
        for (int c = lane; c < width_; c += 32) to[c] = from[c];
      }
    }
  }

  // Converts the rows that have arrived; steps without a pixel become zeros.
  __device__ void unpack() {
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const int ranks = rank_pitch(in_);
#pragma unroll 1
    for (int step = threadIdx.x / 32; step < kTile; step += warps) {
      const bool visible = entries_[next_ * 2 * kTile + step] >= 0;
      const T* raw = raw_ + step * raw_pitch_;
      float* row = rows_ + step * row_pitch(in_);
#pragma unroll 1
      for (int c = lane; c < ranks + 2 * NT; c += 32) {
        int column = c;
        bool exists = c < in_.dt_rank;
        if (c >= ranks) {
          const int n = n0_ + (c - ranks) % NT;
          const bool is_C = c - ranks >= NT;
          column = in_.dt_rank + n + (is_C ? shape_.d_state : 0);
          exists = n < shape_.d_state;
        }
        row[c] = visible && exists ? to_float(raw[column]) : 0.0f;
      }
    }
  }

  // raw step = bias + weights . dt rank, of each step
  __device__ __forceinline__ void project(int step,
                                          float (&raw_step)[kSub]) const {
#pragma unroll
    for (int t = 0; t < kSub; ++t) raw_step[t] = bias_;
#pragma unroll 1
    for (int r = 0; r < rank_pitch(in_); r += 4) {
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = weight(r + i);
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        float q[4];
        read_broadcast<4>(row(step + t) + r, q);
#pragma unroll
        for (int i = 0; i < 4; ++i) raw_step[t] = fmaf(w[i], q[i], raw_step[t]);
      }
    }
  }

  int raw_pitch_;
  T* raw_;
  float* rows_;
  int* entries_;  // two tiles of kTile sources and kTile targets
  float* weights_;
  int next_;            // half of entries_ that describes the next tile
  const int* current_;  // the other half
  int coming_entry_;    // of the tile after the next
  const T* x_;
  const T* x_dbl_;
  const int32_t* route_;
  float bias_;
};

template <typename T>
RouteInputs route_inputs(const Scan2dArgs& args) {
  const int64_t width = args.dt_rank + 2 * args.d_state;
  const int64_t x_width =
      (args.x_per_route ? args.num_routes : 1) * args.channels;
  const int64_t x_dbl_width =
      (args.shared_projection ? 1 : args.num_routes) * width;
  const auto row_bytes = static_cast<uintptr_t>(width) * sizeof(T);
  const uintptr_t alignment =
      reinterpret_cast<uintptr_t>(args.x_dbl) | row_bytes;
  return {args.x,
          args.x_dbl,
          args.routes,
          args.out_routes,
          args.dt_weight,
          args.pixels * x_width,
          args.pixels * x_dbl_width,
          static_cast<int>(x_width),
          static_cast<int>(args.x_per_route ? args.channels : 0),
          static_cast<int>(x_dbl_width),
          static_cast<int>(args.shared_projection ? 0 : width),
          static_cast<int>(args.dt_rank),
          alignment % 16 == 0  ? 16
          : alignment % 4 == 0 ? 4
                               : 0};
}

// A result with rows of D channels that the routes write: y, or the gradient
// of x. Rows are (Bt, rows, D), or (Bt, rows, K, D) where routes are `apart`.
// Routes that share rows write to slots, which are summed afterwards; disjoint
// ones write to the rows themselves.
class RouteRows {
 public:
  RouteRows(const Scan2dArgs& args, const RouteWrites& writes, bool apart,
            int64_t rows, int64_t states_at_once, void* total, DType type,
            Workspace& workspace, cudaStream_t stream)
      : total_(total), type_(type), batch_(args.batch), stream_(stream) {
    const int64_t row = (apart ? args.num_routes : 1) * args.channels;
    image_ = rows * row;
    count_ = writes.exclusive ? 1 : args.num_routes;
    // Sums are taken in float32: over routes, over visits of one route, over
    // walks for more states.
    const bool sums = writes.repeats || args.d_state > states_at_once;
    is_total_ = writes.exclusive && (type == DType::kFloat || !sums);
    bytes_ = batch_ * count_ * image_ * static_cast<int64_t>(sizeof(float));
    slots_.data = is_total_ ? total : workspace.allocate(bytes_);
    slots_.is_float = !is_total_ || type == DType::kFloat;
    if (!slots_.is_float) bytes_ /= 2;
    slots_.batch_stride = count_ * image_;
    slots_.route_stride = !writes.exclusive ? image_
                          : apart           ? args.channels
                                            : 0;
    slots_.row_stride = static_cast<int>(row);
    slots_.rows = static_cast<int>(rows);
    slots_.repeats = writes.repeats;
    // Disjoint routes cannot clear what is another's, or nobody's.
    const bool each_its_own = apart || !writes.exclusive;
    slots_.clears = writes.cleared() && each_its_own;
    clear_all_ = writes.cleared() && !each_its_own;
  }

  // Prepares what the kernel finds; to be called before it starts.
  cudaError_t begin() const {
    return clear_all_ ? cudaMemsetAsync(slots_.data, 0,
                                        static_cast<size_t>(bytes_), stream_)
                      : cudaSuccess;
  }
  const Slots& slots() const { return slots_; }
  // After the kernel: sums and converts.
  cudaError_t end() const {
    return is_total_ ? cudaSuccess
                     : sum_slots(static_cast<const float*>(slots_.data), total_,
                                 type_, batch_, count_, image_, stream_);
  }

 private:
  void* total_;
  DType type_;
  int64_t batch_, count_, image_, bytes_;
  cudaStream_t stream_;
  Slots slots_;
  bool is_total_, clear_all_;
};

}  // namespace mmvssm::cuda
