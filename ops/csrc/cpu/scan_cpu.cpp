// The CPU implementations: allocate, split into tasks, run the kernels of the
// best instruction set that the processor has.
#include "cpu/scan_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/scan_ops.h"
#include "cpu/scan_args.h"

namespace mmvssm {
namespace {

// All variants that this processor can run, best first.
std::vector<const KernelTable*> runnable_kernels() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    tables.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&kAvx2Kernels);
  }
#endif
  tables.push_back(&kBaselineKernels);
  return tables;
}

// MMVSSM_CPU_CAPABILITY asks for a plainer variant, as ATEN_CPU_CAPABILITY does
// for torch.
const KernelTable& choose_kernels() {
  const auto tables = runnable_kernels();
  const char* wanted = std::getenv("MMVSSM_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return *tables.front();
  for (const KernelTable* table : tables) {
    if (std::string(wanted) == table->name) return *table;
  }
  TORCH_CHECK_VALUE(false, "MMVSSM_CPU_CAPABILITY must be one of ",
                    cpu_variants(), " on this processor, got ", wanted);
}

const KernelTable& kernels() {
  static const KernelTable& table = choose_kernels();
  return table;
}

template <typename S>
auto forward_1d() {
  if constexpr (sizeof(S) == 4) {
    return kernels().forward_1d_float;
  } else {
    return kernels().forward_1d_double;
  }
}
template <typename S>
auto backward_1d() {
  if constexpr (sizeof(S) == 4) {
    return kernels().backward_1d_float;
  } else {
    return kernels().backward_1d_double;
  }
}
template <typename S>
auto forward_2d() {
  if constexpr (sizeof(S) == 4) {
    return kernels().forward_2d_float;
  } else {
    return kernels().forward_2d_double;
  }
}
template <typename S>
auto backward_2d() {
  if constexpr (sizeof(S) == 4) {
    return kernels().backward_2d_float;
  } else {
    return kernels().backward_2d_double;
  }
}

DType dtype_of(const Tensor& t) {
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

// How one call is split: batches into slots, channels into groups of
// whole vectors; routes too where they write to different places.
struct Split {
  int64_t slots, channel_groups;
  std::vector<Task> tasks;
};

Split split(int64_t batch, int64_t num_routes, int64_t channels, int64_t lanes,
            bool split_routes, int64_t tasks_per_thread, int64_t max_slots) {
  const int64_t wanted = tasks_per_thread * at::get_num_threads();
  const int64_t blocks = (channels + lanes - 1) / lanes;
  const int64_t route_parts = split_routes ? num_routes : 1;
  Split s;
  s.slots = std::max<int64_t>(1, std::min(batch, max_slots));
  const int64_t per_group = s.slots * route_parts;
  s.channel_groups =
      std::clamp<int64_t>((wanted + per_group - 1) / per_group, 1, blocks);
  for (int64_t slot = 0; slot < s.slots; ++slot) {
    for (int64_t r = 0; r < route_parts; ++r) {
      for (int64_t g = 0; g < s.channel_groups; ++g) {
        Task t;
        t.slot = slot;
        t.batch_begin = batch * slot / s.slots;
        t.batch_end = batch * (slot + 1) / s.slots;
        t.route_begin = split_routes ? r : 0;
        t.route_end = split_routes ? r + 1 : num_routes;
        t.channel_group = g;
        t.channel_begin = blocks * g / s.channel_groups * lanes;
        t.channel_end =
            std::min(channels, blocks * (g + 1) / s.channel_groups * lanes);
        s.tasks.push_back(t);
      }
    }
  }
  return s;
}

template <typename S>
int64_t lanes() {
  return kernels().float_lanes * static_cast<int64_t>(sizeof(float)) /
         static_cast<int64_t>(sizeof(S));
}

template <typename S, typename Kernel>
void run(const Scan2dArgs<S>& args, const Split& s, Kernel kernel) {
  at::parallel_for(0, static_cast<int64_t>(s.tasks.size()), 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       kernel(args, s.tasks[i]);
                     }
                   });
}

