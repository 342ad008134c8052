// Host interface of the CUDA kernels: plain C++, no torch, so that the kernels
// compile in a second and the tests can run them without either.
#pragma once

#include <cuda_runtime.h>

#include "common/scan_common.h"

namespace mmvssm::cuda {

#ifdef MMVSSM_PLAN
class Workspace;  // nvrtc/launch_plan.h
#else
// Device memory that lives until the kernels started on the stream are done.
class Workspace {
 public:
  virtual ~Workspace() = default;
  virtual void* allocate(int64_t bytes) = 0;  // aligned to 16 bytes
};
#endif

// Sizes and parameters of both forms. Pointers are to contiguous arrays on
// the device; those marked * may be null. What is written is aligned to 16
// bytes, as every fresh allocation is, and may hold anything before.
struct ScanArgs {
  int64_t batch, num_routes, channels, d_state, length;
  DType in_type;      // of x or u, delta, x_dbl, B, C and of their gradients
  DType y_type;       // of y and dy: float, or in_type
  const float* A;     // (K*D, N)
  const float* D;     // * (K*D)
  const float* bias;  // * (K*D)
  float* states;      // * (Bt, K, S, N, D): written forward, read backward
  void* y;            // forward
  const void* dy;     // backward, as y
  float *dA, *dD, *dbias;  // backward; the last two * when D, bias are
  // Launch shape; only the tests set these.
  int max_threads = 128;     // channels of a block at most
  int64_t min_blocks = 256;  // below this many blocks, smaller ones are used
};

// Channel-first sequences.
struct Scan1dArgs : ScanArgs {
  bool softplus;
  const void *u, *delta;  // (Bt, K*D, L), as y
  const void *B, *C;      // (Bt, K, N, L)
  float* last_state;      // forward: (Bt, K*D, N)
  void *du, *ddelta, *dB, *dC;
};

// Channels-last maps read and written through routes.
struct Scan2dArgs : ScanArgs {
  int64_t pixels, out_rows, dt_rank;
  bool x_per_route, shared_projection, merge;
  int64_t facts;              // RouteFacts that the kernels may rely on
  const void* x;              // (Bt, P, D) or (Bt, P, K, D)
  const void* x_dbl;          // (Bt, P, K | 1, R + 2N)
  const int32_t* routes;      // (K, L)
  const int32_t* out_routes;  // (K, L)
  const float* dt_weight;     // (K, D, R)
  void *dx, *dx_dbl;          // y: (Bt, Q, D) merged, else (Bt, Q, K, D)
  float* ddt_weight;
};

// cudaErrorInvalidConfiguration: the rank and the number of states need more
// shared memory than a block of this device can have.
cudaError_t scan_1d_forward(const Scan1dArgs&, Workspace&, cudaStream_t);
cudaError_t scan_1d_backward(const Scan1dArgs&, Workspace&, cudaStream_t);
cudaError_t scan_2d_forward(const Scan2dArgs&, Workspace&, cudaStream_t);
cudaError_t scan_2d_backward(const Scan2dArgs&, Workspace&, cudaStream_t);

// out[o][i] = sum over c of slots[o][c][i], c ascending, for o < outer,
// c < count, i < inner: the only sum over blocks, hence no atomics anywhere.
// Both arrays are aligned to 16 bytes.
cudaError_t sum_slots(const float* slots, void* out, DType out_type,
                      int64_t outer, int64_t count, int64_t inner,
                      cudaStream_t stream);

}  // namespace mmvssm::cuda
