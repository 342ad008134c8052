// From the description of a kernel to the kernel itself, where all that can be
// asked for are compiled ahead of time: what a table file instantiates.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernel_table.h"

namespace mmvssm::cuda {

// choose(a null pointer to T) for the type T that `type` stands for.
template <typename Choose>
KernelHandle with_type(DType type, const Choose& choose) {
  switch (type) {
    case DType::kFloat:
      return choose(static_cast<float*>(nullptr));
    case DType::kHalf:
      return choose(static_cast<__half*>(nullptr));
    case DType::kBFloat16:
      return choose(static_cast<__nv_bfloat16*>(nullptr));
    default:
      return KernelHandle();
  }
}

}  // namespace mmvssm::cuda

// Returns the instantiation of `kernel` for these (states, lane channels), if
// it is the one that `id` describes.
#define MMVSSM_CASE(kernel, first, second)                           \
  if (id.states == first && id.lane_channels == second) {            \
    return handle_of(                                                \
        kernel<std::remove_pointer_t<decltype(of)>, first, second>); \
  }
