// Facts shared by every kernel and by the host code; plain C++, no torch.
#pragma once

#include <cstdint>

namespace mmvssm {

// Steps between two saved states: the backward pass recomputes the forward
// recurrence from the state saved at the start of each chunk.
constexpr int kChunk = 64;

// Saved states of one sequence: the state *entering* chunks 1, 2, ... (chunk 0
// starts from zero), as a float32 (float64) tensor (Bt, K, S, N, D).
constexpr int64_t num_saved_states(int64_t length) {
  return (length - 1) / kChunk;
}

// softplus(x) is x itself above this threshold, and its derivative 1.
constexpr float kSoftplusThreshold = 20.0f;

enum class DType : int32_t { kFloat, kHalf, kBFloat16, kDouble };

// What is known of the tables of routes, found once when they are made;
// mmvssm/ops/route_facts.py says the same in Python.
enum RouteFacts : int64_t {
  kChecked = 1,      // every entry is in range
  kReadRepeats = 2,  // some route reads a pixel more than once
  kReadGaps = 4,     // some route leaves a pixel unread
  kOutRepeats = 8,   // some route writes an output row more than once
  kOutGaps = 16,     // some route leaves an output row unwritten
  kDisjoint = 32,    // one table, and no pixel belongs to two routes
  kUnionGaps = 64,   // some output row is written by no route at all
};

// What the kernels may rely on: the worst of tables that nobody vouches for.
constexpr int64_t reliable_facts(int64_t given) {
  return given & kChecked
             ? given
             : kReadRepeats | kReadGaps | kOutRepeats | kOutGaps | kUnionGaps;
}

// How the routes write one result: y along out_routes, the gradients of x and
// x_dbl along routes.
struct RouteWrites {
  bool exclusive;  // no row is written by two routes
  bool repeats;    // a route may come to a row again, and must add to it
  bool gaps;       // a row may be left unwritten

  // Rows must be zero beforehand.
  constexpr bool cleared() const { return repeats || gaps; }
};

// `apart`: every route has rows of its own; else the routes share them.
constexpr RouteWrites route_writes(int64_t facts, bool apart, int64_t repeats,
                                   int64_t gaps) {
  const bool disjoint = facts & kDisjoint;
  return {apart || disjoint, (facts & repeats) != 0,
          (facts & (disjoint && !apart ? kUnionGaps : gaps)) != 0};
}
constexpr RouteWrites out_writes(int64_t facts, bool apart) {
  return route_writes(facts, apart, kOutRepeats, kOutGaps);
}
constexpr RouteWrites read_writes(int64_t facts, bool apart) {
  return route_writes(facts, apart, kReadRepeats, kReadGaps);
}

}  // namespace mmvssm
