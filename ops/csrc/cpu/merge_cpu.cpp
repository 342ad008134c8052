// The host functions of the merge of routes on the CPU.
#include "cpu/merge_cpu.h"

#include <ATen/Parallel.h>

#include "common/checks.h"
#include "cpu/host.h"

namespace mmvssm {
namespace {

void check_merge(const Tensor& x, const OptionalTensor& scale) {
  check_rank("x", x, 4);
  check_input_type("x", x);
  check_positive("P", x.size(1));
  check_positive("K", x.size(2));
  check_positive("D", x.size(3));
  check("x", x, x, x.scalar_type(), x.sizes());
  check("scale", scale, x, x.scalar_type(), {x.size(0), x.size(1), x.size(3)});
}

void check_gates(const Tensor& gates, const Tensor& x) {
  check("gates", gates, x, check_input_type("x", x),
        {x.size(0), x.size(2), x.size(3)});
}

template <typename S>
MergeArgs<S> describe(const Tensor& x, const OptionalTensor& scale) {
  MergeArgs<S> args{};
  args.batch = x.size(0);
  args.pixels = x.size(1);
  args.num_routes = x.size(2);
  args.channels = x.size(3);
  args.type = dtype_of(x);
  args.x = x.data_ptr();
  args.scale = scale.has_value() ? scale->data_ptr() : nullptr;
  return args;
}

template <typename S>
int64_t num_blocks(const MergeArgs<S>& args) {
  return (args.pixels + kMergeRows - 1) / kMergeRows;
}

template <typename S>
void run(const MergeArgs<S>& args,
         void (*kernel)(const MergeArgs<S>&, int64_t)) {
  const int64_t tasks = num_blocks(args) * args.batch;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel(args, task);
  });
}

// A float (double) tensor for a result; `array` points to it.
template <typename S>
Tensor result(S*& array, const Tensor& x, at::IntArrayRef shape) {
  const Tensor t =
      at::empty(shape, x.options().dtype(c10::CppTypeToScalarType<S>::value));
  array = t.data_ptr<S>();
  return t;
}

template <typename S>
Tensor parts_of_routes(S*& array, const Tensor& x, const MergeArgs<S>& args) {
  return result(array, x,
                {num_blocks(args), args.batch, args.num_routes, args.channels});
}

// The gradient of the scale; empty without one.
template <typename S>
Tensor scale_result(S*& array, const Tensor& x, const OptionalTensor& scale) {
  if (!scale.has_value()) return at::empty({0}, x.options());
  return result(array, x, scale->sizes());
}

}  // namespace

Tensor normalized_means(const Tensor& x, const OptionalTensor& scale,
                        double eps) {
  check_merge(x, scale);
  return by_precision(x, [&](auto s) {
    using S = decltype(s);
    MergeArgs<S> args = describe<S>(x, scale);
    args.eps = static_cast<S>(eps);
    const Tensor sums = parts_of_routes(args.y, x, args);
    run(args, kernels_of<S>().means);
    return sum_partials(sums).div_(static_cast<double>(args.pixels));
  });
}

std::tuple<Tensor, Tensor> normalized_means_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& scale,
    double eps) {
  check_merge(x, scale);
  check("dy", dy, x, check_input_type("x", x),
        {x.size(0), x.size(2), x.size(3)});
  return by_precision(x, [&](auto s) {
    using S = decltype(s);
    MergeArgs<S> args = describe<S>(x, scale);
    args.eps = static_cast<S>(eps);
    const Tensor dsums = dy.div(static_cast<double>(args.pixels));
    args.dy = dsums.data_ptr<S>();
    const Tensor dx = result(args.dx, x, x.sizes());
    const Tensor dscale = scale_result(args.dscale, x, scale);
    run(args, kernels_of<S>().means_backward);
    const auto type = x.scalar_type();
    return std::make_tuple(dx.to(type), dscale.to(type));
  });
}

Tensor gated_sum(const Tensor& x, const Tensor& gates,
                 const OptionalTensor& scale) {
  check_merge(x, scale);
  check_gates(gates, x);
  return by_precision(x, [&](auto s) {
    using S = decltype(s);
    MergeArgs<S> args = describe<S>(x, scale);
    args.gates = gates.data_ptr<S>();
    const Tensor y =
        result(args.y, x, {args.batch, args.pixels, args.channels});
    run(args, kernels_of<S>().sum);
    return y;
  });
}

std::tuple<Tensor, Tensor, Tensor> gated_sum_backward(
    const Tensor& dy, const Tensor& x, const Tensor& gates,
    const OptionalTensor& scale) {
  check_merge(x, scale);
  check_gates(gates, x);
  check("dy", dy, x, check_input_type("x", x),
        {x.size(0), x.size(1), x.size(3)});
  return by_precision(x, [&](auto s) {
    using S = decltype(s);
    MergeArgs<S> args = describe<S>(x, scale);
    args.gates = gates.data_ptr<S>();
    args.dy = dy.data_ptr<S>();
    const Tensor dx = result(args.dx, x, x.sizes());
    const Tensor dgates = parts_of_routes(args.dgates, x, args);
    const Tensor dscale = scale_result(args.dscale, x, scale);
    run(args, kernels_of<S>().sum_backward);
    const auto type = x.scalar_type();
    return std::make_tuple(dx.to(type), sum_partials(dgates), dscale.to(type));
  });
}

}  // namespace mmvssm
