// Stands in for CUDA's runtime where the host code shall not start its kernels
// but write down what it would start: a list that mmvssm/ops/nvrtc goes through
// whenever a call of the same sizes comes.
//
// NVRTC compiles no host code. With every function taken for device code, the
// list is made by one thread of the GPU (planner.h); the tests make the same
// one on the CPU.
#pragma once

namespace mmvssm::cuda {

constexpr int kMaxLaunches = 32;
constexpr int kMaxKernelName = 512;
constexpr int kMaxParamBytes = 1024;

struct PlannedLaunch {
  // Ends in "[with Kernel = ...]"; empty: sets the bytes that the first of
  // `params` points to to zero.
  char kernel[kMaxKernelName];
  int64_t blocks;
  int32_t threads, shared_bytes;
  int64_t bytes;  // of params, or to clear
  alignas(16) unsigned char params[kMaxParamBytes];
};

struct LaunchPlan {
  int32_t status;  // a cudaError_t
  int32_t count;
  int64_t workspace_bytes;
  PlannedLaunch launches[kMaxLaunches];

  // The next entry, or null when there is no room.
  __device__ PlannedLaunch* add(int64_t blocks, int threads, int shared_bytes,
                                int64_t bytes) {
    if (count == kMaxLaunches) {
      return nullptr;
    }
    PlannedLaunch* launch = &launches[count++];
    launch->kernel[0] = 0;
    launch->blocks = blocks;
    launch->threads = threads;
    launch->shared_bytes = shared_bytes;
    launch->bytes = bytes;
    return launch;
  }
};

// Memory that the kernels of a plan share: only its size is known.
class Workspace {
 public:
  __device__ Workspace(LaunchPlan& plan, int64_t address)
      : plan_(plan), address_(address) {}

  __device__ void* allocate(int64_t bytes) {
    const int64_t begin = plan_.workspace_bytes;
    plan_.workspace_bytes += (bytes + 255) / 256 * 256;
    return reinterpret_cast<void*>(address_ + begin);
  }

 private:
  LaunchPlan& plan_;
  int64_t address_;
};

// Values of cudaDeviceGetAttribute, by attribute.
static __device__ const int32_t* device_attributes;

template <typename T>
__device__ void copy_out(const T* from, T* to, int64_t count) {
#pragma unroll 1
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

}  // namespace mmvssm::cuda

// Outside of the namespace, for GCC leaves the names of enclosing ones out.
template <typename Kernel>
__device__ void mmvssm_copy_name(char* to) {
  using mmvssm::cuda::kMaxKernelName;
  static_assert(sizeof(__PRETTY_FUNCTION__) <= kMaxKernelName, "name too long");
  mmvssm::cuda::copy_out(__PRETTY_FUNCTION__, to, sizeof(__PRETTY_FUNCTION__));
}

namespace mmvssm::cuda {

template <typename Kernel>
__device__ cudaError_t launch(int64_t blocks, int threads, int shared_bytes,
                              cudaStream_t stream,
                              const typename Kernel::Params& params) {
  constexpr int64_t bytes = sizeof(typename Kernel::Params);
  static_assert(bytes <= kMaxParamBytes, "raise kMaxParamBytes");
  PlannedLaunch* to = reinterpret_cast<LaunchPlan*>(stream)->add(
      blocks, threads, shared_bytes, bytes);
  if (to == nullptr) return cudaErrorInvalidValue;
  mmvssm_copy_name<Kernel>(to->kernel);
  copy_out(reinterpret_cast<const unsigned char*>(&params), to->params, bytes);
  return cudaSuccess;
}

}  // namespace mmvssm::cuda

static inline __device__ cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
static inline __device__ cudaError_t
cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = mmvssm::cuda::device_attributes[static_cast<int>(attribute)];
  return cudaSuccess;
}
// `value` is zero.
static inline __device__ cudaError_t cudaMemsetAsync(void* begin, int,
                                                     size_t bytes,
                                                     cudaStream_t stream) {
  mmvssm::cuda::PlannedLaunch* to =
      reinterpret_cast<mmvssm::cuda::LaunchPlan*>(stream)->add(
          0, 0, 0, static_cast<int64_t>(bytes));
  if (to == nullptr) return cudaErrorInvalidValue;
  *reinterpret_cast<void**>(to->params) = begin;
  return cudaSuccess;
}
