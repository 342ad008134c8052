// Reading channel-first sequences, (Bt, K*D, L) and (Bt, K, N, L), by tiles
// that are transposed on the way through shared memory.
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// Rows of (Bt, K*D, L): float, or the type of the input.
struct Rows {
  void* data;
  bool is_float;
};

struct SequenceInputs {
  Rows u, delta;
  const void *B, *C;
  bool softplus;
};

// A tile of rows in shared memory, one row a thread: kTile steps and a word of
// padding, so that a warp reads a step of its 32 rows without bank conflicts.
// In global memory half a warp takes kTile steps of one row at a time. A warp
// moves the rows of its own channels only.
template <typename T>
class RowTile {
 public:
  __host__ __device__ RowTile(int threads, SharedArena& arena)
      : values_(arena.take<float>(threads * kPitch)) {}

  __device__ __forceinline__ float& own(int step) {
    return values_[threadIdx.x * kPitch + step];
  }

  __device__ void load(const Rows& rows, const ScanShape& s, const Place& place,
                       int tile) {
    each(s, place, tile, [&](float& value, int64_t at, bool exists) {
      value = !exists         ? 0.0f
              : rows.is_float ? static_cast<const float*>(rows.data)[at]
                              : to_float(static_cast<const T*>(rows.data)[at]);
    });
  }

  // Writes the tile, or adds it to what is there.
  __device__ void store(const Rows& rows, const ScanShape& s,
                        const Place& place, int tile, bool again) {
    each(s, place, tile, [&](float value, int64_t at, bool exists) {
      if (!exists) return;
      if (rows.is_float) {
        float* to = static_cast<float*>(rows.data) + at;
        *to = again ? *to + value : value;
      } else {
        T* to = static_cast<T*>(rows.data) + at;
        *to = from_float<T>(again ? to_float(*to) + value : value);
      }
    });
  }

 private:
  static constexpr int kPitch = kTile + 1;
  static_assert(kTile == 16, "half a warp takes the steps of a row");

  template <typename Visit>
  __device__ void each(const ScanShape& s, const Place& place, int tile,
                       const Visit& visit) {
    const int warp = threadIdx.x / 32 * 32;
    const int half = threadIdx.x % 32 / 16;
    const int step = threadIdx.x % 16;
    const int l = tile * kTile + step;
    const int first = place.part * blockDim.x + warp;
    const int64_t image = place.image(s) * s.channels * s.length;
#pragma unroll 4
    for (int i = half; i < 32; i += 2) {
      const int channel = first + i;
      const bool exists = channel < s.channels && l < s.length;
      visit(values_[(warp + i) * kPitch + step],
            image + (exists ? channel * s.length + l : 0), exists);
    }
  }

  float* values_;
};

// T is the type of the input. Rows of the tile of B and C, float32:
// [B of NT states | C].
template <typename T, int NT>
class SequenceTiles {
 public:
  __host__ __device__ SequenceTiles(const SequenceInputs& in,
                                    const ScanShape& s, int threads,
                                    SharedArena& arena)
      : in_(in), shape_(s), u_(threads, arena), delta_(threads, arena) {
    maps_ = arena.take<float>(kTile * kMapPitch);
  }

  __device__ void attach(const Place& place) {
    const int64_t maps = place.image(shape_) * shape_.d_state * shape_.length;
    B_ = static_cast<const T*>(in_.B) + maps;
    C_ = static_cast<const T*>(in_.C) + maps;
    bias_ = shape_.bias != nullptr ? shape_.bias[place.row(shape_)] : 0.0f;
  }

  // As RouteTiles::begin and advance, but nothing is fetched ahead.
  __device__ void begin(int n0, int first, int second) {
    n0_ = n0;
    next_tile_ = first;
    tile_after_ = second;
  }
  __device__ void advance(const Place& place, int third) {
    tile_ = next_tile_;
    next_tile_ = tile_after_;
    tile_after_ = third;
    __syncthreads();  // the tile before this one may still be in use
    u_.load(in_.u, shape_, place, tile_);
    delta_.load(in_.delta, shape_, place, tile_);
    for (int i = threadIdx.x; i < 2 * NT * kTile; i += blockDim.x) {
      const int step = i % kTile;
      const int column = i / kTile;
      const int n = n0_ + column % NT;
      const int l = tile_ * kTile + step;
      const T* map = column < NT ? B_ : C_;
      maps_[step * kMapPitch + column] =
          n < shape_.d_state && l < shape_.length
              ? to_float(map[n * shape_.length + l])
              : 0.0f;
    }
    __syncthreads();
  }

  __device__ __forceinline__ const float* B_row(int step) const {
    return maps_ + step * kMapPitch;
  }

  // As RouteTiles::load; past the end the step size is 0, so that the state
  // stays what it is.
  __device__ __forceinline__ void load(int step, float (&u)[kSub],
                                       float (&d)[kSub], float (&slope)[kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      u[t] = u_.own(step + t);
      d[t] = delta_.own(step + t) + bias_;
      slope[t] = 1.0f;
      if (in_.softplus) d[t] = softplus(d[t], slope[t]);
      if (tile_ * kTile + step + t >= shape_.length) d[t] = slope[t] = 0.0f;
    }
  }

 protected:
  const SequenceInputs in_;
  const ScanShape shape_;
  RowTile<T> u_, delta_;
  int n0_, tile_;

 private:
  static constexpr int kMapPitch = (2 * NT + 3) / 4 * 4 + 4;

  float* maps_;
  int next_tile_, tile_after_;
  const T *B_, *C_;
  float bias_;
};

inline SequenceInputs sequence_inputs(const Scan1dArgs& args) {
  const auto rows = [&](const void* data) {
    return Rows{const_cast<void*>(data), args.in_type == DType::kFloat};
  };
  return {rows(args.u), rows(args.delta), args.B, args.C, args.softplus};
}

// Rows to write: `total`, or float32 to be converted later where several walks
// for more states add up and `total` is narrower.
inline Rows sum_rows(void* total, DType type, const Scan1dArgs& args,
                     int64_t states_at_once, Workspace& workspace) {
  if (type == DType::kFloat) return {total, true};
  if (args.d_state <= states_at_once) return {total, false};
  const int64_t count =
      args.batch * args.num_routes * args.channels * args.length;
  return {workspace.allocate(count * sizeof(float)), true};
}

inline cudaError_t convert_rows(const Rows& rows, void* total, DType type,
                                const Scan1dArgs& args, cudaStream_t stream) {
  if (rows.data == total) return cudaSuccess;
  const int64_t inner = args.num_routes * args.channels * args.length;
  return sum_slots(static_cast<const float*>(rows.data), total, type,
                   args.batch, 1, inner, stream);
}

}  // namespace mmvssm::cuda
