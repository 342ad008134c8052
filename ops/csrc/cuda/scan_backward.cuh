// The backward scan, for either form. Tiles supplies what the form reads and
// writes: RouteBackward (scan_2d_backward.cu), SequenceBackward
// (scan_1d_backward.cu).
//
// With e = dL/dy and a_l = exp(d_l A), per channel and state:
//   g_l = e_l C_l + a_{l+1} g_{l+1}          (dL/dh_l)
//   dC_l = e_l h_l,  dB_l = g_l d_l u_l      (summed over channels)
//   du_l = D e_l + d_l sum_n g_l B_l
//   dd_l = u_l sum_n g_l B_l + sum_n A g_l a_l h_{l-1}
//   dA = sum_l d_l g_l a_l h_{l-1},  dD = sum_l e_l u_l
// The states h are not kept: chunk after chunk from the end, a thread scans
// forward from the saved state, notes the state that enters each kSub steps,
// and then goes back, scanning kSub steps once more into registers before it
// sweeps over them.
#pragma once

#include <type_traits>

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// States that a thread carries at a time: registers hold kSub times as many.
template <typename Launch>
cudaError_t with_backward_states(int64_t d_state, const Launch& launch) {
  if (d_state == 1) return launch(std::integral_constant<int, 1>());
  if (d_state <= 4) return launch(std::integral_constant<int, 4>());
  return launch(std::integral_constant<int, 8>());
}
constexpr int64_t kBackwardStates = 8;

// Gradients of parameters, one of each per batch.
struct ParamSums {
  float* dA;     // (Bt, K, D, N)
  float* dD;     // (Bt, K, D) or null
  float* dbias;  // (Bt, K, D) or null
};

// The order in which tiles are visited: in each chunk, from the last to the
// first, forward to the chunk's end (`sweeping` is false), then back; the last
// tile of a chunk is visited once and does both.
struct BackwardWalk {
  int tile;  // -1: the walk is over
  bool sweeping;
  int last;  // of all tiles

  __device__ explicit BackwardWalk(int num_tiles) : last(num_tiles - 1) {
    tile = first_of(last);
    sweeping = tile == last;
  }
  static __device__ int first_of(int tile) {
    return tile - tile % kTilesPerChunk;
  }
  __device__ int first() const { return first_of(tile); }
  __device__ int turn() const {
    return min(first() + kTilesPerChunk - 1, last);
  }
  __device__ bool enters_chunk() const {
    return tile == first() && (!sweeping || tile == turn());
  }
  __device__ BackwardWalk next() const {
    BackwardWalk walk = *this;
    if (tile < 0) return walk;
    if (!sweeping) {
      ++walk.tile;
      walk.sweeping = walk.tile == turn();
    } else if (tile > first()) {
      --walk.tile;
    } else {
      walk.tile = tile > 0 ? tile - kTilesPerChunk : -1;
      walk.sweeping = false;
    }
    return walk;
  }
};

// What the channels of a block add to the rows of kSub steps: each warp puts
// its sum, flush() adds the warps up. A column always falls to the same
// thread, which may therefore add to a row that it wrote before.
class RowSums {
 public:
  __host__ __device__ RowSums(int columns, int threads, SharedArena& arena)
      : columns_(columns),
        sums_(arena.take<float>(threads / 32 * kSub * columns)) {}

  __device__ __forceinline__ void put(int t, int column, float value) {
    sums_[(threadIdx.x / 32 * kSub + t) * columns_ + column] = value;
  }

  // store(t, column, sum) for every t and the columns [begin, end).
  template <typename Store>
  __device__ __forceinline__ void flush(int begin, int end,
                                        const Store& store) {
    __syncthreads();
    const int warps = blockDim.x / 32;
#pragma unroll 1
    for (int column = begin + threadIdx.x; column < end; column += blockDim.x) {
#pragma unroll 1
      for (int t = 0; t < kSub; ++t) {
        float sum = 0.0f;
#pragma unroll 1
        for (int w = 0; w < warps; ++w) {
          sum += sums_[(w * kSub + t) * columns_ + column];
        }
        store(t, column, sum);
      }
    }
    __syncthreads();
  }

 private:
  int columns_;
  float* sums_;
};

template <typename Tiles, int NT>
class BackwardThread {
 public:
  using Params = typename Tiles::Params;

  __host__ __device__ BackwardThread(const Params& p, int threads,
                                     SharedArena& arena)
      : tiles_(p, threads, arena) {
    checkpoints_ =
        arena.take<float>(kTilesPerChunk * kSubsPerTile * NT * threads);
  }