// Channel-first rows lie far apart: one vector of channels at a time keeps the
// number of memory streams small.
template <typename S, typename Kernel>
void run(const Scan1dArgs<S>& args, const Split& s, Kernel kernel) {
  const int64_t step = lanes<S>();
  at::parallel_for(0, static_cast<int64_t>(s.tasks.size()), 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       for (int64_t c = s.tasks[i].channel_begin;
                            c < s.tasks[i].channel_end; c += step) {
                         Task task = s.tasks[i];
                         task.channel_begin = c;
                         task.channel_end =
                             std::min(c + step, task.channel_end);
                         kernel(args, task);
                       }
                     }
                   });
}

Tensor sum_partials(const Tensor& t) {
  return t.size(0) == 1 ? t[0] : t.sum(0);
}

Tensor saved_states(const Tensor& A, int64_t batch, int64_t num_routes,
                    int64_t channels, int64_t length, bool save) {
  const int64_t saved = save ? num_saved_states(length) : 0;
  return at::empty({batch, num_routes, saved, A.size(1), channels},
                   A.options());
}

template <typename S>
void fill_1d(Scan1dArgs<S>& a, const Tensor& u, const Tensor& delta,
             const Tensor& A, const Tensor& B, const Tensor& C,
             const OptionalTensor& D, const OptionalTensor& bias,
             bool softplus) {
  a.batch = u.size(0);
  a.num_routes = B.size(1);
  a.channels = u.size(1) / B.size(1);
  a.d_state = A.size(1);
  a.length = u.size(2);
  a.in_type = dtype_of(u);
  a.A = A.data_ptr<S>();
  a.D = pointer<S>(D);
  a.bias = pointer<S>(bias);
  a.softplus = softplus;
  a.u = u.data_ptr();
  a.delta = delta.data_ptr();
  a.B = B.data_ptr();
  a.C = C.data_ptr();
}

template <typename S>
ScanForward forward_1d_cpu(const Tensor& u, const Tensor& delta,
                           const Tensor& A, const Tensor& B, const Tensor& C,
                           const OptionalTensor& D, const OptionalTensor& bias,
                           bool softplus, at::ScalarType out_dtype,
                           bool save_states) {
  Scan1dArgs<S> a{};
  fill_1d(a, u, delta, A, B, C, D, bias, softplus);
  const Tensor y = at::empty(u.sizes(), A.options());
  const Tensor last = at::empty({a.batch, A.size(0), A.size(1)}, A.options());
  const Tensor states =
      saved_states(A, a.batch, a.num_routes, a.channels, a.length, save_states);
  a.y = y.data_ptr<S>();
  a.last_state = last.data_ptr<S>();
  a.states = pointer<S>(states);
  const int64_t slots = 4 * at::get_num_threads();
  run(a, split(a.batch, a.num_routes, a.channels, lanes<S>(), true, 4, slots),
      forward_1d<S>());
  return {y.to(out_dtype), last, states};
}

template <typename S>
ScanBackward backward_1d_cpu(const Tensor& dy, const Tensor& u,
                             const Tensor& delta, const Tensor& A,
                             const Tensor& B, const Tensor& C,
                             const OptionalTensor& D,
                             const OptionalTensor& bias, const Tensor& states,
                             bool softplus) {
  Scan1dArgs<S> a{};
  fill_1d(a, u, delta, A, B, C, D, bias, softplus);
  const Split s = split(a.batch, a.num_routes, a.channels, lanes<S>(), true, 2,
                        at::get_num_threads());
  const auto empty = [&](at::IntArrayRef shape) {
    return at::empty(shape, A.options());
  };
  const Tensor du = empty(u.sizes()), ddelta = empty(u.sizes());
  const Tensor dB =
      at::zeros({s.channel_groups, a.batch, a.num_routes, a.d_state, a.length},
                A.options());
  const Tensor dC = at::zeros(dB.sizes(), A.options());
  const Tensor dA = at::zeros({s.slots, A.size(0), A.size(1)}, A.options());
  const Tensor dD = D ? at::zeros({s.slots, A.size(0)}, A.options()) : Tensor();
  const Tensor dbias =
      bias ? at::zeros({s.slots, A.size(0)}, A.options()) : Tensor();
  a.dy = dy.data_ptr();
  a.dy_type = dtype_of(dy);
  a.states = pointer<S>(states);
  a.du = du.data_ptr<S>();
  a.ddelta = ddelta.data_ptr<S>();
  a.dB = dB.data_ptr<S>();
  a.dC = dC.data_ptr<S>();
  a.dA = dA.data_ptr<S>();
  a.dD = pointer<S>(dD);
  a.dbias = pointer<S>(dbias);
  run(a, s, backward_1d<S>());
  const auto type = u.scalar_type();
  return {du.to(type),
          ddelta.to(type),
          sum_partials(dA),
          sum_partials(dB).to(type),
          sum_partials(dC).to(type),
          D ? sum_partials(dD) : empty({0}),
          bias ? sum_partials(dbias) : empty({0})};
}

