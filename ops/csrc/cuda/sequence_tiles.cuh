// Reading channel-first sequences, (Bt, K*D, L) and (Bt, K, N, L): B and C by
// tiles, each thread's own rows by groups of kGroup steps that are transposed
// on the way through shared memory.
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// The rows of a block's threads in shared memory, kGroup steps and a word of
// padding each, so that a warp reads a step of its 32 rows without bank
// conflicts. In global memory half a warp takes the steps of one row at a time.
// A warp moves the rows of its own threads only.
template <typename T>
class OwnRows {
 public:
  __device__ __forceinline__ OwnRows(int offset, const ScanShape& s,
                                     const Place<1>& place)
      : shape_(s), place_(place), values_(shared_array<float>(offset)) {}

  __device__ __forceinline__ float& own(int step) {
    return values_[threadIdx.x * SequenceLayout::kOwnPitch + step % kGroup];
  }

  // Takes the steps of a group from l on; zeros past the end.
  __device__ __forceinline__ void load(const SequenceRows& rows, int l) {
    each(l, [&](float& value, int64_t at, bool exists, bool) {
      value = !exists ? 0.0f
              : is_float<T> || rows.is_float
                  ? static_cast<const float*>(rows.data)[at]
                  : to_float(static_cast<const T*>(rows.data)[at]);
    });
  }

  __device__ __forceinline__ void store(const SequenceRows& rows, int l) {
    each(l, [&](float value, int64_t at, bool exists, bool writes) {
      if (!exists || !writes) return;
      if (is_float<T> || rows.is_float) {
        static_cast<float*>(rows.data)[at] = value;
      } else {
        static_cast<T*>(rows.data)[at] = from_float<T>(value);
      }
    });
  }

 private:
  static_assert(kGroup == 16, "half a warp takes the steps of a row");

  template <typename Visit>
  __device__ __forceinline__ void each(int first, const Visit& visit) {
    const int warp = threadIdx.x / 32 * 32;
    const int step = threadIdx.x % 16;
    const int l = first + step;
    const int lanes = shape_.state_lanes;
    const int slots = blockDim.x / lanes;
    const int64_t image =
        place_.image(shape_) * shape_.channels * shape_.length;
#pragma unroll 4
    for (int i = threadIdx.x % 32 / 16; i < 32; i += 2) {
      const int channel = place_.part * slots + (warp + i) / lanes;
      const bool exists = channel < shape_.channels && l < shape_.length;
      visit(values_[(warp + i) * SequenceLayout::kOwnPitch + step],
            image + (exists ? channel * shape_.length + l : 0), exists,
            (i & (lanes - 1)) == 0);
    }
  }

  const ScanShape& shape_;
  const Place<1>& place_;
  float* values_;
};

// T is the type of the input.
template <typename T, int NT>
class SequenceTiles {
 public:
  static constexpr int kSteps = kSub;
  static constexpr bool kOneBarrier = false;

  __device__ __forceinline__ SequenceTiles(const SequenceInputs& in,
                                           const SequenceLayout& layout,
                                           const ScanShape& s,
                                           const Place<1>& place)
      : in_(in),
        layout_(layout),
        shape_(s),
        place_(place),
        u_(layout.u, s, place),
        delta_(layout.delta, s, place) {
    const int64_t maps = place.image(s) * s.d_state * s.length;
    B_ = static_cast<const T*>(in.B) + maps;
    C_ = static_cast<const T*>(in.C) + maps;
    const int row = place.row(s, 0);
    bias_ = s.bias != nullptr ? s.bias[row] : 0.0f;
    skip_ = s.D != nullptr && place.state_lane == 0 ? s.D[row] : 0.0f;
  }

  // As RouteTiles::begin and advance, but nothing is fetched ahead.
  __device__ __forceinline__ void begin(int) {}
  __device__ __forceinline__ void advance(int tile, int, int) {
    tile_ = tile;
    if (tile < 0) return;
    const int states = NT * shape_.state_lanes;
    float* rows = shared_array<float>(layout_.rows);
    __syncthreads();  // the tile before this one may still be in use
#pragma unroll 4
    for (int i = threadIdx.x; i < 2 * states * kTile; i += blockDim.x) {
      const int step = i % kTile;
      const int column = i / kTile;
      const bool is_B = column < states;
      const int n = is_B ? column : column - states;
      const int l = tile_ * kTile + step;
      float value = 0.0f;
      if (n < shape_.d_state && l < shape_.length) {
        value = to_float((is_B ? B_ : C_)[n * shape_.length + l]);
      }
      rows[column / 4 * kQuad + 4 * step + column % 4] = value;
    }
    __syncthreads();
  }

  __device__ __forceinline__ int tile() const { return tile_; }
  __device__ __forceinline__ void stay(int tile) { tile_ = tile; }
  __device__ __forceinline__ float skip(int) const { return skip_; }
  __device__ __forceinline__ int ring(int step) const { return step; }
  __device__ __forceinline__ void request(int) {}
  __device__ __forceinline__ void request_grads(int) {}

  __device__ __forceinline__ MapRows<NT> maps() const {
    return MapRows<NT>(shared_array<float>(layout_.rows), place_.state_lane,
                       shape_.state_lanes);
  }

  // To be called by whole warps before the steps from `step` on are used.
  __device__ __forceinline__ void enter_group(int step) {
    const int l = tile_ * kTile + step;
    __syncwarp();
    u_.load(in_.u, l);
    delta_.load(in_.delta, l);
    __syncwarp();
  }

  // As RouteTiles; past the end the step size is 0, so that the state stays
  // what it is.
  __device__ __forceinline__ void load_steps(int step, float (&d)[1][kSub]) {
    float slope[1][kSub];
    load_steps(step, d, slope);
  }
  __device__ __forceinline__ void load(int step, float (&u)[1][kSub],
                                       float (&d)[1][kSub]) {
    float slope[1][kSub];
    load(step, u, d, slope);
  }
  __device__ __forceinline__ void load(int step, float (&u)[1][kSub],
                                       float (&d)[1][kSub],
                                       float (&slope)[1][kSub]) {
    load_steps(step, d, slope);
#pragma unroll
    for (int t = 0; t < kSub; ++t) u[0][t] = u_.own(step + t);
  }

 protected:
  const SequenceInputs& in_;
  const SequenceLayout& layout_;
  const ScanShape& shape_;
  const Place<1>& place_;
  OwnRows<T> u_, delta_;

 private:
  __device__ __forceinline__ void load_steps(int step, float (&d)[1][kSub],
                                             float (&slope)[1][kSub]) {
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      d[0][t] = (delta_.own(step + t) + bias_) * kLog2E;
      slope[0][t] = 1.0f;
    }
    if (in_.softplus) {
#pragma unroll
      for (int t = 0; t < kSub; ++t) d[0][t] = softplus2(d[0][t], slope[0][t]);
    }
    const int there = shape_.length - tile_ * kTile - step;
    if (there >= kSub) return;
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      if (t >= there) d[0][t] = slope[0][t] = 0.0f;
    }
  }

  const T *B_, *C_;
  float bias_, skip_;
  int tile_;
};

}  // namespace mmvssm::cuda
