// One case of the scan of sequences.
#include "inputs.h"
#include "report.h"

namespace driver {

using mmvssm::kChunk;

int run_1d(Options& options) {
  reference::Scan1d want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.length = options.number("L", 17);
  want.softplus = options.number("softplus", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const bool with_bias = options.number("bias", 1) != 0;
  const LaunchShape shape(options);
  const size_t offset = options.number("offset", 0);
  const bool long_steps = options.number("long_steps", 0) != 0;
  const DType type = options.type("type");
  const DType y_type = options.type("y");
  const std::string dump_path = options.text("dump");
  options.finish();

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

  DeviceArray u(want.u, type, offset), delta(want.delta, type, offset),
      A(want.A, DType::kFloat), B(want.B, type, offset),
      C(want.C, type, offset), D(want.D, DType::kFloat),
      bias(want.bias, DType::kFloat), dy(want.dy, y_type, offset);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapDevice device;
    mmvssm::cuda::Scan1dArgs args{};
    set_sizes(args, want, shape, type, y_type);
    args.softplus = want.softplus;
    args.u = u.raw();
    args.delta = delta.raw();
    args.A = A;
    args.B = B.raw();
    args.C = C.raw();
    args.bias = with_bias ? static_cast<float*>(bias) : nullptr;
    args.D = with_D ? static_cast<float*>(D) : nullptr;
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.last_state =
        add(out, "last_state", want.last_state.size(), DType::kFloat);
    args.states = add(out, "states", want.states.size(), DType::kFloat);
    check(mmvssm::cuda::scan_1d_forward(args, device), "forward");
    args.du = add(out, "du", want.du.size(), type).raw();
    args.ddelta = add(out, "ddelta", want.ddelta.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat);
    args.dB = add(out, "dB", want.dB.size(), type).raw();
    args.dC = add(out, "dC", want.dC.size(), type).raw();
    if (with_bias) {
      args.dbias = add(out, "dbias", want.dbias.size(), DType::kFloat);
    }
    if (with_D) args.dD = add(out, "dD", want.dD.size(), DType::kFloat);
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
