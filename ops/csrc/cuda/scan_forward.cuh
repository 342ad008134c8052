// The forward scan, for either form. Tiles supplies what the form reads and
// writes: RouteForward (scan_2d_forward.cu), SequenceForward
// (scan_1d_forward.cu).
#pragma once

#include <type_traits>

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// States that a thread carries at a time.
template <typename Launch>
cudaError_t with_forward_states(int64_t d_state, const Launch& launch) {
  if (d_state == 1) return launch(std::integral_constant<int, 1>());
  if (d_state <= 4) return launch(std::integral_constant<int, 4>());
  if (d_state <= 8) return launch(std::integral_constant<int, 8>());
  return launch(std::integral_constant<int, 16>());
}
constexpr int64_t kForwardStates = 16;

// Blocks of kMaxThreads that shall fit a multiprocessor (0: the compiler's
// choice); it bounds registers.
constexpr int forward_occupancy(int states) { return states <= 4 ? 0 : 3; }

template <typename Tiles, int NT>
struct ScanForward {
  using Params = typename Tiles::Params;
  static constexpr int kThreads = kMaxThreads, kBlocks = forward_occupancy(NT);

  static __device__ __forceinline__ void run(const Params& p) {
    const ScanShape& s = p.shape;
    const Place place(s);
    SharedArena arena(dynamic_shared());
    Tiles tiles(p, blockDim.x, arena);
    tiles.attach(p, place);

    const int num_tiles = (s.length + kTile - 1) / kTile;
    for (int n0 = 0; n0 < s.d_state; n0 += NT) {
      const float skip = n0 == 0 && s.D != nullptr ? s.D[place.row(s)] : 0.0f;
      float log2_decay[NT];
      float h[NT] = {};
      load_log2_decay(s, place, n0, log2_decay);

      tiles.begin(n0, 0, num_tiles > 1 ? 1 : -1);
      for (int tile = 0; tile < num_tiles; ++tile) {
        tiles.advance(place, tile + 2 < num_tiles ? tile + 2 : -1);
        if (s.states != nullptr && tile > 0 && tile % kTilesPerChunk == 0 &&
            place.active) {
          float* saved = saved_state(s, place, tile / kTilesPerChunk, n0);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            if (n0 + n < s.d_state) saved[n * s.channels] = h[n];
          }
        }
#pragma unroll 1
        for (int step = 0; step < kTile; step += kSub) {
          float u[kSub], d[kSub], slope[kSub], y[kSub];
          tiles.load(step, u, d, slope);
#pragma unroll
          for (int t = 0; t < kSub; ++t) {
            float B[NT], C[NT];
            read_broadcast<NT>(tiles.B_row(step + t), B);
            read_broadcast<NT>(tiles.B_row(step + t) + NT, C);
            step_state<NT>(log2_decay, d[t], d[t] * u[t], B, h);
            y[t] = skip * u[t];
#pragma unroll
            for (int n = 0; n < NT; ++n) y[t] = fmaf(h[n], C[n], y[t]);
          }
          tiles.store(step, y);
        }
        tiles.finish_tile(place);
      }
      tiles.store_last_state(place, h);
    }
  }
};

// Chooses the block and starts the kernel.
template <typename Tiles, int NT>
cudaError_t launch_forward(const ScanArgs& args, typename Tiles::Params p,
                           cudaStream_t stream) {
  const BlockSize block = choose_block(args, [&](int threads) {
    SharedArena arena(nullptr);
    Tiles(p, threads, arena);
    return arena.bytes();
  });
  if (block.threads == 0) return cudaErrorInvalidConfiguration;
  p.shape = scan_shape(args, block.threads);
  return launch<ScanForward<Tiles, NT>>(num_blocks(p.shape), block.threads,
                                        block.shared_bytes, stream, p);
}

}  // namespace mmvssm::cuda
