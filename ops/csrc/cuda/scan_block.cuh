// How a scan is laid over the device, for both forms and both directions.
//
// A lane is a channel and time runs inside the thread: no step waits for
// another lane, and channels-last memory is read as whole vectors in whatever
// order a route visits the pixels. A block is (batch, route, up to 128
// channels). It walks tiles of kTile steps; what all channels share (B, C and
// the dt rank) is converted to float32 rows in shared memory once a tile. A
// thread takes kSub steps at a time in registers, and NT states at a time:
// with more states it walks the whole sequence again for the next NT.
#pragma once

#include "cuda/device.cuh"
#include "cuda/scan_cuda.h"
#include "cuda/scan_math.cuh"

namespace mmvssm::cuda {

constexpr int kTile = 16;
constexpr int kSub = 8;
constexpr int kMaxThreads = 128;
constexpr int kTilesPerChunk = kChunk / kTile;
constexpr int kSubsPerTile = kTile / kSub;
static_assert(kChunk % kTile == 0 && kTile % kSub == 0, "steps must nest");

struct ScanShape {
  int batch, num_routes, channels, d_state, length;
  int parts;  // blocks that share the channels of one route
  const float *A, *D, *bias;
  float* states;
};

// Where a thread stands. Threads past the last channel take part in copies
// and barriers, read the last channel and write nothing.
struct Place {
  int batch, route, part, channel;
  bool active;

  __device__ explicit Place(const ScanShape& s) {
    const int image = blockIdx.x / s.parts;
    part = blockIdx.x - image * s.parts;
    batch = image / s.num_routes;
    route = image - batch * s.num_routes;
    const int wanted = part * blockDim.x + threadIdx.x;
    active = wanted < s.channels;
    channel = active ? wanted : s.channels - 1;
  }

  // Of this block's (batch, route) among all.
  __device__ int64_t image(const ScanShape& s) const {
    return static_cast<int64_t>(batch) * s.num_routes + route;
  }
  // Of this thread's row among the K*D of the parameters.
  __device__ int row(const ScanShape& s) const {
    return route * s.channels + channel;
  }
};

// Rows that no two routes write: each has its own, or the routes are disjoint.
// Addressed by
// batch * batch_stride + route * route_stride + row * row_stride + channel.
struct Slots {
  void* data;
  bool is_float;  // else the type of the input
  int64_t batch_stride, route_stride;
  int row_stride, rows;
  bool repeats;  // a route may come to a row again, and must add to it
  bool clears;   // a route clears its rows before it starts
};

// One thread's column of the slots. Only this thread ever touches it, hence it
// may add to a row that its route writes again.
template <typename T>
class SlotColumn {
 public:
  __device__ void attach(const Slots& slots, const Place& place) {
    is_float_ = slots.is_float;
    row_stride_ = slots.row_stride;
    const int64_t offset = place.batch * slots.batch_stride +
                           place.route * slots.route_stride + place.channel;
    data_ = static_cast<char*>(slots.data) +
            offset * (is_float_ ? sizeof(float) : sizeof(T));
    repeats_ = slots.repeats;
    if (slots.clears && place.active) {
#pragma unroll 1
      for (int row = 0; row < slots.rows; ++row) {
        put(row, 0.0f, false);
      }
    }
  }

  // `again`: this thread has walked the sequence before.
  __device__ __forceinline__ void add(int row, float value, bool again) {
    put(row, value, again || repeats_);
  }

  __device__ bool repeats() const { return repeats_; }

 private:
  __device__ __forceinline__ void put(int row, float value, bool accumulate) {
    const int offset = row * row_stride_;
    if (is_float_) {
      float* to = static_cast<float*>(data_) + offset;
      *to = accumulate ? *to + value : value;
    } else {
      T* to = static_cast<T*>(data_) + offset;
      *to = from_float<T>(accumulate ? to_float(*to) + value : value);
    }
  }

  void* data_;
  bool is_float_, repeats_;
  int row_stride_;
};

// States n0 .. n0 + NT - 1 of a channel. A state past the last has A = B = C =
// 0 and stays zero.
template <int NT>
__device__ __forceinline__ void load_log2_decay(const ScanShape& s,
                                                const Place& place, int n0,
                                                float (&log2_decay)[NT]) {
  const float* A = s.A + static_cast<int64_t>(place.row(s)) * s.d_state;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    log2_decay[n] = n0 + n < s.d_state ? A[n0 + n] * kLog2E : 0.0f;
  }
}

// h <- exp(d A) h + d u B
template <int NT>
__device__ __forceinline__ void step_state(const float (&log2_decay)[NT],
                                           float d, float du,
                                           const float (&B)[NT],
                                           float (&h)[NT]) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    h[n] = fmaf(exp2_approx(d * log2_decay[n]), h[n], du * B[n]);
  }
}

// Address of the state of n0 that enters `chunk` >= 1 (see scan_common.h).
__device__ __forceinline__ float* saved_state(const ScanShape& s,
                                              const Place& place, int chunk,
                                              int n0) {
  const int64_t saved = (s.length - 1) / kChunk;
  return s.states +
         ((place.image(s) * saved + chunk - 1) * s.d_state + n0) * s.channels +
         place.channel;
}

// Threads of a block: whole warps, evenly filled, at most `limit`. Where few
// blocks would leave most of the device idle, smaller ones spread wider.
inline int block_threads(const ScanArgs& args, int limit) {
  const int64_t sequences = args.batch * args.num_routes;
  int threads = limit;
  while (threads > 32 && sequences * ((args.channels + threads - 1) / threads) <
                             args.min_blocks) {
    threads /= 2;
  }
  const int64_t parts = (args.channels + threads - 1) / threads;
  const int64_t share = (args.channels + parts - 1) / parts;
  return static_cast<int>((share + 31) / 32 * 32);
}

// The largest block whose arrays fit the device: `bytes(threads)` of shared
// memory. Returns 0 threads when not even one warp fits.
struct BlockSize {
  int threads, shared_bytes;
};
template <typename Bytes>
BlockSize choose_block(const ScanArgs& args, const Bytes& bytes) {
  int device = 0;
  int available = 48 * 1024;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         device);
  for (int limit = args.max_threads; limit >= 32; limit /= 2) {
    const int threads = block_threads(args, limit);
    const int needed = bytes(threads);
    if (needed <= available) return {threads, needed};
  }
  return {0, 0};
}

inline ScanShape scan_shape(const ScanArgs& args, int threads) {
  return {static_cast<int>(args.batch),
          static_cast<int>(args.num_routes),
          static_cast<int>(args.channels),
          static_cast<int>(args.d_state),
          static_cast<int>(args.length),
          static_cast<int>((args.channels + threads - 1) / threads),
          args.A,
          args.D,
          args.bias,
          args.states};
}

inline int64_t num_blocks(const ScanShape& s) {
  return static_cast<int64_t>(s.batch) * s.num_routes * s.parts;
}

}  // namespace mmvssm::cuda