template <typename S>
void fill_2d(Scan2dArgs<S>& a, const Tensor& x, const Tensor& x_dbl,
             const Tensor& routes, const Tensor& out_routes, const Tensor& A,
             const Tensor& dt_weight, const Tensor& dt_bias,
             const OptionalTensor& D, int64_t num_out, bool merge) {
  a.batch = x.size(0);
  a.num_routes = routes.size(0);
  a.channels = x.size(-1);
  a.d_state = A.size(1);
  a.length = routes.size(1);
  a.in_type = dtype_of(x);
  a.A = A.data_ptr<S>();
  a.D = pointer<S>(D);
  a.bias = dt_bias.data_ptr<S>();
  a.pixels = x.size(1);
  a.out_rows = num_out;
  a.dt_rank = dt_weight.size(2);
  a.x_per_route = x.dim() == 4;
  a.merge = merge;
  a.shared_projection = x_dbl.size(2) == 1;
  a.x = x.data_ptr();
  a.x_dbl = x_dbl.data_ptr();
  a.routes = routes.data_ptr<int32_t>();
  a.out_routes = out_routes.data_ptr<int32_t>();
  a.dt_weight = dt_weight.data_ptr<S>();
}

template <typename S>
Scan2dForward forward_2d_cpu(const Tensor& x, const Tensor& x_dbl,
                             const Tensor& routes, const Tensor& out_routes,
                             const Tensor& A, const Tensor& dt_weight,
                             const Tensor& dt_bias, const OptionalTensor& D,
                             int64_t num_out, bool merge,
                             at::ScalarType out_dtype, bool save_states) {
  Scan2dArgs<S> a{};
  fill_2d(a, x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, num_out,
          merge);
  const Tensor y = merge
                       ? at::zeros({a.batch, num_out, a.channels}, A.options())
                       : at::zeros({a.batch, num_out, a.num_routes, a.channels},
                                   A.options());
  const Tensor states =
      saved_states(A, a.batch, a.num_routes, a.channels, a.length, save_states);
  a.y = pointer<S>(y);
  a.states = pointer<S>(states);
  // Merged routes write to the same rows: one task adds them in order.
  const int64_t slots = 4 * at::get_num_threads();
  // Few groups of channels: each stages the projections anew.
  run(a, split(a.batch, a.num_routes, a.channels, lanes<S>(), !merge, 1, slots),
      forward_2d<S>());
  return {y.to(out_dtype), states};
}

template <typename S>
Scan2dBackward backward_2d_cpu(const Tensor& dy, const Tensor& x,
                               const Tensor& x_dbl, const Tensor& routes,
                               const Tensor& out_routes, const Tensor& A,
                               const Tensor& dt_weight, const Tensor& dt_bias,
                               const OptionalTensor& D, const Tensor& states,
                               bool merge) {
  Scan2dArgs<S> a{};
  fill_2d(a, x, x_dbl, routes, out_routes, A, dt_weight, dt_bias, D, dy.size(1),
          merge);
  const bool split_routes = a.x_per_route && !a.shared_projection;
  const Split s = split(a.batch, a.num_routes, a.channels, lanes<S>(),
                        split_routes, 2, at::get_num_threads());
  const auto zeros = [&](at::IntArrayRef shape) {
    return at::zeros(shape, A.options());
  };
  const Tensor dx = zeros(x.sizes());
  const Tensor dx_dbl = zeros(
      {s.channel_groups, a.batch, a.pixels, x_dbl.size(2), x_dbl.size(3)});
  const Tensor dA = zeros({s.slots, A.size(0), A.size(1)});
  const Tensor ddt_weight =
      zeros({s.slots, a.num_routes, a.channels, a.dt_rank});
  const Tensor ddt_bias = zeros({s.slots, a.num_routes, a.channels});
  const Tensor dD = D ? zeros({s.slots, A.size(0)}) : Tensor();
  a.dy = dy.data_ptr();
  a.dy_type = dtype_of(dy);
  a.states = pointer<S>(states);
  a.dx = pointer<S>(dx);
  a.dx_dbl = pointer<S>(dx_dbl);
  a.dA = dA.data_ptr<S>();
  a.ddt_weight = ddt_weight.data_ptr<S>();
  a.dbias = ddt_bias.data_ptr<S>();
  a.dD = pointer<S>(dD);
  run(a, s, backward_2d<S>());
  const auto type = x.scalar_type();
  return {dx.to(type),
          sum_partials(dx_dbl).to(type),
          sum_partials(dA),
          sum_partials(ddt_weight),
          sum_partials(ddt_bias),
          D ? sum_partials(dD) : zeros({0})};
}

