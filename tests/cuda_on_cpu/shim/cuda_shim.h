// What ops/csrc/cuda/device.cuh offers beyond CUDA's headers, as plain C++.
#pragma once

#include <cuda_runtime.h>

namespace mmvssm::cuda {

inline float exp2_approx(float x) { return exp2f(x); }

template <int Bytes>
void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "sizes of cp.async");
  shim::copy_async(shared, global, Bytes);
}
inline void copy_async_wait() { shim::copy_async_wait(); }

inline unsigned char* dynamic_shared() { return shim::dynamic_shared(); }

constexpr int kSharedGap = 32;
inline void forbid_shared(unsigned char* begin, int bytes) {
  if (bytes > 0) shim::forbid(begin, bytes);
}

#ifndef MMVSSM_PLAN
template <typename Kernel>
void run_with(const void* params) {
  Kernel::run(*static_cast<const typename Kernel::Params*>(params));
}
// Whoever has the name of a kernel that the program starts finds it.
template <typename Kernel>
inline const bool kRegistered = shim::register_kernel(
    shim::type_name<Kernel>(),
    {run_with<Kernel>, Kernel::kThreads, sizeof(typename Kernel::Params)});

template <typename Kernel>
cudaError_t launch(int64_t blocks, int threads, int shared_bytes, cudaStream_t,
                   const typename Kernel::Params& params) {
  (void)kRegistered<Kernel>;
  if (threads > Kernel::kThreads) shim::fail("%d threads in a block", threads);
  shim::run_grid(blocks, threads, shared_bytes, [&] { Kernel::run(params); });
  return cudaSuccess;
}
#endif

}  // namespace mmvssm::cuda
