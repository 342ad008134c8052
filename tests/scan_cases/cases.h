// The sizes and the random inputs of a case.
#pragma once

#include "inputs.h"
#include "options.h"
#include "reference.h"

namespace cases {

// The sizes and the random inputs of a case, still in double.
struct Case2d {
  reference::Scan2d want;
  DType type, y_type;
  int64_t facts;  // that the kernels may rely on
};
struct Case1d {
  reference::Scan1d want;
  DType type, y_type;
};

inline Case2d draw_2d(Options& options) {
  Case2d made;
  reference::Scan2d& want = made.want;
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
  const bool long_steps = options.number("long_steps", 0) != 0;
  made.type = options.type("type");
  made.y_type = options.type("y");

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
  made.facts = mmvssm::reliable_facts(with_facts ? facts_of(want) : 0);
  return made;
}

inline Case1d draw_1d(Options& options) {
  Case1d made;
  reference::Scan1d& want = made.want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.length = options.number("L", 17);
  want.softplus = options.number("softplus", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const bool long_steps = options.number("long_steps", 0) != 0;
  const bool with_bias = options.number("bias", 1) != 0;
  made.type = options.type("type");
  made.y_type = options.type("y");

  const size_t rows = want.num_routes * want.channels;
  const size_t maps = want.batch * want.num_routes * want.d_state * want.length;
  want.u = normal(want.batch * rows * want.length);
  want.delta =
      want.softplus ? normal(want.u.size()) : uniform(want.u.size(), 1e-3, 0.5);
  want.A = decay_rates(rows, want.d_state);
  want.B = normal(maps);
  want.C = normal(maps);
  if (with_D) want.D = normal(rows);
  if (with_bias) {
    want.bias =
        want.softplus ? step_biases(rows, long_steps) : uniform(rows, 0.0, 0.1);
  }
  want.dy = normal(want.u.size());
  return made;
}

// What the arguments of all kernels ask for.
template <class Args, class Scan>
void set_sizes(Args& args, const Scan& scan, DType type) {
  args.batch = static_cast<int64_t>(scan.batch);
  args.num_routes = static_cast<int64_t>(scan.num_routes);
  args.channels = static_cast<int64_t>(scan.channels);
  args.d_state = static_cast<int64_t>(scan.d_state);
  args.length = static_cast<int64_t>(scan.length);
  args.in_type = type;
}

// What those of the scan along routes ask for besides.
template <class Args>
void set_map(Args& args, const reference::Scan2d& scan) {
  args.pixels = static_cast<int64_t>(scan.pixels);
  args.out_rows = static_cast<int64_t>(scan.out_rows);
  args.dt_rank = static_cast<int64_t>(scan.dt_rank);
  args.x_per_route = scan.x_per_route;
  args.shared_projection = scan.shared_projection;
  args.merge = scan.merge;
  args.routes = scan.routes.data();
  args.out_routes = scan.out_routes.data();
}

}  // namespace cases
