// Host functions of the selective scan, dispatched to devices: each device's
// file registers its implementation of the four `*_impl` functions with
// REGISTER_DEVICE_IMPL.
#pragma once

#include <torch/types.h>
#include <torch/version.h>

#include <optional>
#include <tuple>

#include "common/device_registry.h"
#include "common/scan_common.h"

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

// What both passes of a scan of sequences are given beside u (Bt, K*D, L),
// checked: all tensors are contiguous and on one device; u, delta, B, C share
// one dtype; A, D, delta_bias are float32 (float64 when u is). It refers to
// the caller's tensors and lives no longer than the call.
struct Scan1dInputs {
  const Tensor& delta;               // (Bt, K*D, L)
  const Tensor& A;                   // (K*D, N)
  const Tensor& B;                   // (Bt, K, N, L)
  const Tensor& C;                   // (Bt, K, N, L)
  const OptionalTensor& D;           // (K*D)
  const OptionalTensor& delta_bias;  // (K*D)
  bool delta_softplus;
};

// The same for a scan along routes, beside x (Bt, P, D) or (Bt, P, K, D).
struct Scan2dInputs {
  const Tensor& x_dbl;       // (Bt, P, K | 1, R + 2N)
  const Tensor& routes;      // int32 (K, L), entries in [-1, P)
  const Tensor& out_routes;  // int32 (K, L), entries in [-1, Q)
  const Tensor& A;           // (K*D, N)
  const Tensor& dt_weight;   // (K, D, R)
  const Tensor& dt_bias;     // (K, D)
  const OptionalTensor& D;   // (K*D)
  int64_t out_rows;
  bool merge;
  int64_t facts;  // RouteFacts that the kernels may rely on
};

// The implementations of a device, found by the first tensor; dy and states are
// checked like the inputs, dy has the dtype of the input, or float32.
ScanForward selective_scan_forward_impl(const Tensor& u,
                                        const Scan1dInputs& inputs,
                                        at::ScalarType out_dtype,
                                        bool save_states);
ScanBackward selective_scan_backward_impl(const Tensor& dy, const Tensor& u,
                                          const Scan1dInputs& inputs,
                                          const Tensor& states);
Scan2dForward selective_scan_2d_forward_impl(const Tensor& x,
                                             const Scan2dInputs& inputs,
                                             at::ScalarType out_dtype,
                                             bool save_states);
Scan2dBackward selective_scan_2d_backward_impl(const Tensor& dy,
                                               const Tensor& x,
                                               const Scan2dInputs& inputs,
                                               const Tensor& states);

// The entry points behind torch.ops.mmvssm.*, under the schemas of
// mmvssm/ops/library.py: arguments are checked (ValueError, TypeError), then
// the device's implementation runs.
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
    Optional<at::ScalarType> out_dtype, bool save_states, int64_t route_facts);

Scan2dBackward selective_scan_2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge, int64_t route_facts);

}  // namespace mmvssm
