// How a scan is laid over the device, for both forms and both directions.
//
// A lane is a channel (two, where they have one state) and time runs inside the
// thread: no step waits for another lane, and channels-last memory is read as
// whole vectors in whatever order a route visits the pixels. With more states
// than a lane holds, `state_lanes` neighbours share a channel.
//
// A block is (batch, route, chunk, part of the channels). It walks the tiles of
// its chunk; what all channels share (B, C and the dt rank) is converted to
// float32 rows in shared memory once a tile. A thread takes kSub steps at a
// time in registers, or fewer where its states take most of them.
//
// A scan in several chunks has two passes. The carry pass, over all chunks but
// the last one reached, starts each from zero and keeps what comes out and the
// sum of its step sizes, which tells its decay: 2^(A sum). Then threads fold
// them from chunk to chunk (collect.cuh), and the main pass starts from what
// comes out of the chunk before its own. So the result does not depend on the
// order in which blocks run. Chunks of the carry pass may be a part of those of
// the main pass.
#pragma once

#include "cuda/device.cuh"
#include "cuda/scan_math.cuh"

namespace mmvssm::cuda {

// Where a thread stands. Threads past the last channel take part in copies
// and barriers, read the last channel and write nothing.
template <int CH>
struct Place {
  int batch, route, chunk, part, state_lane;
  int channel[CH];
  bool active[CH];

  __device__ __forceinline__ explicit Place(const ScanShape& s)
      : Place(s, blockIdx.x, threadIdx.x) {}
  __device__ __forceinline__ Place(const ScanShape& s, int block, int thread) {
    const int above = s.by_parts.divide(block);
    part = block - above * s.parts;
    const int image = s.by_chunks.divide(above);
    chunk = above - image * s.chunks;
    batch = s.by_routes.divide(image);
    route = image - batch * s.num_routes;
    state_lane = thread % s.state_lanes;
    const int slots = blockDim.x / s.state_lanes;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      const int wanted = (part * CH + i) * slots + thread / s.state_lanes;
      active[i] = wanted < s.channels;
      channel[i] = active[i] ? wanted : s.channels - 1;
    }
  }

  // Worked out anew rather than kept in registers all along.
  static __device__ __forceinline__ Place anew(const ScanShape& s) {
    return Place(s, block_anew(), thread_anew());
  }

  // Of this block's (batch, route) among all.
  __device__ __forceinline__ int64_t image(const ScanShape& s) const {
    return static_cast<int64_t>(batch) * s.num_routes + route;
  }
  // Of this thread's row among the K*D of the parameters.
  __device__ __forceinline__ int row(const ScanShape& s, int i) const {
    return route * s.channels + channel[i];
  }
  // One of the lanes that share a channel writes what all of them know.
  __device__ __forceinline__ bool writes(int i) const {
    return active[i] && state_lane == 0;
  }

  __device__ __forceinline__ int first_tile(const ScanShape& s) const {
    return chunk * s.chunk_tiles;
  }
  __device__ __forceinline__ int end_tile(const ScanShape& s) const {
    return min((chunk + 1) * s.chunk_tiles, (s.length + kTile - 1) / kTile);
  }
};

// Steps of a tile that exist, in whole groups of kSub.
__device__ __forceinline__ int subs_of_tile(const ScanShape& s, int tile) {
  return min(kTile / kSub, (s.length - tile * kTile + kSub - 1) / kSub);
}

// The decay rates of a lane's states, those of `state_lane` * NT and after. A
// state past the last has A = B = C = 0 and stays zero.
template <int NT, int CH>
__device__ __forceinline__ void load_rates(const ScanShape& s,
                                           const Place<CH>& place,
                                           float (&A)[CH][NT]) {
  const int n0 = place.state_lane * NT;
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    const float* from = s.A + static_cast<int64_t>(place.row(s, i)) * s.d_state;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      A[i][n] = n0 + n < s.d_state ? from[n0 + n] : 0.0f;
    }
  }
}

// A lane's states in the rows of B and C of a tile.
template <int NT>
class MapRows {
 public:
  __device__ __forceinline__ MapRows(const float* quads, int state_lane,
                                     int state_lanes)
      : B_(quads + (kOneLane ? 0 : state_lane * (NT / 4) * kQuad)),
        to_C_(NT == 1 ? 1 : NT / 4 * (kOneLane ? 1 : state_lanes) * kQuad) {}

  // Lanes share the states of a channel by fours or eights only.
  static constexpr bool kOneLane = NT == 1 || NT == 16;
  // States read at a time.
  static constexpr int kWidth = NT == 1 ? 1 : 4;

  // Those of a step for the states from n on.
  __device__ __forceinline__ void read(int step, int n, float (&B)[kWidth],
                                       float (&C)[kWidth]) const {
    if constexpr (NT == 1) {
      const float2 both = *reinterpret_cast<const float2*>(B_ + 4 * step);
      B[0] = both.x;
      C[0] = both.y;
    } else {
      const float* from = B_ + n / 4 * kQuad + 4 * step;
      read_broadcast<4>(from, B);
      read_broadcast<4>(from + to_C_, C);
    }
  }
  __device__ __forceinline__ void read(int step, float (&B)[NT],
                                       float (&C)[NT]) const {
    if constexpr (NT == 1) {
      const float2 both = *reinterpret_cast<const float2*>(B_ + 4 * step);
      B[0] = both.x;
      C[0] = both.y;
    } else {
      read_quads(B_ + 4 * step, B);
      read_quads(B_ + to_C_ + 4 * step, C);
    }
  }
  __device__ __forceinline__ void read_B(int step, float (&B)[NT]) const {
    if constexpr (NT == 1) {
      B[0] = B_[4 * step];
    } else {
      read_quads(B_ + 4 * step, B);
    }
  }
  __device__ __forceinline__ void read_C(int step, float (&C)[NT]) const {
    if constexpr (NT == 1) {
      C[0] = B_[4 * step + 1];
    } else {
      read_quads(B_ + to_C_ + 4 * step, C);
    }
  }