// The precision of the recurrence decides the instantiation.
template <typename F, typename G>
auto by_precision(const Tensor& input, F single, G twice) {
  return input.scalar_type() == at::kDouble ? twice() : single();
}

ScanForward selective_scan_forward_cpu(const Tensor& u, const Tensor& delta,
                                       const Tensor& A, const Tensor& B,
                                       const Tensor& C, const OptionalTensor& D,
                                       const OptionalTensor& bias,
                                       bool softplus, at::ScalarType out,
                                       bool save) {
  return by_precision(
      u,
      [&] {
        return forward_1d_cpu<float>(u, delta, A, B, C, D, bias, softplus, out,
                                     save);
      },
      [&] {
        return forward_1d_cpu<double>(u, delta, A, B, C, D, bias, softplus, out,
                                      save);
      });
}

ScanBackward selective_scan_backward_cpu(const Tensor& dy, const Tensor& u,
                                         const Tensor& delta, const Tensor& A,
                                         const Tensor& B, const Tensor& C,
                                         const OptionalTensor& D,
                                         const OptionalTensor& bias,
                                         const Tensor& states, bool softplus) {
  return by_precision(
      u,
      [&] {
        return backward_1d_cpu<float>(dy, u, delta, A, B, C, D, bias, states,
                                      softplus);
      },
      [&] {
        return backward_1d_cpu<double>(dy, u, delta, A, B, C, D, bias, states,
                                       softplus);
      });
}

Scan2dForward selective_scan_2d_forward_cpu(
    const Tensor& x, const Tensor& x_dbl, const Tensor& routes,
    const Tensor& out_routes, const Tensor& A, const Tensor& dt_weight,
    const Tensor& dt_bias, const OptionalTensor& D, int64_t num_out, bool merge,
    at::ScalarType out, bool save) {
  return by_precision(
      x,
      [&] {
        return forward_2d_cpu<float>(x, x_dbl, routes, out_routes, A, dt_weight,
                                     dt_bias, D, num_out, merge, out, save);
      },
      [&] {
        return forward_2d_cpu<double>(x, x_dbl, routes, out_routes, A,
                                      dt_weight, dt_bias, D, num_out, merge,
                                      out, save);
      });
}

Scan2dBackward selective_scan_2d_backward_cpu(
    const Tensor& dy, const Tensor& x, const Tensor& x_dbl,
    const Tensor& routes, const Tensor& out_routes, const Tensor& A,
    const Tensor& dt_weight, const Tensor& dt_bias, const OptionalTensor& D,
    const Tensor& states, bool merge) {
  return by_precision(
      x,
      [&] {
        return backward_2d_cpu<float>(dy, x, x_dbl, routes, out_routes, A,
                                      dt_weight, dt_bias, D, states, merge);
      },
      [&] {
        return backward_2d_cpu<double>(dy, x, x_dbl, routes, out_routes, A,
                                       dt_weight, dt_bias, D, states, merge);
      });
}

}  // namespace

std::string cpu_capability() { return kernels().name; }

std::string cpu_variants() {
  std::string names;
  for (const KernelTable* table : runnable_kernels()) {
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  return names;
}

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CPU,
                     selective_scan_forward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CPU,
                     selective_scan_backward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_2d_forward_impl, CPU,
                     selective_scan_2d_forward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_2d_backward_impl, CPU,
                     selective_scan_2d_backward_cpu);

}  // namespace mmvssm
