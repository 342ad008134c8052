// What the host functions of the CPU share: the kernels of this processor, and
// tensors as the kernels see them.
#pragma once

#include "common/scan_ops.h"
#include "cpu/scan_args.h"

namespace mmvssm {

const KernelTable& kernels();  // those that run on this processor

template <typename S>
const Kernels<S>& kernels_of() {
  if constexpr (sizeof(S) == sizeof(float)) {
    return kernels().single_precision;
  } else {
    return kernels().double_precision;
  }
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return DType::kHalf;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kDouble:
      return DType::kDouble;
    default:
      return DType::kFloat;
  }
}

template <typename S>
S* pointer(const Tensor& t) {
  return t.defined() && t.numel() > 0 ? t.data_ptr<S>() : nullptr;
}
template <typename S>
const S* pointer(const OptionalTensor& t) {
  return t.has_value() ? t->data_ptr<S>() : nullptr;
}

// The precision of the recurrence decides the instantiation.
template <typename F>
auto by_precision(const Tensor& input, const F& f) {
  return input.scalar_type() == at::kDouble ? f(double()) : f(float());
}

inline Tensor sum_partials(const Tensor& t) {
  return t.size(0) == 1 ? t[0] : t.sum(0);
}

}  // namespace mmvssm
