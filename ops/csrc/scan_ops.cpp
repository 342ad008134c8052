// Host functions: check every argument, then dispatch to the tensors' device.
//
// The Python functions check with friendlier words; these checks keep direct
// callers of torch.ops.mmvssm.* from reading outside of a tensor.
#include "common/scan_ops.h"

#include <algorithm>

#include "common/checks.h"

namespace mmvssm {

ScanForward selective_scan_forward_impl(const Tensor& u,
                                        const Scan1dInputs& inputs,
                                        at::ScalarType out_dtype,
                                        bool save_states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_forward_impl, u, inputs, out_dtype,
                              save_states);
}

ScanBackward selective_scan_backward_impl(const Tensor& dy, const Tensor& u,
                                          const Scan1dInputs& inputs,
                                          const Tensor& states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_backward_impl, dy, u, inputs,
                              states);
}

Scan2dForward selective_scan_2d_forward_impl(const Tensor& x,
                                             const Scan2dInputs& inputs,
                                             at::ScalarType out_dtype,
                                             bool save_states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_2d_forward_impl, x, inputs,
                              out_dtype, save_states);
}

Scan2dBackward selective_scan_2d_backward_impl(const Tensor& dy,
                                               const Tensor& x,
                                               const Scan2dInputs& inputs,
                                               const Tensor& states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_2d_backward_impl, dy, x, inputs,
                              states);
}

namespace {

at::ScalarType check_out_dtype(Optional<at::ScalarType> out,
                               const Tensor& input) {
  const auto type = out.value_or(input.scalar_type());
  TORCH_CHECK_TYPE(
      type == input.scalar_type() ||
          (type == at::kFloat && input.scalar_type() != at::kDouble),
      "out_dtype must be ", input.scalar_type(), " or float32, got ", type);
  return type;
}

void check_states(const Tensor& states, const Tensor& first, const Tensor& A,
                  int64_t num_routes, int64_t channels, int64_t length) {
  check("states", states, first, A.scalar_type(),
        {first.size(0), num_routes, num_saved_states(length), A.size(1),
         channels});
}

void check_1d(const Tensor& u, const Scan1dInputs& in) {
  check_rank("u", u, 3);
  check_rank("A", in.A, 2);
  check_rank("B", in.B, 4);
  const int64_t rows = u.size(1), num_routes = in.B.size(1);
  const int64_t d_state = in.A.size(1), length = u.size(2);
  const auto type = u.scalar_type(), compute = check_input_type("u", u);
  check_positive("K", num_routes);
  check_positive("rows of u", rows);
  check_positive("L", length);
  check_positive("N", d_state);
  TORCH_CHECK_VALUE(rows % num_routes == 0, "B has ", num_routes,
                    " groups, which do not divide the ", rows, " rows of u");
  check("u", u, u, type, u.sizes());
  check("delta", in.delta, u, type, u.sizes());
  check("A", in.A, u, compute, {rows, d_state});
  check("B", in.B, u, type, {u.size(0), num_routes, d_state, length});
  check("C", in.C, u, type, in.B.sizes());
  check("D", in.D, u, compute, {rows});
  check("delta_bias", in.delta_bias, u, compute, {rows});
}

// Looks at every entry, which waits for an accelerator.
void check_range(const char* name, const Tensor& table, int64_t size) {
  int64_t low, high;
  if (table.device().is_cpu()) {
    const int32_t* entries = table.data_ptr<int32_t>();
    const auto range = std::minmax_element(entries, entries + table.numel());
    low = *range.first;
    high = *range.second;
  } else {
    const auto range = at::aminmax(table);
    low = std::get<0>(range).item<int32_t>();
    high = std::get<1>(range).item<int32_t>();
  }
  TORCH_CHECK_VALUE(low >= -1 && high < size, name,
                    " must hold entries from -1 to ", size - 1,
                    ", got entries from ", low, " to ", high);
}

void check_2d(const Tensor& x, const Scan2dInputs& in) {
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 4,
                    "x must have 3 or 4 dimensions, got shape ", x.sizes());
  check_rank("x_dbl", in.x_dbl, 4);
  check_rank("routes", in.routes, 2);
  check_rank("A", in.A, 2);
  check_rank("dt_weight", in.dt_weight, 3);
  const int64_t batch = x.size(0), pixels = x.size(1), channels = x.size(-1);
  const int64_t num_routes = in.routes.size(0), length = in.routes.size(1);
  const int64_t d_state = in.A.size(1), dt_rank = in.dt_weight.size(2);
  const auto type = x.scalar_type(), compute = check_input_type("x", x);
  check_positive("P", pixels);
  check_positive("D", channels);
  check_positive("K", num_routes);
  check_positive("L", length);
  check_positive("N", d_state);
  check_positive("R", dt_rank);
  check_positive("num_out", in.out_rows);
  if (x.dim() == 4) {
    check("x", x, x, type, {batch, pixels, num_routes, channels});
  } else {
    check("x", x, x, type, x.sizes());
  }
  const int64_t projections = in.x_dbl.size(2) == 1 ? 1 : num_routes;
  check("x_dbl", in.x_dbl, x, type,
        {batch, pixels, projections, dt_rank + 2 * d_state});
  check("A", in.A, x, compute, {num_routes * channels, d_state});
  check("dt_weight", in.dt_weight, x, compute, {num_routes, channels, dt_rank});
  check("dt_bias", in.dt_bias, x, compute, {num_routes, channels});
  check("D", in.D, x, compute, {num_routes * channels});
  check("routes", in.routes, x, at::kInt, in.routes.sizes());
  check("out_routes", in.out_routes, x, at::kInt, in.routes.sizes());
  if (in.facts & kChecked) return;
  check_range("routes", in.routes, pixels);
  check_range("out_routes", in.out_routes, in.out_rows);
}

}  // namespace

