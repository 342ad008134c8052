// How a scan would be cut on a device, by scan_rules.h.
#include <cstdio>

#include "cuda/scan_rules.h"
#include "heap_device.h"

namespace driver {
namespace {

// Only tells what it has.
class Numbers : public mmvssm::cuda::Device {
 public:
  using Device::Device;
  void* allocate(int64_t) override { return nullptr; }
  void fill(void*, unsigned char, int64_t) override {}
  void launch(const mmvssm::cuda::Launch&) override {}
  void multiply(const mmvssm::cuda::Product&) override {}
};

}  // namespace

int run_rule(cases::Options& options) {
  const auto number = [&](const char* name) {
    return static_cast<int64_t>(options.number(name, 1));
  };
  mmvssm::cuda::ScanArgs args{};
  args.batch = number("batch");
  args.num_routes = number("K");
  args.channels = number("D");
  args.d_state = number("N");
  args.length = number("L");
  const Numbers device(static_cast<int>(options.number("sms", 132)),
                       static_cast<int>(options.number("shared", 227 * 1024)));
  const bool backward = options.number("backward", 0) != 0;
  const int bytes_a_thread = static_cast<int>(options.number("bytes", 100));
  const int bytes_a_channel =
      static_cast<int>(options.number("channel_bytes", 0));
  options.finish();
  mmvssm::cuda::Cut cut;
  const auto lay_out = [&](mmvssm::cuda::Cut& cut) {
    cut.shared_bytes =
        cut.threads * (bytes_a_thread + cut.lane_channels * bytes_a_channel);
  };
  check(choose_cut(args, device, backward, true, lay_out, cut), "rule");
  std::printf(
      "states %d state_lanes %d lane_channels %d threads %d parts %d chunks %d "
      "chunk_tiles %d\n",
      cut.states, cut.state_lanes, cut.lane_channels, cut.threads, cut.parts,
      cut.chunks, cut.chunk_tiles);
  return 0;
}

}  // namespace driver
