// Asks the host code of the kernels how it would run one scan along the routes
// of a cross scan: prints the arrays, and what it asks the device for, in
// order.
//
//   launches MULTIPROCESSORS SHARED_BYTES forward|backward DTYPE
//            BATCH ROUTES CHANNELS STATES LENGTH RANK
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/scan_cuda.h"

namespace {

using mmvssm::DType;
using mmvssm::cuda::name_of;

// A device that only takes notes; nothing stands behind its addresses.
class Notes : public mmvssm::cuda::Device {
 public:
  using Device::Device;

  void* add(const char* name, int64_t bytes) {
    constexpr uint64_t step = uint64_t{1} << 32;
    const uint64_t base = next_;
    next_ += (bytes / step + 2) * step;
    std::printf("array %s %llu %lld\n", name,
                static_cast<unsigned long long>(base),
                static_cast<long long>(bytes));
    return reinterpret_cast<void*>(base);
  }
  float* floats(const char* name, int64_t count) {
    return static_cast<float*>(add(name, 4 * count));
  }

  void* allocate(int64_t bytes) override { return add("scratch", bytes); }
  void fill(void* begin, unsigned char value, int64_t bytes) override {
    std::printf(
        "fill %llu %d %lld\n",
        static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(begin)),
        value, static_cast<long long>(bytes));
  }
  void multiply(const mmvssm::cuda::Product& p) override {
    std::printf("product %lld %lld %lld %lld\n",
                static_cast<long long>(p.batch), static_cast<long long>(p.rows),
                static_cast<long long>(p.inner),
                static_cast<long long>(p.columns));
  }
  void launch(const mmvssm::cuda::Launch& l) override {
    std::printf("launch %lld %d %d ", static_cast<long long>(l.blocks),
                l.threads, l.shared_bytes);
    const auto* bytes = static_cast<const unsigned char*>(l.params);
    for (int i = 0; i < l.params_bytes; ++i) std::printf("%02x", bytes[i]);
    std::printf(" %s<%s, %d, %d>\n", name_of(l.kernel.function),
                name_of(l.kernel.type), l.kernel.states,
                l.kernel.lane_channels);
  }

 private:
  uint64_t next_ = uint64_t{2} << 32;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  Notes notes(std::atoi(argv[1]), std::atoi(argv[2]));
  const bool backward = std::string(argv[3]) == "backward";
  const std::string type = argv[4];
  mmvssm::cuda::Scan2dArgs args{};
  args.batch = std::atoll(argv[5]);
  args.num_routes = std::atoll(argv[6]);
  args.channels = std::atoll(argv[7]);
  args.d_state = std::atoll(argv[8]);
  args.length = args.pixels = args.out_rows = std::atoll(argv[9]);
  args.dt_rank = std::atoll(argv[10]);
  args.in_type = type == "fp32"   ? DType::kFloat
                 : type == "fp16" ? DType::kHalf
                                  : DType::kBFloat16;
  args.y_type = DType::kFloat;
  args.merge = true;
  args.facts = mmvssm::kChecked;  // every route visits every pixel once
  const int64_t item = type == "fp32" ? 4 : 2;
  const int64_t rows = args.num_routes * args.channels;
  const int64_t width = args.dt_rank + 2 * args.d_state;
  const int64_t map = args.batch * args.pixels * args.channels;
  const int64_t projected = args.batch * args.pixels * args.num_routes * width;

  args.x = notes.add("x", item * map);
  args.x_dbl = notes.add("x_dbl", item * projected);
  args.routes = static_cast<const int32_t*>(
      notes.add("routes", 4 * args.num_routes * args.length));
  args.out_routes = args.routes;
  args.A = notes.floats("A", rows * args.d_state);
  args.D = notes.floats("D", rows);
  args.bias = notes.floats("bias", rows);
  args.dt_weight = notes.floats("dt_weight", rows * args.dt_rank);
  bool possible;
  if (backward) {
    args.states =
        notes.floats("states", args.batch * rows * args.d_state *
                                   mmvssm::num_saved_states(args.length));
    args.dy = notes.floats("dy", map);
    args.dx = notes.add("dx", item * map);
    args.dx_dbl = notes.add("dx_dbl", item * projected);
    args.dA = notes.floats("dA", rows * args.d_state);
    args.dD = notes.floats("dD", rows);
    args.dbias = notes.floats("dbias", rows);
    args.ddt_weight = notes.floats("ddt_weight", rows * args.dt_rank);
    possible = scan_2d_backward(args, notes);
  } else {
    args.y = notes.floats("y", map);
    possible = scan_2d_forward(args, notes);
  }
  return possible ? 0 : 1;
}
