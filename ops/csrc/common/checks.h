// Checks of tensors that native code is about to read: ValueError and
// TypeError.
#pragma once

#include "common/scan_ops.h"

namespace mmvssm {

inline void check(const char* name, const Tensor& t, const Tensor& first,
                  at::ScalarType type, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape,
                    ", got ", t.sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == type, name, " must be ", type, ", got ",
                   t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == first.device(), name, " must lie on ",
                    first.device(), ", got ", t.device());
  TORCH_CHECK_VALUE(t.is_contiguous(), name,
                    " must be contiguous, got strides ", t.strides());
}

inline void check(const char* name, const OptionalTensor& t,
                  const Tensor& first, at::ScalarType type,
                  at::IntArrayRef shape) {
  if (t.has_value()) check(name, *t, first, type, shape);
}

inline void check_rank(const char* name, const Tensor& t, int64_t rank) {
  TORCH_CHECK_VALUE(t.dim() == rank, name, " must have ", rank,
                    " dimensions, got shape ", t.sizes());
}

inline void check_positive(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value > 0, name, " must be at least 1, got ", value);
}

// The dtype of A, D, step weights and biases, and of the recurrence.
inline at::ScalarType check_input_type(const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kHalf ||
                       type == at::kBFloat16 || type == at::kDouble,
                   name, " must be float32, float16, bfloat16 or float64, got ",
                   type);
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_grad(const Tensor& dy, const Tensor& input,
                       at::IntArrayRef shape) {
  const auto type = dy.scalar_type() == input.scalar_type()
                        ? input.scalar_type()
                        : at::kFloat;
  check("dy", dy, input, type, shape);
}

}  // namespace mmvssm
