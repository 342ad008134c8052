// The kernels that were compiled ahead of time.
#pragma once

#include "cuda/scan_cuda.h"

#ifdef MMVSSM_EMULATED
#include "kernel_handle.h"
#else
namespace mmvssm::cuda {

// What cudaLaunchKernel takes; null: not compiled.
using KernelHandle = const void*;

template <typename Params>
KernelHandle handle_of(void (*kernel)(Params)) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace mmvssm::cuda
#endif

namespace mmvssm::cuda {

KernelHandle find_route_forward(const Kernel&);
KernelHandle find_route_backward(const Kernel&);
KernelHandle find_sequence_forward(const Kernel&);
KernelHandle find_sequence_backward(const Kernel&);
KernelHandle find_collect(const Kernel&);

inline KernelHandle find_kernel(const Kernel& kernel) {
  switch (kernel.function) {
    case Function::kRouteForward:
    case Function::kRouteForwardCarry:
      return find_route_forward(kernel);
    case Function::kRouteBackward:
    case Function::kRouteBackwardCarry:
      return find_route_backward(kernel);
    case Function::kSequenceForward:
    case Function::kSequenceForwardCarry:
      return find_sequence_forward(kernel);
    case Function::kSequenceBackward:
    case Function::kSequenceBackwardCarry:
      return find_sequence_backward(kernel);
    default:
      return find_collect(kernel);
  }
}

}  // namespace mmvssm::cuda
