// What the CPU kernels are told: sizes and plain pointers, no torch.
//
// S is the precision of the recurrence: float, or double for double input.
// Every array that a kernel writes has type S; the caller converts.
#pragma once

#include <vector>

#include "common/scan_common.h"

namespace mmvssm {

template <typename S>
struct ScanArgs {
  int64_t batch, num_routes, channels, d_state, length;
  DType in_type;  // of u or x, delta, B, C, x_dbl
  const S* A;     // (K*D, N)
  const S* D;     // (K*D) or null
  S* states;      // (Bt, K, S, N, D); written by forward when not null

  // backward only; the batches are split into slots, and parameter gradients
  // are partials of one slot each
  DType dy_type;
  const void* dy;
  S* dA;     // (slots, K*D, N)
  S* dD;     // (slots, K*D) or null
  S* dbias;  // (slots, K*D) or null
};

// Level 1: channel-first sequences.
template <typename S>
struct Scan1dArgs : ScanArgs<S> {
  bool softplus;
  const void *u, *delta;  // (Bt, K*D, L)
  const void *B, *C;      // (Bt, K, N, L)
  const S* bias;          // (K*D) or null
  S* y;                   // (Bt, K*D, L)
  S* last_state;          // (Bt, K*D, N)
  S *du, *ddelta;         // (Bt, K*D, L)
  S *dB, *dC;             // (channel groups, Bt, K, N, L), zeroed by the caller
};

// An array that is written along routes: the caller clears it when
// writes.cleared(), else it may hold anything.
template <typename S>
struct RouteArray {
  S* data;
  RouteWrites writes;

  // Whether a route adds to what is there. Routes that share rows follow one
  // another in one task: the first may store.
  bool adds(int64_t route) const {
    return writes.repeats || (!writes.exclusive && route > 0);
  }
};

// Level 2: channels-last maps read through routes.
template <typename S>
struct Scan2dArgs : ScanArgs<S> {
  int64_t pixels, out_rows, dt_rank;
  bool x_per_route, shared_projection, merge;
  const void* x;          // (Bt, P, D) or (Bt, P, K, D)
  const void* x_dbl;      // (Bt, P, K | 1, R + 2N)
  const int32_t* routes;  // (K, L)
  const int32_t* out_routes;
  const S* dt_weight;    // (K, D, R)
  const S* bias;         // (K*D)
  RouteArray<S> y;       // (Bt, Q, D) or (Bt, Q, K, D)
  RouteArray<S> dx;      // as x
  RouteArray<S> dx_dbl;  // (channel groups, ...) as x_dbl
  S* ddt_weight;         // (slots, K, D, R)
};

// Pixels of one task of a merge.
constexpr int64_t kMergeRows = 64;

// The merge of routes: x (Bt, P, K, D) to y, by blocks of kMergeRows pixels.
template <typename S>
struct MergeArgs {
  int64_t batch, pixels, num_routes, channels;
  DType type;         // of x and scale
  const void* x;      // (Bt, P, K, D)
  const void* scale;  // (Bt, P, D) or null for ones
  const S* gates;     // (Bt, K, D)
  S eps;
  S* y;  // means: (blocks, Bt, K, D), a sum for each block; sum: (Bt, P, D)

  // backward only
  const S* dy;  // of the sums over all pixels (Bt, K, D); sum: as y
  S* dx;        // as x
  S* dscale;    // as scale, or null
  S* dgates;    // (blocks, Bt, K, D)
};

// One unit of work: batches [batch_begin, batch_end) of slot `slot`, routes
// [route_begin, route_end), channels [channel_begin, channel_end);
// `channel_group` is the number of the channel range.
struct Task {
  int64_t slot, batch_begin, batch_end, route_begin, route_end;
  int64_t channel_group, channel_begin, channel_end;
};

template <typename S>
struct Kernels {
  void (*forward_1d)(const Scan1dArgs<S>&, const Task&);
  void (*backward_1d)(const Scan1dArgs<S>&, const Task&);
  void (*forward_2d)(const Scan2dArgs<S>&, const Task&);
  void (*backward_2d)(const Scan2dArgs<S>&, const Task&);
  // by task: block * batch + image
  void (*means)(const MergeArgs<S>&, int64_t);
  void (*means_backward)(const MergeArgs<S>&, int64_t);
  void (*sum)(const MergeArgs<S>&, int64_t);
  void (*sum_backward)(const MergeArgs<S>&, int64_t);
};

// The kernels of one instruction set.
struct KernelTable {
  const char* name;
  int float_lanes;
  Kernels<float> single_precision;
  Kernels<double> double_precision;
};

extern const KernelTable kBaselineKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

// All variants that this processor can run, best first.
std::vector<const KernelTable*> runnable_kernels();

}  // namespace mmvssm
