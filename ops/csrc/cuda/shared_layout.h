// Where a block's arrays lie in its dynamic shared memory. The host lays them
// out and kernels find the offsets among their parameters, which costs them no
// registers.
#pragma once

#include <cstdint>

#include "common/scan_common.h"

// A function that the host and the device share.
#ifdef __CUDACC__
#define MMVSSM_SHARED __host__ __device__ __forceinline__
#else
#define MMVSSM_SHARED inline
#endif

// Nothing lies between the arrays; the tests put a forbidden zone there.
#ifndef MMVSSM_SHARED_GAP
#define MMVSSM_SHARED_GAP 0
#define MMVSSM_NOTE_GAP(offset, bytes)
#endif

namespace mmvssm::cuda {

// Steps that a block takes at a time (the saved states lie between tiles), that
// sequences move through shared memory at a time, that a thread holds in
// registers.
constexpr int kTile = kChunk;
constexpr int kGroup = 16;
constexpr int kSub = 8;
static_assert(kTile % kGroup == 0 && kGroup % kSub == 0, "steps must nest");

// Lays arrays out one after the other, each aligned to 16 bytes.
class SharedArena {
 public:
  // Returns the offset of `count` elements in bytes.
  int take(int count, int element_bytes) {
    const int begin = bytes_;
    const int used = count * element_bytes;
    bytes_ += (used + 15) / 16 * 16 + MMVSSM_SHARED_GAP;
    MMVSSM_NOTE_GAP(begin + used, bytes_ - begin - used);
    return begin;
  }
  int floats(int count) { return take(count, 4); }

  int bytes() const { return bytes_; }

 private:
  int bytes_ = 0;
};

// Rows of a tile that all channels of a block share, float32, by quads of four
// columns: [quad][kTile][4], so that the steps of a quad lie side by side, and
// four words of padding, so that the columns of a step lie in different banks.
// B and C of the padded states follow the dt rank, which zeros pad in front;
// one state has both in a quad.
constexpr int kQuad = 4 * kTile + 4;

MMVSSM_SHARED constexpr int map_quads(int padded_states) {
  return padded_states == 1 ? 1 : padded_states / 2;
}

// How threads share the pieces of a tile's rows: a thread has the same piece of
// every `rows`-th row, so many at a time, and its first row is thread /
// per_row, or 0 where a row has more pieces than the block threads.
struct PieceSplit {
  int per_row, rows;
  int reciprocal;  // of per_row, times 2^16, so that rounding down is right

  void lay_out(int pieces, int threads) {
    per_row = pieces;
    rows = pieces < threads ? threads / pieces : 1;
    reciprocal = pieces < threads ? (65535 + pieces) / pieces : 0;
  }
  MMVSSM_SHARED int first_row(int thread) const {
    return thread * reciprocal >> 16;
  }
};

// Tiles of a scan along routes.
struct RouteLayout {
  int rank_quads;
  bool rank_pairs;  // half of the first quad at most is not padding
  int raw_pitch;    // in elements
  int raw;   // 16-bit rows as they arrive, kTile; float32 ones have no need
  int rows;  // rank_quads + map_quads(padded states) quads, ...
  int rows_size;    // ... so many floats; of float32 inputs two tiles
  int entries;      // int [2][routes, out_routes][kTile]
  int offsets;      // int [accesses][2 * kTile]: a ring of two tiles
  int weights;      // [rank quad][channel of a lane][thread][4]
  int constants;    // forward: [bias, skip weight][channel of a lane][thread]
  int weight_sums;  // backward, as the weights: sums of their gradients
  PieceSplit copies, columns;  // of a row as it is copied, and converted

  // Rows of x and y; backward of x, dy and dx.
  static constexpr int accesses(bool backward) { return backward ? 3 : 2; }

