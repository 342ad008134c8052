// One case of the scan of sequences.
#include "heap_device.h"
#include "judge.h"
#include "scan_cases/cases.h"

namespace driver {

using mmvssm::kChunk;

int run_1d(cases::Options& options) {
  cases::Case1d made = cases::draw_1d(options);
  reference::Scan1d& want = made.want;
  const DType type = made.type, y_type = made.y_type;
  const LaunchShape shape(options);
  const size_t offset = options.number("offset", 0);
  const std::string dump_path = options.text("dump");
  options.finish();

  TypedArray u(want.u, type, offset), delta(want.delta, type, offset),
      A(want.A, DType::kFloat), B(want.B, type, offset),
      C(want.C, type, offset), D(want.D, DType::kFloat),
      bias(want.bias, DType::kFloat), dy(want.dy, y_type, offset);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapDevice device;
    mmvssm::cuda::Scan1dArgs args{};
    cases::set_sizes(args, want, type);
    set_shape(args, shape, y_type);
    args.softplus = want.softplus;
    args.u = u.raw();
    args.delta = delta.raw();
    args.A = A.as<float>();
    args.B = B.raw();
    args.C = C.raw();
    args.bias = bias.as<float>();
    args.D = D.as<float>();
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.last_state =
        add(out, "last_state", want.last_state.size(), DType::kFloat)
            .as<float>();
    args.states =
        add(out, "states", want.states.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_1d_forward(args, device), "forward");
    args.du = add(out, "du", want.du.size(), type).raw();
    args.ddelta = add(out, "ddelta", want.ddelta.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat).as<float>();
    args.dB = add(out, "dB", want.dB.size(), type).raw();
    args.dC = add(out, "dC", want.dC.size(), type).raw();
    args.dbias =
        add(out, "dbias", want.dbias.size(), DType::kFloat).as<float>();
    args.dD = add(out, "dD", want.dD.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_1d_backward(args, device), "backward");
    return out;
  };
  return judge(run,
               {{"y", &want.y},
                {"last_state", &want.last_state},
                {"states", &want.states},
                {"du", &want.du},
                {"ddelta", &want.ddelta},
                {"dA", &want.dA},
                {"dB", &want.dB},
                {"dC", &want.dC},
                {"dbias", &want.dbias},
                {"dD", &want.dD}},
               dump_path,
               {{"u", &want.u},
                {"delta", &want.delta},
                {"A", &want.A},
                {"B", &want.B},
                {"C", &want.C},
                {"D", &want.D},
                {"delta_bias", &want.bias},
                {"dy", &want.dy}});
}

}  // namespace driver
