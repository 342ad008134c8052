// The CPU implementations: allocate, split into tasks, run the kernels of the
// best instruction set that the processor has.
#include "cpu/scan_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/scan_ops.h"
#include "cpu/host.h"

namespace mmvssm {
namespace {

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

// How one call is split: batches into slots, channels into groups of whole
// vectors; routes too where no two write to the same place.
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

template <typename Visit>
void for_each_task(const Split& s, const Visit& visit) {
  const auto count = static_cast<int64_t>(s.tasks.size());
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) visit(s.tasks[i]);
  });
}

template <typename S, typename Kernel>
void run(const Scan2dArgs<S>& args, const Split& s, Kernel kernel) {
  for_each_task(s, [&](const Task& task) { kernel(args, task); });
}

// Channel-first rows lie far apart: one vector of channels at a time keeps the
// number of memory streams small.
template <typename S, typename Kernel>
void run(const Scan1dArgs<S>& args, const Split& s, Kernel kernel) {
  const int64_t step = lanes<S>();
  for_each_task(s, [&](const Task& task) {
    for (int64_t c = task.channel_begin; c < task.channel_end; c += step) {
      Task part = task;
      part.channel_begin = c;
      part.channel_end = std::min(c + step, task.channel_end);
      kernel(args, part);
    }
  });
}

template <typename S>
Tensor empty_states(const ScanArgs<S>& args, const Tensor& A, bool save) {
  const int64_t saved = save ? num_saved_states(args.length) : 0;
  return at::empty(
      {args.batch, args.num_routes, saved, args.d_state, args.channels},
      A.options());
}

template <typename S>
Scan1dArgs<S> describe_1d(const Tensor& u, const Scan1dInputs& in) {
  Scan1dArgs<S> args{};
  args.batch = u.size(0);
  args.num_routes = in.B.size(1);
  args.channels = u.size(1) / in.B.size(1);
  args.d_state = in.A.size(1);
  args.length = u.size(2);
  args.in_type = dtype_of(u);
  args.A = in.A.data_ptr<S>();
  args.D = pointer<S>(in.D);
  args.bias = pointer<S>(in.delta_bias);
  args.softplus = in.delta_softplus;
  args.u = u.data_ptr();
  args.delta = in.delta.data_ptr();
  args.B = in.B.data_ptr();
  args.C = in.C.data_ptr();
  return args;
}

template <typename S>
ScanForward forward_1d(const Tensor& u, const Scan1dInputs& in,
                       at::ScalarType out_dtype, bool save_states) {
  Scan1dArgs<S> args = describe_1d<S>(u, in);
  const auto options = in.A.options();
  const Tensor y = at::empty(u.sizes(), options);
  const Tensor last_state =
      at::empty({args.batch, in.A.size(0), args.d_state}, options);
  const Tensor states = empty_states(args, in.A, save_states);
  args.y = y.data_ptr<S>();
  args.last_state = last_state.data_ptr<S>();
  args.states = pointer<S>(states);
  const int64_t max_slots = 4 * at::get_num_threads();
  run(args,
      split(args.batch, args.num_routes, args.channels, lanes<S>(), true, 4,
            max_slots),
      kernels_of<S>().forward_1d);
  return {y.to(out_dtype), last_state, states};
}

template <typename S>
ScanBackward backward_1d(const Tensor& dy, const Tensor& u,
                         const Scan1dInputs& in, const Tensor& states) {
  Scan1dArgs<S> args = describe_1d<S>(u, in);
  const Split s = split(args.batch, args.num_routes, args.channels, lanes<S>(),
                        true, 2, at::get_num_threads());
  const int64_t rows = in.A.size(0);
  const auto empty = [&](at::IntArrayRef shape) {
    return at::empty(shape, in.A.options());
  };
  const Tensor du = empty(u.sizes()), ddelta = empty(u.sizes());
  const Tensor dB = at::zeros({s.channel_groups, args.batch, args.num_routes,
                               args.d_state, args.length},
                              in.A.options());
  const Tensor dC = at::zeros(dB.sizes(), in.A.options());
  const Tensor dA = empty({s.slots, rows, args.d_state});
  const Tensor dD = in.D ? empty({s.slots, rows}) : Tensor();
  const Tensor dbias = in.delta_bias ? empty({s.slots, rows}) : Tensor();
  args.dy = dy.data_ptr();
  args.dy_type = dtype_of(dy);
  args.states = pointer<S>(states);
  args.du = du.data_ptr<S>();
  args.ddelta = ddelta.data_ptr<S>();
  args.dB = dB.data_ptr<S>();
  args.dC = dC.data_ptr<S>();
  args.dA = dA.data_ptr<S>();
  args.dD = pointer<S>(dD);
  args.dbias = pointer<S>(dbias);
  run(args, s, kernels_of<S>().backward_1d);
  const auto type = u.scalar_type();
  return {du.to(type),
          ddelta.to(type),
          sum_partials(dA),
          sum_partials(dB).to(type),
          sum_partials(dC).to(type),
          in.D ? sum_partials(dD) : empty({0}),
          in.delta_bias ? sum_partials(dbias) : empty({0})};
}

template <typename S>
Scan2dArgs<S> describe_2d(const Tensor& x, const Scan2dInputs& in) {
  Scan2dArgs<S> args{};
  args.batch = x.size(0);
  args.num_routes = in.routes.size(0);
  args.channels = x.size(-1);
  args.d_state = in.A.size(1);
  args.length = in.routes.size(1);
  args.pixels = x.size(1);
  args.out_rows = in.out_rows;
  args.dt_rank = in.dt_weight.size(2);
  args.x_per_route = x.dim() == 4;
  args.shared_projection = in.x_dbl.size(2) == 1;
  args.merge = in.merge;
  args.in_type = dtype_of(x);
  args.x = x.data_ptr();
  args.x_dbl = in.x_dbl.data_ptr();
  args.routes = in.routes.data_ptr<int32_t>();
  args.out_routes = in.out_routes.data_ptr<int32_t>();
  args.A = in.A.data_ptr<S>();
  args.D = pointer<S>(in.D);
  args.dt_weight = in.dt_weight.data_ptr<S>();
  args.bias = in.dt_bias.data_ptr<S>();
  return args;
}

