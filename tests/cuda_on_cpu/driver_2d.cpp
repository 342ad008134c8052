// One case of the scan along routes.
#include "heap_device.h"
#include "judge.h"
#include "scan_cases/cases.h"

namespace driver {

using mmvssm::kChunk;

int run_2d(cases::Options& options) {
  cases::Case2d made = cases::draw_2d(options);
  reference::Scan2d& want = made.want;
  const DType type = made.type, y_type = made.y_type;
  const LaunchShape shape(options);
  const size_t offset = options.number("offset", 0);
  const std::string dump_path = options.text("dump");
  options.finish();

  TypedArray x(want.x, type, offset), x_dbl(want.x_dbl, type, offset),
      A(want.A, DType::kFloat), weight(want.dt_weight, DType::kFloat),
      bias(want.bias, DType::kFloat), D(want.D, DType::kFloat),
      dy(want.dy, y_type, offset);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapDevice device;
    mmvssm::cuda::Scan2dArgs args{};
    cases::set_sizes(args, want, type);
    cases::set_map(args, want);
    set_shape(args, shape, y_type);
    args.facts = made.facts;
    args.x = x.raw();
    args.x_dbl = x_dbl.raw();
    args.A = A.as<float>();
    args.dt_weight = weight.as<float>();
    args.bias = bias.as<float>();
    args.D = D.as<float>();
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.states =
        add(out, "states", want.states.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_2d_forward(args, device), "forward");
    args.dx = add(out, "dx", want.dx.size(), type).raw();
    args.dx_dbl = add(out, "dx_dbl", want.dx_dbl.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat).as<float>();
    args.ddt_weight =
        add(out, "ddt_weight", want.ddt_weight.size(), DType::kFloat)
            .as<float>();
    args.dbias =
        add(out, "dbias", want.dbias.size(), DType::kFloat).as<float>();
    args.dD = add(out, "dD", want.dD.size(), DType::kFloat).as<float>();
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
