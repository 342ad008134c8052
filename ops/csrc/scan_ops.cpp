// Host functions: check every argument, then dispatch to the tensors' device.
//
// The Python functions check with friendlier words; these checks keep direct
// callers of torch.ops.mmvssm.* from reading outside of a tensor.
#include "common/scan_ops.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace mmvssm {

ScanForward selective_scan_forward_impl(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& delta_bias,
    bool delta_softplus, at::ScalarType out_dtype, bool save_states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_forward_impl, u, delta, A, B, C, D,
                              delta_bias, delta_softplus, out_dtype,
                              save_states);
}

ScanBackward selective_scan_backward_impl(const Tensor& dy, const Tensor& u,
                                          const Tensor& delta, const Tensor& A,
                                          const Tensor& B, const Tensor& C,
                                          const OptionalTensor& D,
                                          const OptionalTensor& delta_bias,
                                          const Tensor& states,
                                          bool delta_softplus) {
  return DISPATCH_DEVICE_IMPL(selective_scan_backward_impl, dy, u, delta, A, B,
                              C, D, delta_bias, states, delta_softplus);
}

Scan2dForward selective_scan_2d_forward_impl(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    at::ScalarType out_dtype, bool save_states) {
  return DISPATCH_DEVICE_IMPL(selective_scan_2d_forward_impl, x, x_dbl, routes,
                              out_routes, A, dt_weight, dt_bias, D, num_out,
                              merge, out_dtype, save_states);
}

Scan2dBackward selective_scan_2d_backward_impl(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge) {
  return DISPATCH_DEVICE_IMPL(selective_scan_2d_backward_impl, dy, x, x_dbl,
                              routes, out_routes, A, dt_weight, dt_bias, D,
                              states, merge);
}

namespace {

void check(const char* name, const Tensor& t, const Tensor& first,
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

void check(const char* name, const OptionalTensor& t, const Tensor& first,
           at::ScalarType type, at::IntArrayRef shape) {
  if (t.has_value()) check(name, *t, first, type, shape);
}

void check_rank(const char* name, const Tensor& t, int64_t rank) {
  TORCH_CHECK_VALUE(t.dim() == rank, name, " must have ", rank,
                    " dimensions, got shape ", t.sizes());
}

void check_positive(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value > 0, name, " must be at least 1, got ", value);
}

// The dtype of A, D, step weights and biases, and of the recurrence.
at::ScalarType check_input_type(const char* name, const Tensor& t) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kHalf ||
                       type == at::kBFloat16 || type == at::kDouble,
                   name, " must be float32, float16, bfloat16 or float64, got ",
                   type);
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

at::ScalarType check_out_dtype(Optional<at::ScalarType> out,
                               const Tensor& input) {
  const auto type = out.value_or(input.scalar_type());
  TORCH_CHECK_TYPE(
      type == input.scalar_type() ||
          (type == at::kFloat && input.scalar_type() != at::kDouble),
      "out_dtype must be ", input.scalar_type(), " or float32, got ", type);
  return type;
}

void check_states(const Tensor& states, const Tensor& first,
                  at::ScalarType compute, int64_t batch, int64_t num_routes,
                  int64_t d_state, int64_t channels, int64_t length) {
  check("states", states, first, compute,
        {batch, num_routes, num_saved_states(length), d_state, channels});
}

void check_grad(const Tensor& dy, const Tensor& input, at::IntArrayRef shape) {
  const auto type = dy.scalar_type() == input.scalar_type()
                        ? input.scalar_type()
                        : at::kFloat;
  check("dy", dy, input, type, shape);
}

void check_1d(const Tensor& u, const Tensor& delta, const Tensor& A,
              const Tensor& B, const Tensor& C, const OptionalTensor& D,
              const OptionalTensor& bias) {
  check_rank("u", u, 3);
  check_rank("A", A, 2);
  check_rank("B", B, 4);
  const int64_t rows = u.size(1), num_routes = B.size(1);
  const auto type = u.scalar_type(), compute = check_input_type("u", u);
  check_positive("K", num_routes);
  check_positive("rows of u", rows);
  check_positive("L", u.size(2));
  check_positive("N", A.size(1));
  TORCH_CHECK_VALUE(rows % num_routes == 0, "B has ", num_routes,
                    " groups, which do not divide the ", rows, " rows of u");
  check("u", u, u, type, u.sizes());
  check("delta", delta, u, type, u.sizes());
  check("A", A, u, compute, {rows, A.size(1)});
  check("B", B, u, type, {u.size(0), num_routes, A.size(1), u.size(2)});
  check("C", C, u, type, B.sizes());
  check("D", D, u, compute, {rows});
  check("delta_bias", bias, u, compute, {rows});
}

