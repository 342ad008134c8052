// Host functions of the selective scan, dispatched to devices through mmcv's
// device registry: each device's file registers its implementation of the
// four `*_impl` functions with REGISTER_DEVICE_IMPL.
#pragma once

#include <torch/types.h>
#include <torch/version.h>

#include <optional>
#include <tuple>

#include "common/scan_common.h"
#include "pytorch_device_registry.hpp"  // shipped by the installed mmcv

namespace mmvssm {

using at::Tensor;
// Before torch 2.5 the dispatcher's optional was a class of its own.
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 5
template <typename T>
using Optional = c10::optional<T>;
#else
template <typename T>
using Optional = std::optional<T>;
#endif
using OptionalTensor = Optional<Tensor>;

// y (Bt, K*D, L), last_state (Bt, K*D, N), states (Bt, K, S, N, D)
using ScanForward = std::tuple<Tensor, Tensor, Tensor>;
// du, ddelta, dA, dB, dC, dD, ddelta_bias; the last two empty when absent
using ScanBackward =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// y (Bt, Q, D) or (Bt, Q, K, D), states (Bt, K, S, N, D)
using Scan2dForward = std::tuple<Tensor, Tensor>;
// dx, dx_dbl, dA, ddt_weight, ddt_bias, dD (empty when absent)
using Scan2dBackward =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// u, delta (Bt, K*D, L); A (K*D, N); B, C (Bt, K, N, L); D, delta_bias (K*D).
// All are contiguous and on one device; u, delta, B, C share one dtype;
// A, D, delta_bias are float32 (float64 when u is).
ScanForward selective_scan_forward_impl(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& delta_bias,
    bool delta_softplus, at::ScalarType out_dtype, bool save_states);

ScanBackward selective_scan_backward_impl(const Tensor& dy, const Tensor& u,
                                          const Tensor& delta, const Tensor& A,
                                          const Tensor& B, const Tensor& C,
                                          const OptionalTensor& D,
                                          const OptionalTensor& delta_bias,
                                          const Tensor& states,
                                          bool delta_softplus);

// x (Bt, P, D) or (Bt, P, K, D); x_dbl (Bt, P, K | 1, R + 2N);
// routes, out_routes int32 (K, L); A (K*D, N); dt_weight (K, D, R);
// dt_bias (K, D); D (K*D). Route entries are already checked to lie in
// [-1, P) and [-1, num_out).
Scan2dForward selective_scan_2d_forward_impl(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    at::ScalarType out_dtype, bool save_states);

// dy is contiguous; its dtype is float32, float64 or that of x.
Scan2dBackward selective_scan_2d_backward_impl(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge);

// The checked entry points behind torch.ops.mmvssm.*: every argument is
// validated (ValueError, TypeError), then the device's implementation runs.
ScanForward selective_scan_forward(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& delta_bias,
    bool delta_softplus, Optional<at::ScalarType> out_dtype, bool save_states);

ScanBackward selective_scan_backward(const Tensor& dy, const Tensor& u,
                                     const Tensor& delta, const Tensor& A,
                                     const Tensor& B, const Tensor& C,
                                     const OptionalTensor& D,
                                     const OptionalTensor& delta_bias,
                                     const Tensor& states, bool delta_softplus);

Scan2dForward selective_scan_2d_forward(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    Optional<at::ScalarType> out_dtype, bool save_states);

Scan2dBackward selective_scan_2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge);

}  // namespace mmvssm
