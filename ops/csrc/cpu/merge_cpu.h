// The entry points of the merge of routes, behind torch.ops.mmvssm.* on the
// CPU: arguments are checked (ValueError, TypeError), then the kernels run.
// Other devices merge in PyTorch (mmvssm/ops/merging.py).
#pragma once

#include "common/scan_ops.h"

namespace mmvssm {

// means (Bt, K, D)
Tensor normalized_means(const Tensor& x, const OptionalTensor& scale,
                        double eps);
// dx, dscale (empty when absent)
std::tuple<Tensor, Tensor> normalized_means_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& scale, double eps);
// y (Bt, P, D)
Tensor gated_sum(const Tensor& x, const Tensor& gates,
                 const OptionalTensor& scale);
// dx, dgates, dscale (empty when absent)
std::tuple<Tensor, Tensor, Tensor> gated_sum_backward(
    const Tensor& dy, const Tensor& x, const Tensor& gates,
    const OptionalTensor& scale);

}  // namespace mmvssm