  __device__ void run(const Params& p) {
    const ScanShape& s = p.shape;
    const Place place(s);
    tiles_.attach(p, place);
    checkpoints_ += threadIdx.x;
    const int row = place.row(s);
    const int num_tiles = (s.length + kTile - 1) / kTile;

    for (int n0 = 0; n0 < s.d_state; n0 += NT) {
      skip_ = n0 == 0 && s.D != nullptr ? s.D[row] : 0.0f;
      first_walk_ = n0 == 0;
      load_log2_decay(s, place, n0, log2_decay_);
#pragma unroll
      for (int n = 0; n < NT; ++n) g_[n] = dA_[n] = 0.0f;

      BackwardWalk walk(num_tiles);
      BackwardWalk ahead = walk.next();
      tiles_.begin(n0, walk.tile, ahead.tile);
      while (walk.tile >= 0) {
        const BackwardWalk beyond = ahead.next();
        tiles_.advance(place, beyond.tile);
        if (walk.enters_chunk()) load_state(s, place, walk.tile, n0);
        visit(walk, place);
        walk = ahead;
        ahead = beyond;
      }
      if (place.active) {
        float* dA = p.sums.dA +
                    (place.image(s) * s.channels + place.channel) * s.d_state;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          if (n0 + n < s.d_state) dA[n0 + n] = dA_[n];
        }
      }
    }
    if (place.active) {
      const int64_t at = place.image(s) * s.channels + place.channel;
      if (p.sums.dD != nullptr) p.sums.dD[at] = dD_;
      if (p.sums.dbias != nullptr) p.sums.dbias[at] = dbias_;
    }
    tiles_.finish(p, place);
  }

 private:
  __device__ void load_state(const ScanShape& s, const Place& place, int tile,
                             int n0) {
    const int chunk = tile / kTilesPerChunk;
    const float* saved = chunk > 0 ? saved_state(s, place, chunk, n0) : nullptr;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      h_[n] = chunk > 0 && n0 + n < s.d_state ? saved[n * s.channels] : 0.0f;
    }
  }

  __device__ void visit(const BackwardWalk& walk, const Place& place) {
    const int sub = (walk.tile - walk.first()) * kSubsPerTile;
    const bool turning = walk.sweeping && walk.tile == walk.turn();
    if (!walk.sweeping || turning) {
#pragma unroll 1
      for (int i = 0; i < kSubsPerTile; ++i) {
        note_state(sub + i);
        if (!turning || i < kSubsPerTile - 1) replay(i * kSub);
      }
    }
    if (walk.sweeping) {
#pragma unroll 1
      for (int i = kSubsPerTile - 1; i >= 0; --i) {
        recall_state(sub + i);
        sweep(i * kSub);
      }
      tiles_.finish_tile(place);
    }
  }

  __device__ __forceinline__ void note_state(int sub) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      checkpoints_[(sub * NT + n) * blockDim.x] = h_[n];
    }
  }
  __device__ __forceinline__ void recall_state(int sub) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      h_[n] = checkpoints_[(sub * NT + n) * blockDim.x];
    }
  }

  // Scans kSub steps for the state only.
  __device__ __forceinline__ void replay(int step) {
    float u[kSub], d[kSub], slope[kSub];
    tiles_.load(step, u, d, slope);
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      float B[NT];
      read_broadcast<NT>(tiles_.B_row(step + t), B);
      step_state<NT>(log2_decay_, d[t], d[t] * u[t], B, h_);
    }
  }

  // Scans kSub steps into registers, then goes back over them. Registers hold
  // the state before every other step; the one between is made again, with a
  // decay that the way back needs anyway.
  __device__ __forceinline__ void sweep(int step) {
    Steps steps;
    tiles_.load(step, steps.u, steps.d, steps.slope);
    tiles_.load_grad(step, steps.e);
    float before[kSub / 2][NT];
#pragma unroll
    for (int t = 0; t < kSub; ++t) {
      if (t % 2 == 0) {
#pragma unroll
        for (int n = 0; n < NT; ++n) before[t / 2][n] = h_[n];
      }
      if (t < kSub - 2) {
        float B[NT];
        read_broadcast<NT>(tiles_.B_row(step + t), B);
        step_state<NT>(log2_decay_, steps.d[t], steps.d[t] * steps.u[t], B, h_);
      }
    }
#pragma unroll
    for (int t = kSub - 2; t >= 0; t -= 2) {
      float B[NT], decay[NT], between[NT];
      read_broadcast<NT>(tiles_.B_row(step + t), B);
      const float input = steps.d[t] * steps.u[t];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        decay[n] = exp2_approx(steps.d[t] * log2_decay_[n]);
        between[n] = fmaf(decay[n], before[t / 2][n], input * B[n]);
      }
      float decay_after[NT];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        decay_after[n] = exp2_approx(steps.d[t + 1] * log2_decay_[n]);
      }
      sweep_step(step, t + 1, decay_after, between, steps);
      sweep_step(step, t, decay, before[t / 2], steps);
    }
    tiles_.store_grads(step, steps.du, steps.d_raw_step);
  }

  struct Steps {
    float u[kSub], d[kSub], slope[kSub], e[kSub];
    float du[kSub], d_raw_step[kSub];
    float sums[16];
  };

  // Back over step t, from the state before it.
  __device__ __forceinline__ void sweep_step(int step, int t,
                                             const float (&decay)[NT],
                                             const float (&before)[NT],
                                             Steps& steps) {
    // 16 sums over channels are taken at once: dB and dC of so many steps.
    constexpr int steps_at_once = 8 / NT;
    const int at = t % steps_at_once * 2 * NT;
    const float u = steps.u[t], d = steps.d[t], e = steps.e[t];
    float B[NT], C[NT];
    read_broadcast<NT>(tiles_.B_row(step + t), B);
    read_broadcast<NT>(tiles_.B_row(step + t) + NT, C);
    float by_B = 0.0f;      // sum of g B
    float by_decay = 0.0f;  // sum of log2(e) A g a h_before
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float kept = decay[n] * before[n];
      const float g = fmaf(e, C[n], g_[n]);
      steps.sums[at + n] = g * (d * u);
      steps.sums[at + NT + n] = e * fmaf(d * u, B[n], kept);
      by_B = fmaf(g, B[n], by_B);
      const float by_kept = g * kept;
      by_decay = fmaf(log2_decay_[n], by_kept, by_decay);
      dA_[n] = fmaf(d, by_kept, dA_[n]);
      g_[n] = g * decay[n];
    }
    const float d_raw_step = fmaf(u, by_B, kLn2 * by_decay) * steps.slope[t];
    steps.du[t] = fmaf(d, by_B, skip_ * e);
    steps.d_raw_step[t] = d_raw_step;
    dbias_ += d_raw_step;
    if (first_walk_) dD_ = fmaf(e, u, dD_);
    if (t % steps_at_once == 0) {
      const float total = reduce16(steps.sums);
      const int lane = threadIdx.x % 32;
      if (lane % 2 == 0) {
        const int value = lane / 2;
        tiles_.sums().put(t + value / (2 * NT), value % (2 * NT), total);
      }
    }
  }

  Tiles tiles_;
  float* checkpoints_;  // [sub][state][thread]
  float log2_decay_[NT], h_[NT];
  float g_[NT];  // a_{l+1} g_{l+1} for the step l to come
  float dA_[NT];
  float dD_ = 0.0f, dbias_ = 0.0f, skip_;
  bool first_walk_;
};

