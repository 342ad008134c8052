// What kernels are given: plain structs that the host fills in and that a
// launch copies to the device. No CUDA header, so that every host compiles it.
#pragma once

#include <cstdint>

#include "cuda/shared_layout.h"

namespace mmvssm::cuda {

// Of a block. Those of the backward scan of 16 states share more: its rows take
// much of the shared memory that there is.
constexpr int kMaxThreads = 128;
constexpr int max_threads(int states, bool backward) {
  return backward && states == 16 ? 192 : kMaxThreads;
}

// Division of a number from 0 to 2^31 - 1 by one that the host knows: as a
// multiplication, which a warp does once for all its lanes.
struct Divisor {
  uint32_t multiplier;
  int shift;

  static Divisor of(int by) {
    int shift = 31;
    while ((int64_t{1} << (shift - 31)) < by) ++shift;
    const uint64_t power = uint64_t{1} << shift;
    return {static_cast<uint32_t>((power + by - 1) / by), shift};
  }
  MMVSSM_SHARED int divide(int number) const {
    return static_cast<int>(
        static_cast<uint64_t>(static_cast<uint32_t>(number)) * multiplier >>
        shift);
  }
};

// Threads of a block of collect.cuh, and chunks that one of them folds at once.
constexpr int kCollectThreads = 256;
constexpr int kFoldedChunks = 16;

// How a scan is cut up: blocks are (batch, route, chunk, part of the channels).
struct ScanShape {
  int batch, num_routes, channels, d_state, length;
  int parts;        // blocks that share the channels of a route
  int chunks;       // pieces of the sequence that run side by side
  int chunk_tiles;  // tiles in a piece
  int carry_split;  // parts of a chunk that have a carry each
  int num_carries;  // of a sequence
  int state_lanes;  // lanes that share the states of a channel: a power of two
  Divisor by_parts, by_chunks, by_routes;
  const float* A;     // (K*D, N)
  const float* D;     // (K*D) or null
  const float* bias;  // (K*D) or null
  float* states;      // (Bt, K, S, N, D) or null
  float* carries;     // (Bt, K, num_carries, 1 + N, D), see scan_block.cuh
  float* marks;       // (blocks, kTile / kSub + 1, 4, threads, 4) or null, see
                      // scan_backward_quads.cuh
};

// What is left of the carries of a scan in chunks, see scan_block.cuh: each
// state of a chunk becomes what comes out of it with all chunks before it (or,
// backward, after it) taken into account.
struct FoldParams {
  const float* A;  // as in ScanShape, and so on
  float* carries;
  int batch, num_routes, channels, d_state;
  int chunks;  // that have a carry each
  int shares;  // of the chunks, a thread each
  bool backward;
};

// What routes read: addresses are base + batch * batch_stride + route *
// route_stride + pixel * pixel_stride + channel or column, in elements.
struct RouteInputs {
  const void *x, *x_dbl;
  const int32_t *routes, *out_routes;  // (K, L)
  const float* dt_weight;              // (K, D, R)
  int64_t x_batch_stride, x_dbl_batch_stride;
  int x_route_stride, x_pixel_stride;
  int x_dbl_route_stride, x_dbl_pixel_stride;
  int dt_rank;
  // What rows of x_dbl are aligned to, and of float32 the three parts of a row,
  // too: 16, 8 or 4; else 0.
  int copy_bytes;
};

// Rows of D channels that a step of a route reads or writes: y, dy, dx. A step
// has the row of its pixel, or rows lie in the order of the steps.
struct RouteRows {
  void* data;
  bool is_float;  // else the type of the input
  bool by_step;
  int row_stride;
  int64_t batch_stride, route_stride;
};

struct RouteForwardParams {
  ScanShape shape;
  RouteLayout layout;
  RouteInputs inputs;
  RouteRows y;
};

// What a block adds up over its chunk, (Bt, K, chunks, D, .) in this order of
// batch, route and chunk: see parameter_sum in scan_block.cuh.
struct ParameterSums {
  float *dA, *dD, *dbias;  // the last two null when D, bias are
};

struct RouteBackwardParams {
  ScanShape shape;
  RouteLayout layout;
  BackwardLayout backward;
  RouteInputs inputs;
  ParameterSums sums;
  float* ddt_weight;  // as the sums, (Bt, K, chunks, D, R)
  RouteRows dy, dx;
  float* d_raw_step;    // (K, Bt, L, D)
  float* map_grads;     // (parts, K, Bt, L, 2 * padded states)
  int64_t part_stride;  // of map_grads
};

// Rows of a sequence, (Bt, K*D, L): float, or the type of the input.
struct SequenceRows {
  void* data;
  bool is_float;
};

struct SequenceInputs {
  SequenceRows u, delta;
  const void *B, *C;  // (Bt, K, N, L)
  bool softplus;
};

struct SequenceForwardParams {
  ScanShape shape;
  SequenceLayout layout;
  SequenceInputs inputs;
  SequenceRows y;
  float* last_state;  // (Bt, K*D, N)
};

struct SequenceBackwardParams {
  ScanShape shape;
  SequenceLayout layout;
  BackwardLayout backward;
  SequenceInputs inputs;
  ParameterSums sums;
  SequenceRows dy, du, ddelta;
  float *dB, *dC;       // (parts, Bt, K, N, L)
  int64_t part_stride;  // Bt * K * N * L
};

// Of up to four arrays, what the pieces of a scan gave to each: total[i] = sum
// of shares[c][i] over the pieces c, in a fixed order.
struct PieceParams {
  struct Array {
    const float* shares;  // (pieces, count)
    float* total;         // (count)
    int64_t count;
  };
  Array arrays[4];  // the last ones may be empty
  int64_t pieces;
  int num_shares;  // threads that share a sum
};

// out[o][i] = sum of slots[o][c][i] over c, in a fixed order.
struct SumParams {
  const float* slots;  // (outer, count, inner)
  void* out;           // (outer, inner)
  int64_t outer, count, inner;
};

// The steps at which each row of a table is visited, as linked lists in no
// particular order: `first` names a step, `next` the one after it; -1 ends.
struct Visits {
  int32_t* first;  // (K, rows)
  int32_t* next;   // (K, L), or null where no route comes to a row again
};

struct VisitParams {
  const int32_t* table;  // (K, L)
  Visits visits;
  int num_routes, length, rows;
};

// What is gathered, (Bt, rows, across, packs): `across` is the routes that stay
// apart, or 1; a thread makes a pack, of so many images, which begin with a
// block.
struct GatherItems {
  int rows, across, packs, images, image_blocks;
  Divisor by_blocks, by_packs, by_across;
};

// out (Bt, rows, D), or (Bt, rows, K, D) where routes stay apart, from rows in
// the order of the steps, (Bt, K, L, D).
struct GatherParams {
  const float* steps;
  void* out;
  Visits visits;
  GatherItems items;
  int num_routes, length;
};

// dx_dbl (Bt, P, K or 1, R + 2N) from what the steps gave.
struct ProjectionParams {
  const float* dt_grads;   // (K, Bt, L, R)
  const float* map_grads;  // (parts, K, Bt, L, 2 * padded_states)
  void* out;
  Visits visits;
  GatherItems items;
  int batch, num_routes, length;
  int rank_packs;  // of the packs of a row; the others are of B and C
  int dt_rank, d_state, padded_states, parts;
};

}  // namespace mmvssm::cuda