  void lay_out(int dt_rank, int d_state, int padded_states, int element_bytes,
               int copy_bytes, bool backward, int threads, int lane_channels,
               SharedArena& arena) {
    rank_quads = (dt_rank + 3) / 4;
    rank_pairs = 4 * rank_quads - dt_rank >= 2;
    const int per_16_bytes = 16 / element_bytes;
    const int width = dt_rank + 2 * d_state;
    raw_pitch = (width + per_16_bytes - 1) / per_16_bytes * per_16_bytes;
    const bool is_float = element_bytes == 4;
    raw = arena.take(is_float ? 0 : kTile * raw_pitch, element_bytes);
    rows_size = (rank_quads + map_quads(padded_states)) * kQuad;
    rows = arena.floats((is_float ? 2 : 1) * rows_size);
    entries = arena.floats(2 * 2 * kTile);
    offsets = arena.floats(accesses(backward) * 2 * kTile);
    const int all_weights = 4 * rank_quads * lane_channels * threads;
    weights = arena.floats(all_weights);
    constants = backward ? 0 : arena.floats(2 * lane_channels * threads);
    weight_sums = backward ? arena.floats(all_weights) : 0;
    const int copied = copy_bytes > element_bytes ? copy_bytes : element_bytes;
    copies.lay_out((width * element_bytes + copied - 1) / copied, threads);
    columns.lay_out(width, threads);
  }
};

// Tiles of a scan of sequences: rows of B and C, and of each thread's own
// values kGroup steps and a word of padding.
struct SequenceLayout {
  static constexpr int kOwnPitch = kGroup + 1;
  int rows;          // map_quads(padded states) quads
  int u, delta, dy;  // [thread][kOwnPitch]

  void lay_out(int padded_states, int threads, bool backward,
               SharedArena& arena) {
    rows = arena.floats(map_quads(padded_states) * kQuad);
    u = arena.floats(threads * kOwnPitch);
    delta = arena.floats(threads * kOwnPitch);
    dy = backward ? arena.floats(threads * kOwnPitch) : 0;
  }
};

// What a warp of scan_backward_quads.cuh has for itself: floats in a row.
struct QuadLayout {
  static constexpr int kSteps = 0;                        // [pair][lane][4]
  static constexpr int kOwn = kSteps + kSub / 2 * 128;    // [pair][lane][4]
  static constexpr int kGrads = kOwn + kSub / 2 * 128;    // [pair][lane][2]
  static constexpr int kBefore = kGrads + kSub / 2 * 64;  // [2][4][lane][4]
  // [step of a pair][B, C][lane][4 states] and padding, so that the four arrays
  // start in different banks.
  static constexpr int kPitch = 128 + 16;
  static constexpr int kLanes = kBefore + 8 * 128;
  static constexpr int kFloats = kLanes + 4 * kPitch;
};

// What the backward scan keeps beside its tiles.
struct BackwardLayout {
  int marks;   // [kTile / kSub][channel of a lane, state][thread]
  int sums;    // [warp][flush_steps][B, C of all states, padded]
  int totals;  // [channel of a lane][states, dD, dbias][thread]
  // Of 16 states, what warps have each for themselves, see QuadLayout; `marks`
  // is elsewhere then.
  int warps;

  // Steps whose sums over channels are collected before the warps are added up.
  static MMVSSM_SHARED constexpr int flush_steps(int states) {
    return states == 1 ? kTile : states == 16 ? kSub : kGroup;
  }
  void lay_out(int states, int lane_channels, int padded_states, int threads,
               SharedArena& arena) {
    const bool quads = states == 16;
    const int kept = quads ? 0 : states;
    marks = arena.floats(kTile / kSub * kept * lane_channels * threads);
    sums = arena.floats(threads / 32 * flush_steps(states) * 2 * padded_states);
    totals = arena.floats(lane_channels * (quads ? 3 : states + 2) * threads);
    warps = quads ? arena.floats(threads / 32 * QuadLayout::kFloats) : 0;
  }
};

}  // namespace mmvssm::cuda