// Blocks of kMaxThreads that shall fit a multiprocessor; it bounds registers.
constexpr int backward_occupancy(int states) { return states <= 4 ? 3 : 2; }

template <typename Tiles, int NT>
struct ScanBackward {
  using Params = typename Tiles::Params;
  static constexpr int kThreads = kMaxThreads, kBlocks = backward_occupancy(NT);

  static __device__ __forceinline__ void run(const Params& p) {
    SharedArena arena(dynamic_shared());
    BackwardThread<Tiles, NT> thread(p, blockDim.x, arena);
    thread.run(p);
  }
};

// Chooses the block, lets `prepare(params, parts)` set and clear what depends
// on it, and starts the kernel.
template <typename Tiles, int NT, typename Prepare>
cudaError_t launch_backward(const ScanArgs& args, typename Tiles::Params p,
                            cudaStream_t stream, const Prepare& prepare) {
  const BlockSize block = choose_block(args, [&](int threads) {
    SharedArena arena(nullptr);
    BackwardThread<Tiles, NT>(p, threads, arena);
    return arena.bytes();
  });
  if (block.threads == 0) return cudaErrorInvalidConfiguration;
  p.shape = scan_shape(args, block.threads);
  const cudaError_t status = prepare(p, p.shape.parts);
  if (status != cudaSuccess) return status;
  return launch<ScanBackward<Tiles, NT>>(num_blocks(p.shape), block.threads,
                                         block.shared_bytes, stream, p);
}

// Gradients of parameters that are kept per batch and then summed.
class BatchSums {
 public:
  BatchSums(int64_t batch, Workspace& workspace, cudaStream_t stream)
      : batch_(batch), workspace_(workspace), stream_(stream) {}

  // Where the kernel writes (Bt, count) partials of `total`; null stays null.
  float* of(float* total, int64_t count) {
    if (total == nullptr || batch_ == 1) return total;
    auto* partial = static_cast<float*>(
        workspace_.allocate(batch_ * count * sizeof(float)));
    items_[size_++] = {partial, total, count};
    return partial;
  }

  ParamSums of(const ScanArgs& args) {
    const int64_t rows = args.num_routes * args.channels;
    return {of(args.dA, rows * args.d_state), of(args.dD, rows),
            of(args.dbias, rows)};
  }

  cudaError_t add_up() const {
    cudaError_t status = cudaSuccess;
    for (int i = 0; i < size_ && status == cudaSuccess; ++i) {
      status = sum_slots(items_[i].partial, items_[i].total, DType::kFloat, 1,
                         batch_, items_[i].count, stream_);
    }
    return status;
  }

 private:
  struct Item {
    const float* partial;
    float* total;
    int64_t count;
  };
  int64_t batch_;
  Workspace& workspace_;
  cudaStream_t stream_;
  Item items_[4];
  int size_ = 0;
};

}  // namespace mmvssm::cuda
