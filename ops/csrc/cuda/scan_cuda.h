// Host interface of the CUDA kernels. It turns a scan into launches; a Device
// carries them out: the extension's launches kernels that nvcc built, another
// may compile the same sources when they are first needed, the tests run them
// on the CPU.
//
// This and the *_host.cpp files are plain C++ without torch, CUDA headers and
// the standard library, so that they compile wherever a Device is.
#pragma once

#include "common/scan_common.h"

namespace mmvssm::cuda {

// A kernel among the instantiations of its template.
enum class Function {
  kRouteForward,
  kRouteForwardCarry,
  kRouteBackward,
  kRouteBackwardCarry,
  kSequenceForward,
  kSequenceForwardCarry,
  kSequenceBackward,
  kSequenceBackwardCarry,
  kSumSlots,
  kSumPieces,
  kFoldCarries,
  kLinkVisits,
  kGatherRows,
  kGatherProjections,
};

struct Kernel {
  Function function;
  DType type;         // T: of the inputs; of the result where it only gathers
  int states;         // NT: states of a lane, or values of a thread
  int lane_channels;  // CH: channels of a lane
};

// "route_forward_kernel", of namespace mmvssm::cuda; its template arguments are
// the type ("float"), `states` and `lane_channels`.
const char* name_of(Function);
const char* name_of(DType);
// The file under ops/csrc that defines it, "cuda/route_forward.cuh".
const char* header_of(Function);

struct Launch {
  Kernel kernel;
  int64_t blocks;
  int threads, shared_bytes;
  const void* params;  // the kernel's only argument, by value
  int params_bytes;
};

// out[i] = a[i] b[i]: float32, contiguous. a (batch, rows, inner),
// b (batch, inner, columns), out (batch, rows, columns).
struct Product {
  const float *a, *b;
  float* out;
  int64_t batch, rows, inner, columns;
};

}  // namespace mmvssm::cuda

#ifdef MMVSSM_PLAN
#include "nvrtc/plan_device.h"
#else
namespace mmvssm::cuda {

// Everything that a scan asks of the device, in the order of one stream.
class Device {
 public:
  Device(int multiprocessors, int shared_limit)
      : multiprocessors(multiprocessors), shared_limit(shared_limit) {}

  // Memory aligned to 16 bytes that lives until the work asked for is done.
  virtual void* allocate(int64_t bytes) = 0;
  // Sets every byte.
  virtual void fill(void* begin, unsigned char value, int64_t bytes) = 0;
  virtual void launch(const Launch&) = 0;
  virtual void multiply(const Product&) = 0;

  const int multiprocessors;
  const int shared_limit;  // bytes of shared memory that a block may have

 protected:
  ~Device() = default;
};

}  // namespace mmvssm::cuda
#endif

namespace mmvssm::cuda {

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
  // Launch shape; only the tests set these. 0: by the rule of scan_rules.h.
  int max_threads = 0;
  int chunk_tiles = 0;
  int lane_channels = 0;
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

// False, before anything is launched: the rank and the number of states need
// more than a block of this device can have.
[[nodiscard]] bool scan_1d_forward(const Scan1dArgs&, Device&);
[[nodiscard]] bool scan_1d_backward(const Scan1dArgs&, Device&);
[[nodiscard]] bool scan_2d_forward(const Scan2dArgs&, Device&);
[[nodiscard]] bool scan_2d_backward(const Scan2dArgs&, Device&);

}  // namespace mmvssm::cuda
