// Runs the CUDA kernels, compiled as C++ over the shim, on small awkward shapes
// and compares every output with the double reference.
//
//   driver 2d NAME=VALUE...      one case of the scan along routes
//   driver 1d NAME=VALUE...      one case of the scan of sequences
//
// Prints the relative error of each output; ends with status 1 if one is above
// its bound or if results depend on the order in which threads run. With
// dump=PATH it also writes inputs and outputs: per array a line "NAME COUNT",
// then COUNT doubles.
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "cases.h"
#include "cuda/scan_cuda.h"
#include "shim/block.h"

namespace {

using cases::add;
using cases::Options;
using cases::Outputs;
using cases::Report;
using cases::TypedArray;
using mmvssm::DType;
using mmvssm::kChunk;
using reference::Array;

class HeapWorkspace : public mmvssm::cuda::Workspace {
 public:
  void* allocate(int64_t bytes) override {
    blocks_.emplace_back(new unsigned char[static_cast<size_t>(bytes)]);
    shim::poison(blocks_.back().get(), bytes);
    return blocks_.back().get();
  }

 private:
  std::vector<std::unique_ptr<unsigned char[]>> blocks_;
};

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) shim::fail("%s: error %d", what, status);
}

using Arrays = std::map<std::string, const Array*>;

void dump(const std::string& path, const Arrays& inputs,
          const Outputs& outputs) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) shim::fail("cannot write %s", path.c_str());
  const auto put = [&](const char* name, const Array& values) {
    std::fprintf(file, "%s %zu\n", name, values.size());
    std::fwrite(values.data(), sizeof(double), values.size(), file);
  };
  for (const auto& input : inputs) put(input.first.c_str(), *input.second);
  for (const auto& output : outputs) {
    Array values;
    for (size_t i = 0; i < output.second->count(); ++i) {
      values.push_back(output.second->read(i));
    }
    put(output.first, values);
  }
  std::fclose(file);
}

// `run` gives the outputs; every order of threads must give the same.
template <typename Run>
int judge(const Run& run, const Arrays& wanted, const std::string& dump_path,
          const Arrays& inputs) {
  Report report;
  const Outputs first = run();
  if (!dump_path.empty()) dump(dump_path, inputs, first);
  for (const auto& output : first) {
    report.compare(output.first, *output.second, *wanted.at(output.first));
  }
  for (const shim::Order order :
       {shim::Order::kDescending, shim::Order::kShuffled}) {
    shim::options().order = order;
    const Outputs again = run();
    for (size_t i = 0; i < first.size(); ++i) {
      report.same(first[i].first, *first[i].second, *again[i].second);
    }
  }
  return report.status();
}

// What both forms ask for; blocks stay at `threads` channels, however few there
// are.
template <class Scan>
void set_sizes(mmvssm::cuda::ScanArgs& args, const Scan& scan, int threads,
               DType type, DType y_type) {
  args.max_threads = threads;
  args.min_blocks = 0;
  args.batch = static_cast<int64_t>(scan.batch);
  args.num_routes = static_cast<int64_t>(scan.num_routes);
  args.channels = static_cast<int64_t>(scan.channels);
  args.d_state = static_cast<int64_t>(scan.d_state);
  args.length = static_cast<int64_t>(scan.length);
  args.in_type = type;
  args.y_type = y_type;
}

int run_2d(Options& options) {
  cases::Case2d made = cases::draw_2d(options);
  reference::Scan2d& want = made.want;
  const DType type = made.type, y_type = made.y_type;
  const int threads = static_cast<int>(options.number("threads", 128));
  const std::string dump_path = options.text("dump");
  options.finish();

  TypedArray x(want.x, type), x_dbl(want.x_dbl, type), A(want.A, DType::kFloat),
      weight(want.dt_weight, DType::kFloat), bias(want.bias, DType::kFloat),
      D(want.D, DType::kFloat), dy(want.dy, y_type);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapWorkspace workspace;
    mmvssm::cuda::Scan2dArgs args{};
    set_sizes(args, want, threads, type, y_type);
    args.pixels = static_cast<int64_t>(want.pixels);
    args.out_rows = static_cast<int64_t>(want.out_rows);
    args.dt_rank = static_cast<int64_t>(want.dt_rank);
    args.x_per_route = want.x_per_route;
    args.shared_projection = want.shared_projection;
    args.merge = want.merge;
    args.facts = made.facts;
    args.x = x.raw();
    args.x_dbl = x_dbl.raw();
    args.routes = want.routes.data();
    args.out_routes = want.out_routes.data();
    args.A = A.as<float>();
    args.dt_weight = weight.as<float>();
    args.bias = bias.as<float>();
    args.D = D.as<float>();
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.states =
        add(out, "states", want.states.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_2d_forward(args, workspace, nullptr), "forward");
    args.dx = add(out, "dx", want.dx.size(), type).raw();
    args.dx_dbl = add(out, "dx_dbl", want.dx_dbl.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat).as<float>();
    args.ddt_weight =
        add(out, "ddt_weight", want.ddt_weight.size(), DType::kFloat)
            .as<float>();
    args.dbias =
        add(out, "dbias", want.dbias.size(), DType::kFloat).as<float>();
    if (!want.D.empty())
      args.dD = add(out, "dD", want.dD.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_2d_backward(args, workspace, nullptr), "backward");
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

int run_1d(Options& options) {
  cases::Case1d made = cases::draw_1d(options);
  reference::Scan1d& want = made.want;
  const DType type = made.type, y_type = made.y_type;
  const int threads = static_cast<int>(options.number("threads", 128));
  const std::string dump_path = options.text("dump");
  options.finish();

  TypedArray u(want.u, type), delta(want.delta, type), A(want.A, DType::kFloat),
      B(want.B, type), C(want.C, type), D(want.D, DType::kFloat),
      bias(want.bias, DType::kFloat), dy(want.dy, y_type);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapWorkspace workspace;
    mmvssm::cuda::Scan1dArgs args{};
    set_sizes(args, want, threads, type, y_type);
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
    check(mmvssm::cuda::scan_1d_forward(args, workspace, nullptr), "forward");
    args.du = add(out, "du", want.du.size(), type).raw();
    args.ddelta = add(out, "ddelta", want.ddelta.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat).as<float>();
    args.dB = add(out, "dB", want.dB.size(), type).raw();
    args.dC = add(out, "dC", want.dC.size(), type).raw();
    if (!want.bias.empty()) {
      args.dbias =
          add(out, "dbias", want.dbias.size(), DType::kFloat).as<float>();
    }
    if (!want.D.empty())
      args.dD = add(out, "dD", want.dD.size(), DType::kFloat).as<float>();
    check(mmvssm::cuda::scan_1d_backward(args, workspace, nullptr), "backward");
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

}  // namespace

int main(int count, char** words) {
  const std::string form = count > 1 ? words[1] : "";
  if (form != "1d" && form != "2d") shim::fail("want 1d or 2d");
  Options options(count - 2, words + 2);
  return form == "2d" ? run_2d(options) : run_1d(options);
}