 private:
  static __device__ __forceinline__ void read_quads(const float* from,
                                                    float (&values)[NT]) {
#pragma unroll
    for (int n = 0; n < NT; n += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + n / 4 * kQuad);
      values[n] = v.x;
      values[n + 1] = v.y;
      values[n + 2] = v.z;
      values[n + 3] = v.w;
    }
  }

  const float* B_;
  int to_C_;
};

// h <- 2^(d A) h + input B, with d times log2(e) and input = step_input(d, u).
template <int NT>
__device__ __forceinline__ void step_state(const float (&A)[NT], float d,
                                           float input, const float (&B)[NT],
                                           float (&h)[NT]) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    h[n] = fmaf(exp2_approx(d * A[n]), h[n], input * B[n]);
  }
}

// The saved states of a thread's channels that enter `tile` (see scan_common.h;
// there are none for tile 0): of its first state, the next one is `channels`
// further.
template <int NT, int CH>
class SavedStates {
 public:
  __device__ __forceinline__ SavedStates(const ScanShape& s,
                                         const Place<CH>& place, int tile)
      : there_(s.d_state - place.state_lane * NT) {
    const int64_t saved = (s.length - 1) / kTile;
    const int64_t row =
        (place.image(s) * saved + tile - 1) * s.d_state + place.state_lane * NT;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      at_[i] = fixed_address(s.states + row * s.channels + place.channel[i]);
    }
  }

  // visit(i, n, address) for each channel and state of this thread.
  template <typename Visit>
  __device__ __forceinline__ void each(const ScanShape& s,
                                       const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      float* at = at_[i];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        if (n < there_) visit(i, n, at);
        at = fixed_address(at + s.channels);
      }
    }
  }

 private:
  float* at_[CH];
  int there_;  // states
};

// Entry 0 of a chunk's carry is the sum of its step sizes, entry 1 + n what
// comes out of it for state n: at first of the chunk alone, then, folded, of
// all chunks up to it.
template <int CH>
__device__ __forceinline__ float* carry_entry(const ScanShape& s,
                                              const Place<CH>& place, int chunk,
                                              int entry, int i) {
  const int64_t row =
      (place.image(s) * s.num_carries + chunk) * (1 + s.d_state) + entry;
  return s.carries + row * s.channels + place.channel[i];
}

template <int NT, int CH>
__device__ __forceinline__ void store_carry(const ScanShape& s,
                                            const Place<CH>& place,
                                            const float (&total)[CH],
                                            const float (&value)[CH][NT]) {
  const int n0 = place.state_lane * NT;
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    if (!place.active[i]) continue;
    if (n0 == 0) *carry_entry(s, place, place.chunk, 0, i) = total[i];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (n0 + n >= s.d_state) continue;
      *carry_entry(s, place, place.chunk, 1 + n0 + n, i) = value[i][n];
    }
  }
}

// The row of a channel among what blocks add up over their chunks, see
// ParameterSums.
template <int CH>
__device__ __forceinline__ int64_t sum_row(const ScanShape& s,
                                           const Place<CH>& place, int i) {
  const int64_t rows = s.num_routes * s.channels;
  return (static_cast<int64_t>(place.batch) * s.chunks + place.chunk) * rows +
         place.row(s, i);
}

// value <- what comes out of a chunk, once carries are folded.
template <int NT, int CH>
__device__ __forceinline__ void load_carry(const ScanShape& s,
                                           const Place<CH>& place, int chunk,
                                           float (&value)[CH][NT]) {
  const int n0 = place.state_lane * NT;
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    const float* from = carry_entry(s, place, chunk, n0, i);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      from = fixed_address(from + s.channels);
      if (n0 + n < s.d_state) value[i][n] = *from;
    }
  }
}

// Goes through the subs of a tile from the last on: sweep(step, the place in
// the ring of what comes next) for each, with the groups of rows around it; the
// sums of FLUSH steps are written together.
template <int FLUSH, typename Tiles, typename Sweep>
__device__ __forceinline__ void walk_back(Tiles& tiles, int subs,
                                          const Sweep& sweep) {
#pragma unroll 1
  for (int sub = subs - 1; sub >= 0; --sub) {
    const int step = sub * kSub;
    if (sub == subs - 1 || (step + kSub) % kGroup == 0) {
      tiles.enter_group(step / kGroup * kGroup, true);
    }
    sweep(step, tiles.ring(sub > 0 ? step - kSub : kTile));
    if (step % kGroup == 0) tiles.leave_group(step);
    if (step % FLUSH == 0) {
      __syncthreads();
      tiles.flush(step, FLUSH);
      __syncthreads();
    }
  }
}

}  // namespace mmvssm::cuda