// Remembers the tables on an accelerator that were found in range: looking at
// them waits for the device, so it is done once per table, not once per call.
class CheckedTables {
 public:
  bool contains(const Tensor& table, int64_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Entry& e : entries_) {
      if (e.data == table.const_data_ptr() && e.numel == table.numel() &&
          e.version == table._version() && e.size == size &&
          !e.storage.expired()) {
        return true;
      }
    }
    return false;
  }

  void add(const Tensor& table, int64_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry entry{table.storage().getWeakStorageImpl(), table.const_data_ptr(),
                table.numel(), int64_t(table._version()), size};
    if (entries_.size() < kCapacity) {
      entries_.push_back(std::move(entry));
    } else {
      entries_[next_++ % kCapacity] = std::move(entry);
    }
  }

 private:
  static constexpr size_t kCapacity = 256;
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    const void* data;
    int64_t numel, version, size;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
  size_t next_ = 0;
};

void check_table(const char* name, const Tensor& table, int64_t size) {
  static CheckedTables checked;
  // Tensors made in inference mode have no version to remember.
  const bool remember = !table.device().is_cpu() && !table.is_inference();
  if (remember && checked.contains(table, size)) return;
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
  if (remember) checked.add(table, size);
}

void check_2d(const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
              const Tensor& out_routes, const Tensor& A,
              const Tensor& dt_weight, const Tensor& dt_bias,
              const OptionalTensor& D, int64_t num_out) {
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 4,
                    "x must have 3 or 4 dimensions, got shape ", x.sizes());
  check_rank("x_dbl", x_dbl, 4);
  check_rank("routes", routes, 2);
  check_rank("A", A, 2);
  check_rank("dt_weight", dt_weight, 3);
  const int64_t batch = x.size(0), pixels = x.size(1), channels = x.size(-1);
  const int64_t num_routes = routes.size(0), length = routes.size(1);
  const int64_t d_state = A.size(1), dt_rank = dt_weight.size(2);
  const auto type = x.scalar_type(), compute = check_input_type("x", x);
  check_positive("P", pixels);
  check_positive("D", channels);
  check_positive("K", num_routes);
  check_positive("L", length);
  check_positive("N", d_state);
  check_positive("R", dt_rank);
  check_positive("num_out", num_out);
  if (x.dim() == 4) {
    check("x", x, x, type, {batch, pixels, num_routes, channels});
  } else {
    check("x", x, x, type, x.sizes());
  }
  const int64_t projections = x_dbl.size(2) == 1 ? 1 : num_routes;
  check("x_dbl", x_dbl, x, type,
        {batch, pixels, projections, dt_rank + 2 * d_state});
  check("A", A, x, compute, {num_routes * channels, d_state});
  check("dt_weight", dt_weight, x, compute, {num_routes, channels, dt_rank});
  check("dt_bias", dt_bias, x, compute, {num_routes, channels});
  check("D", D, x, compute, {num_routes * channels});
  check("routes", routes, x, at::kInt, routes.sizes());
  check("out_routes", out_routes, x, at::kInt, routes.sizes());
  check_table("routes", routes, pixels);
  check_table("out_routes", out_routes, num_out);
}

}  // namespace

ScanForward selective_scan_forward(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
    const Tensor& C, const OptionalTensor& D, const OptionalTensor& delta_bias,
    bool delta_softplus, Optional<at::ScalarType> out_dtype, bool save_states) {
  check_1d(u, delta, A, B, C, D, delta_bias);
  return selective_scan_forward_impl(
      u, delta, A, B, C, D, delta_bias, delta_softplus,
      check_out_dtype(out_dtype, u), save_states);
}

ScanBackward selective_scan_backward(const Tensor& dy, const Tensor& u,
                                     const Tensor& delta, const Tensor& A,
                                     const Tensor& B, const Tensor& C,
                                     const OptionalTensor& D,
                                     const OptionalTensor& delta_bias,
                                     const Tensor& states,
                                     bool delta_softplus) {
  check_1d(u, delta, A, B, C, D, delta_bias);
  check_grad(dy, u, u.sizes());
  check_states(states, u, A.scalar_type(), u.size(0), B.size(1), A.size(1),
               u.size(1) / B.size(1), u.size(2));
  return selective_scan_backward_impl(dy, u, delta, A, B, C, D, delta_bias,
                                      states, delta_softplus);
}

Scan2dForward selective_scan_2d_forward(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    Optional<at::ScalarType> out_dtype, bool save_states) {
  check_2d(x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out);
  return selective_scan_2d_forward_impl(
      x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out, merge,
      check_out_dtype(out_dtype, x), save_states);
}

Scan2dBackward selective_scan_2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge) {
  check_rank("dy", dy, merge ? 3 : 4);
  check_2d(x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, dy.size(1));
  const int64_t batch = x.size(0), channels = x.size(-1),
                num_routes = routes.size(0);
  if (merge) {
    check_grad(dy, x, {batch, dy.size(1), channels});
  } else {
    check_grad(dy, x, {batch, dy.size(1), num_routes, channels});
  }
  check_states(states, x, A.scalar_type(), batch, num_routes, A.size(1),
               channels, routes.size(1));
  return selective_scan_2d_backward_impl(dy, x, x_dbl, routes, out_routes, A,
                                         dt_weight, dt_bias, D, states, merge);
}

}  // namespace mmvssm
