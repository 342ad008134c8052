// How a scan is cut up: the one place that decides it, from shape and device.
#pragma once

#include "cuda/scan_cuda.h"
#include "cuda/scan_params.h"

namespace mmvssm::cuda {

// With so many warps on each multiprocessor a device is full: nothing is gained
// by cutting sequences. With fewer, they are cut until it has as many as it
// holds at once, see resident_warps(), or up to a quarter less, but no chunk
// gets shorter than kFewestTiles, below which folding the carries takes longer
// than it saves.
constexpr int64_t kFullWarps = 8;
constexpr int64_t kFewestTiles = 2;

struct Cut {
  int states;         // that a lane holds
  int state_lanes;    // that share the states of a channel
  int lane_channels;  // that a lane holds
  int threads;        // of a block
  int shared_bytes;   // of a block
  int carry_bytes;    // of a block of the carry pass
  // See ScanShape.
  int parts, chunks, chunk_tiles, carry_split, num_carries;

  int padded_states() const { return states * state_lanes; }
  int64_t blocks(const ScanArgs& args) const {
    return args.batch * args.num_routes * parts * chunks;
  }
};

// States of a lane and lanes of a channel. Forward, a lane holds up to 16
// states; between 5 and 8 states two lanes of four leave fewer of them idle,
// and of more than 16 states a lane holds 8, so that one that holds 16 knows
// that it is alone. Backward, with several steps of each, a lane holds 8; or of
// 9 to 16 states four of each of four channels, where it may work on `several`:
// scan_backward_quads.cuh.
inline void share_states(int64_t d_state, bool backward, bool several,
                         Cut& cut) {
  cut.states = d_state == 1                                              ? 1
               : d_state <= 4 || (!backward && d_state <= 8)             ? 4
               : d_state > 16 || (backward && !(several && d_state > 8)) ? 8
                                                                         : 16;
  cut.state_lanes = 1;
  while (cut.state_lanes <= 32 && cut.padded_states() < d_state) {
    cut.state_lanes *= 2;
  }
}

// Whole warps, evenly filled, at most `limit` threads.
inline void share_channels(int64_t channels, int limit, Cut& cut) {
  const int64_t lanes =
      (channels + cut.lane_channels - 1) / cut.lane_channels * cut.state_lanes;
  const int64_t parts = (lanes + limit - 1) / limit;
  cut.threads = static_cast<int>(((lanes + parts - 1) / parts + 31) / 32 * 32);
  const int64_t per_block =
      cut.threads / cut.state_lanes * static_cast<int64_t>(cut.lane_channels);
  cut.parts = static_cast<int>((channels + per_block - 1) / per_block);
}

inline int64_t warps_of(const ScanArgs& args, const Cut& cut) {
  return args.batch * args.num_routes * cut.parts * (cut.threads / 32);
}

// Warps for which a multiprocessor has registers at once: most kernels use 96 a
// thread forward, or 80 for 16 states along routes, and 168 backward at most,
// on 65,536.
inline int64_t resident_warps(int states, bool backward, bool several) {
  return backward ? 12 : states == 16 && several ? 24 : 21;
}

// Tiles of a chunk, where a sequence has `tiles` and `blocks` walk whole ones.
// All multiprocessors are as busy as the one with the most blocks: of the
// numbers of blocks that one may have, that which leaves it the fewest tiles is
// taken, and of equals the largest.
inline int64_t choose_chunk_tiles(int64_t tiles, int64_t blocks,
                                  int64_t warps_of_block,
                                  int64_t multiprocessors,
                                  int64_t resident_warps) {
  if (blocks * warps_of_block >= kFullWarps * multiprocessors) return tiles;
  const int64_t most = resident_warps / warps_of_block;
  int64_t best = tiles, best_load = 0;
  for (int64_t per_one = most > 1 ? most : 1; per_one > 0; --per_one) {
    if (4 * per_one < 3 * most) break;
    const int64_t wanted = per_one * multiprocessors / blocks;
    int64_t chunk = wanted > 1 ? (tiles + wanted - 1) / wanted : tiles;
    if (chunk < kFewestTiles) chunk = kFewestTiles;
    if (chunk > tiles) chunk = tiles;
    const int64_t all = blocks * ((tiles + chunk - 1) / chunk);
    const int64_t load = (all + multiprocessors - 1) / multiprocessors * chunk;
    if (best_load == 0 || load < best_load) {
      best = chunk;
      best_load = load;
    }
  }
  return best;
}

// False if not even one warp fits a block of this device. `several`: whether a
// lane may work on several channels, see share_states(); it holds two where
// they have one state and fill whole warps, which spares instructions, as many
// warps are left as the device takes, and they fit. `lay_out(cut)` lays the
// block's arrays out and sets their bytes.
template <typename LayOut>
bool choose_cut(const ScanArgs& args, const Device& device, bool backward,
                bool several, const LayOut& lay_out, Cut& cut) {
  share_states(args.d_state, backward, several, cut);
  if (cut.state_lanes > 32) return false;
  const int64_t full = kFullWarps * device.multiprocessors;
  const int limit = args.max_threads > 0 ? args.max_threads
                                         : max_threads(cut.states, backward);
  // Half as many, in whole warps: 192 threads, 96, 64, 32.
  for (int threads = limit;; threads = (threads / 2 + 31) / 32 * 32) {
    cut.lane_channels = 1;
    share_channels(args.channels, threads, cut);
    const int64_t warps = warps_of(args, cut);
    const bool whole = (args.channels + 31) / 32 % 2 == 0;
    const bool enough = warps / 2 >= full || warps < full;
    if (several && cut.states == 1 &&
        (args.lane_channels > 0 ? args.lane_channels == 2 : whole && enough)) {
      cut.lane_channels = 2;
      share_channels(args.channels, threads, cut);
    }
    lay_out(cut);
    if (cut.shared_bytes > device.shared_limit && threads <= 32 &&
        cut.lane_channels == 2) {
      cut.lane_channels = 1;
      share_channels(args.channels, threads, cut);
      lay_out(cut);
    }
    if (cut.shared_bytes <= device.shared_limit) break;
    if (threads <= 32) return false;
  }

  const int64_t tiles = (args.length + kTile - 1) / kTile;
  int64_t chunk_tiles = args.chunk_tiles;
  if (chunk_tiles == 0) {
    chunk_tiles = choose_chunk_tiles(
        tiles, args.batch * args.num_routes * cut.parts, cut.threads / 32,
        device.multiprocessors, resident_warps(cut.states, backward, several));
  }
  cut.chunk_tiles = static_cast<int>(chunk_tiles);
  cut.chunks = static_cast<int>((tiles + chunk_tiles - 1) / chunk_tiles);
  // The carry pass backward has registers for twice the warps of the main pass.
  const bool halves =
      backward && chunk_tiles % 2 == 0 && chunk_tiles >= 2 * kFewestTiles;
  cut.carry_split = halves ? 2 : 1;
  const int64_t carry_tiles = chunk_tiles / cut.carry_split;
  cut.num_carries = static_cast<int>((tiles + carry_tiles - 1) / carry_tiles);
  return true;
}

}  // namespace mmvssm::cuda