ScanForward selective_scan_forward(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& delta_bias,
    bool delta_softplus, Optional<at::ScalarType> out_dtype, bool save_states) {
  const Scan1dInputs inputs{delta, A, B, C, D, delta_bias, delta_softplus};
  check_1d(u, inputs);
  return selective_scan_forward_impl(u, inputs, check_out_dtype(out_dtype, u),
                                     save_states);
}

ScanBackward selective_scan_backward(const Tensor& dy, const Tensor& u,
                                     const Tensor& delta, const Tensor& A,
                                     const Tensor& B, const Tensor& C,
                                     const OptionalTensor& D,
                                     const OptionalTensor& delta_bias,
                                     const Tensor& states,
                                     bool delta_softplus) {
  const Scan1dInputs inputs{delta, A, B, C, D, delta_bias, delta_softplus};
  check_1d(u, inputs);
  check_grad(dy, u, u.sizes());
  check_states(states, u, A, B.size(1), u.size(1) / B.size(1), u.size(2));
  return selective_scan_backward_impl(dy, u, inputs, states);
}

Scan2dForward selective_scan_2d_forward(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    Optional<at::ScalarType> out_dtype, bool save_states, int64_t route_facts) {
  const Scan2dInputs inputs{
      x_dbl,   routes, out_routes, A,     dt_weight,
      dt_bias, D,      num_out,    merge, reliable_facts(route_facts)};
  check_2d(x, inputs);
  return selective_scan_2d_forward_impl(
      x, inputs, check_out_dtype(out_dtype, x), save_states);
}

Scan2dBackward selective_scan_2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge, int64_t route_facts) {
  check_rank("dy", dy, merge ? 3 : 4);
  const int64_t out_rows = dy.size(1);
  const Scan2dInputs inputs{
      x_dbl,   routes, out_routes, A,     dt_weight,
      dt_bias, D,      out_rows,   merge, reliable_facts(route_facts)};
  check_2d(x, inputs);
  const int64_t batch = x.size(0), channels = x.size(-1);
  const int64_t num_routes = routes.size(0);
  if (merge) {
    check_grad(dy, x, {batch, out_rows, channels});
  } else {
    check_grad(dy, x, {batch, out_rows, num_routes, channels});
  }
  check_states(states, x, A, num_routes, channels, routes.size(1));
  return selective_scan_2d_backward_impl(dy, x, inputs, states);
}

}  // namespace mmvssm
