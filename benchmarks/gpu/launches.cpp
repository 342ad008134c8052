// Asks the host code of the kernels how it would run one scan, without running
// it: prints every launch with its parameters, and the arrays they point to.
//
//   launches forward|backward DTYPE BATCH ROUTES CHANNELS STATES LENGTH RANK
//
// It is compiled over the shim of the tests (tests/cuda_on_cpu), with another
// cuda_shim.h, which stands beside this file.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/scan_cuda.h"

namespace {

using mmvssm::DType;

// Addresses that nothing stands behind; a gap of 4 GiB after each array.
class Arrays : public mmvssm::cuda::Workspace {
 public:
  void* add(const char* name, int64_t bytes) {
    const uint64_t base = next_;
    next_ += (bytes / (int64_t{1} << 32) + 2) << 32;
    std::printf("array %s %llu %lld\n", name,
                static_cast<unsigned long long>(base),
                static_cast<long long>(bytes));
    return reinterpret_cast<void*>(base);
  }
  float* floats(const char* name, int64_t count) {
    return static_cast<float*>(add(name, 4 * count));
  }
  void* allocate(int64_t bytes) override { return add("scratch", bytes); }

 private:
  uint64_t next_ = uint64_t{1} << 33;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  const bool backward = std::string(argv[1]) == "backward";
  const std::string type = argv[2];
  Arrays arrays;
  mmvssm::cuda::Scan2dArgs args{};
  args.batch = std::atoll(argv[3]);
  args.num_routes = std::atoll(argv[4]);
  args.channels = std::atoll(argv[5]);
  args.d_state = std::atoll(argv[6]);
  args.length = args.pixels = args.out_rows = std::atoll(argv[7]);
  args.dt_rank = std::atoll(argv[8]);
  args.in_type = type == "fp32"   ? DType::kFloat
                 : type == "fp16" ? DType::kHalf
                                  : DType::kBFloat16;
  args.y_type = DType::kFloat;
  args.merge = true;
  args.facts = mmvssm::kChecked;  // four whole routes, no gaps, no repeats
  const int64_t item = type == "fp32" ? 4 : 2;
  const int64_t rows = args.num_routes * args.channels;
  const int64_t width = args.dt_rank + 2 * args.d_state;
  const int64_t map = args.batch * args.pixels * args.channels;
  const int64_t projected =
      args.batch * args.pixels * args.num_routes * width;
  const int64_t states = args.batch * rows * args.d_state *
                         mmvssm::num_saved_states(args.length);

  args.x = arrays.add("x", item * map);
  args.x_dbl = arrays.add("x_dbl", item * projected);
  args.routes = static_cast<const int32_t*>(
      arrays.add("routes", 4 * args.num_routes * args.length));
  args.out_routes = args.routes;
  args.A = arrays.floats("A", rows * args.d_state);
  args.D = arrays.floats("D", rows);
  args.bias = arrays.floats("bias", rows);
  args.dt_weight = arrays.floats("dt_weight", rows * args.dt_rank);
  if (backward) {
    args.states = arrays.floats("states", states);
    args.dy = arrays.floats("dy", map);
    args.dx = arrays.add("dx", item * map);
    args.dx_dbl = arrays.add("dx_dbl", item * projected);
    args.dA = arrays.floats("dA", rows * args.d_state);
    args.dD = arrays.floats("dD", rows);
    args.dbias = arrays.floats("dbias", rows);
    args.ddt_weight = arrays.floats("ddt_weight", rows * args.dt_rank);
    return mmvssm::cuda::scan_2d_backward(args, arrays, nullptr);
  }
  args.y = arrays.floats("y", map);
  return mmvssm::cuda::scan_2d_forward(args, arrays, nullptr);
}
