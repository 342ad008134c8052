// One case of the scan along routes.
#include "inputs.h"
#include "report.h"

namespace driver {

using mmvssm::kChunk;

int run_2d(Options& options) {
  reference::Scan2d want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.dt_rank = options.number("R", 1);
  want.length = options.number("L", 17);
  want.pixels = options.number("P", want.length);
  const bool apart = options.number("out", 0) != 0;
  const size_t holes = options.number("holes", 0);
  const bool repeats = options.number("repeats", 0) != 0;
  const bool disjoint = options.number("disjoint", 0) != 0;
  const bool with_facts = options.number("facts", 1) != 0;
  want.out_rows = apart ? options.number("Q", want.length) : want.pixels;
  want.x_per_route = options.number("x_per_route", 0) != 0;
  want.shared_projection = options.number("shared", 0) != 0;
  want.merge = options.number("merge", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const LaunchShape shape(options);
  const size_t offset = options.number("offset", 0);
  const bool long_steps = options.number("long_steps", 0) != 0;
  const DType type = options.type("type");
  const DType y_type = options.type("y");
  const std::string dump_path = options.text("dump");
  options.finish();

  const size_t rows = want.num_routes * want.channels;
  const size_t width = want.dt_rank + 2 * want.d_state;
  want.routes = make_routes(want.num_routes, want.length, want.pixels, repeats,
                            holes, disjoint);
  want.out_routes = apart ? make_routes(want.num_routes, want.length,
                                        want.out_rows, repeats, holes, disjoint)
                          : want.routes;
  want.x = normal(want.batch * want.pixels *
                  (want.x_per_route ? rows : want.channels));
  want.x_dbl = normal(want.batch * want.pixels *
                      (want.shared_projection ? 1 : want.num_routes) * width);
  want.A = decay_rates(rows, want.d_state);
  want.dt_weight = normal(rows * want.dt_rank,
                          1.0 / std::sqrt(static_cast<double>(want.dt_rank)));
  want.bias = step_biases(rows, long_steps);
  if (with_D) want.D = normal(rows);
  want.dy =
      normal(want.batch * want.out_rows * (want.merge ? want.channels : rows));

  DeviceArray x(want.x, type, offset), x_dbl(want.x_dbl, type, offset),
      A(want.A, DType::kFloat), weight(want.dt_weight, DType::kFloat),
      bias(want.bias, DType::kFloat), D(want.D, DType::kFloat),
      dy(want.dy, y_type, offset);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapDevice device;
    mmvssm::cuda::Scan2dArgs args{};
    set_sizes(args, want, shape, type, y_type);
    args.pixels = static_cast<int64_t>(want.pixels);
    args.out_rows = static_cast<int64_t>(want.out_rows);
    args.dt_rank = static_cast<int64_t>(want.dt_rank);
    args.x_per_route = want.x_per_route;
    args.shared_projection = want.shared_projection;
    args.merge = want.merge;
    args.facts = mmvssm::reliable_facts(with_facts ? facts_of(want) : 0);
    args.x = x.raw();
    args.x_dbl = x_dbl.raw();
    args.routes = want.routes.data();
    args.out_routes = want.out_routes.data();
    args.A = A;
    args.dt_weight = weight;
    args.bias = bias;
    args.D = with_D ? static_cast<float*>(D) : nullptr;
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.states = add(out, "states", want.states.size(), DType::kFloat);
    check(mmvssm::cuda::scan_2d_forward(args, device), "forward");
    args.dx = add(out, "dx", want.dx.size(), type).raw();
    args.dx_dbl = add(out, "dx_dbl", want.dx_dbl.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat);
    args.ddt_weight =
        add(out, "ddt_weight", want.ddt_weight.size(), DType::kFloat);
    args.dbias = add(out, "dbias", want.dbias.size(), DType::kFloat);
    if (with_D) args.dD = add(out, "dD", want.dD.size(), DType::kFloat);
    check(mmvssm::cuda::scan_2d_backward(args, device), "backward");
    return out;
  };
  const Array routes(want.routes.begin(), want.routes.end());
  const Array out_routes(want.out_routes.begin(), want.out_routes.end());
  return judge(run,
               {{"y", &want.y},
                {"states", &want.states},
                {"dx", &want.dx},
                {"dx_dbl", &want.dx_dbl},
                {"dA", &want.dA},
                {"ddt_weight", &want.ddt_weight},
                {"dbias", &want.dbias},
                {"dD", &want.dD}},
               dump_path,
               {{"x", &want.x},
                {"x_dbl", &want.x_dbl},
                {"routes", &routes},
                {"out_routes", &out_routes},
                {"A", &want.A},
                {"dt_weight", &want.dt_weight},
                {"dt_bias", &want.bias},
                {"D", &want.D},
                {"dy", &want.dy}});
}

}  // namespace driver
