// The table of all kernels of one instruction set.
#pragma once

#include "cpu/merge_kernels.h"
#include "cpu/scan_kernels.h"

namespace mmvssm {
namespace MMVSSM_ISA {
namespace {

template <typename S>
constexpr Kernels<S> make_kernels() {
  return {
      forward_task<S, Layout1d>,
      backward_task<S, Layout1d>,
      forward_task<S, Layout2d>,
      backward_task<S, Layout2d>,
      merge_task<S, means_task<S, true>, means_task<S, false>>,
      merge_task<S, means_backward_task<S, true>,
                 means_backward_task<S, false>>,
      merge_task<S, sum_task<S, true>, sum_task<S, false>>,
      merge_task<S, sum_backward_task<S, true>, sum_backward_task<S, false>>};
}

// A constant expression: loading the library runs no code of this instruction
// set.
constexpr KernelTable make_table(const char* name) {
  return {name, Simd<float>::kLanes, make_kernels<float>(),
          make_kernels<double>()};
}

}  // namespace
}  // namespace MMVSSM_ISA
}  // namespace mmvssm