// A result that is written along routes, cleared where that needs it.
template <typename S>
Tensor route_tensor(RouteArray<S>& array, const RouteWrites& writes,
                    at::IntArrayRef shape, const Tensor& A) {
  const Tensor t = writes.cleared() ? at::zeros(shape, A.options())
                                    : at::empty(shape, A.options());
  array = {pointer<S>(t), writes};
  return t;
}

template <typename S>
Scan2dForward forward_2d(const Tensor& x, const Scan2dInputs& in,
                         at::ScalarType out_dtype, bool save_states) {
  Scan2dArgs<S> args = describe_2d<S>(x, in);
  const bool apart = !in.merge || args.num_routes == 1;
  std::vector<int64_t> shape{args.batch, args.out_rows, args.channels};
  if (!in.merge) shape.insert(shape.begin() + 2, args.num_routes);
  const Tensor y =
      route_tensor(args.y, out_writes(in.facts, apart), shape, in.A);
  const Tensor states = empty_states(args, in.A, save_states);
  args.states = pointer<S>(states);
  const int64_t max_slots = 4 * at::get_num_threads();
  // Few groups of channels: each stages the projections anew.
  run(args,
      split(args.batch, args.num_routes, args.channels, lanes<S>(),
            args.y.writes.exclusive, 1, max_slots),
      kernels_of<S>().forward_2d);
  return {y.to(out_dtype), states};
}

template <typename S>
Scan2dBackward backward_2d(const Tensor& dy, const Tensor& x,
                           const Scan2dInputs& in, const Tensor& states) {
  Scan2dArgs<S> args = describe_2d<S>(x, in);
  const bool one = args.num_routes == 1;
  const RouteWrites x_writes = read_writes(in.facts, args.x_per_route || one);
  const RouteWrites x_dbl_writes =
      read_writes(in.facts, !args.shared_projection || one);
  const Split s = split(args.batch, args.num_routes, args.channels, lanes<S>(),
                        x_writes.exclusive && x_dbl_writes.exclusive, 2,
                        at::get_num_threads());
  const int64_t rows = in.A.size(0);
  const auto empty = [&](at::IntArrayRef shape) {
    return at::empty(shape, in.A.options());
  };
  const Tensor dx = route_tensor(args.dx, x_writes, x.sizes(), in.A);
  const Tensor dx_dbl = route_tensor(args.dx_dbl, x_dbl_writes,
                                     {s.channel_groups, args.batch, args.pixels,
                                      in.x_dbl.size(2), in.x_dbl.size(3)},
                                     in.A);
  const Tensor dA = empty({s.slots, rows, args.d_state});
  const Tensor ddt_weight =
      empty({s.slots, args.num_routes, args.channels, args.dt_rank});
  const Tensor ddt_bias = empty({s.slots, args.num_routes, args.channels});
  const Tensor dD = in.D ? empty({s.slots, rows}) : Tensor();
  args.dy = dy.data_ptr();
  args.dy_type = dtype_of(dy);
  args.states = pointer<S>(states);
  args.dA = dA.data_ptr<S>();
  args.ddt_weight = ddt_weight.data_ptr<S>();
  args.dbias = ddt_bias.data_ptr<S>();
  args.dD = pointer<S>(dD);
  run(args, s, kernels_of<S>().backward_2d);
  const auto type = x.scalar_type();
  return {dx.to(type),
          sum_partials(dx_dbl).to(type),
          sum_partials(dA),
          sum_partials(ddt_weight),
          sum_partials(ddt_bias),
          in.D ? sum_partials(dD) : empty({0})};
}

ScanForward scan_forward_cpu(const Tensor& u, const Scan1dInputs& in,
                             at::ScalarType out_dtype, bool save_states) {
  return by_precision(u, [&](auto s) {
    return forward_1d<decltype(s)>(u, in, out_dtype, save_states);
  });
}

ScanBackward scan_backward_cpu(const Tensor& dy, const Tensor& u,
                               const Scan1dInputs& in, const Tensor& states) {
  return by_precision(
      u, [&](auto s) { return backward_1d<decltype(s)>(dy, u, in, states); });
}

Scan2dForward scan_2d_forward_cpu(const Tensor& x, const Scan2dInputs& in,
                                  at::ScalarType out_dtype, bool save_states) {
  return by_precision(x, [&](auto s) {
    return forward_2d<decltype(s)>(x, in, out_dtype, save_states);
  });
}

Scan2dBackward scan_2d_backward_cpu(const Tensor& dy, const Tensor& x,
                                    const Scan2dInputs& in,
                                    const Tensor& states) {
  return by_precision(
      x, [&](auto s) { return backward_2d<decltype(s)>(dy, x, in, states); });
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose_kernels();
  return table;
}

std::string cpu_capability() { return kernels().name; }

std::string cpu_variants() {
  std::string names;
  for (const KernelTable* table : runnable_kernels()) {
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  return names;
}

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CPU, scan_forward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CPU, scan_backward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_2d_forward_impl, CPU, scan_2d_forward_cpu);
REGISTER_DEVICE_IMPL(selective_scan_2d_backward_impl, CPU,
                     scan_2d_backward_cpu);

}  // namespace mmvssm
