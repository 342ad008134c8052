// The device in host memory, and how the launches of a case are cut for it.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/kernel_table.h"
#include "scan_cases/options.h"
#include "shim/block.h"

namespace driver {

// Runs launches at once, one after the other, on memory that is poisoned first.
class HeapDevice : public mmvssm::cuda::Device {
 public:
  // So few multiprocessors that only what a case asks for is cut.
  HeapDevice() : Device(1, shim::options().shared_limit) {}

  void* allocate(int64_t bytes) override {
    blocks_.emplace_back(new unsigned char[static_cast<size_t>(bytes)]);
    shim::poison(blocks_.back().get(), bytes);
    return blocks_.back().get();
  }

  void fill(void* begin, unsigned char value, int64_t bytes) override {
    std::memset(begin, value, static_cast<size_t>(bytes));
  }

  void launch(const mmvssm::cuda::Launch& launch) override {
    const auto handle = mmvssm::cuda::find_kernel(launch.kernel);
    if (!handle) {
      shim::fail("no %s of %d states", name_of(launch.kernel.function),
                 launch.kernel.states);
    }
    shim::run_grid(launch.blocks, launch.threads, launch.shared_bytes,
                   [&] { handle(launch.params); });
  }

  void multiply(const mmvssm::cuda::Product& p) override {
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t c = 0; c < p.columns; ++c) {
          float sum = 0.0f;
          for (int64_t i = 0; i < p.inner; ++i) {
            sum += p.a[(b * p.rows + r) * p.inner + i] *
                   p.b[(b * p.inner + i) * p.columns + c];
          }
          p.out[(b * p.rows + r) * p.columns + c] = sum;
        }
      }
    }
  }

 private:
  std::vector<std::unique_ptr<unsigned char[]>> blocks_;
};

// How the launches of a case are cut.
struct LaunchShape {
  int threads, chunk_tiles, lane_channels;

  explicit LaunchShape(cases::Options& options)
      : threads(static_cast<int>(options.number("threads", 128))),
        chunk_tiles(static_cast<int>(options.number("chunk", 1000))),
        lane_channels(static_cast<int>(options.number("pair", 0)) + 1) {}
};

// How a case is cut, whatever the device.
inline void set_shape(mmvssm::cuda::ScanArgs& args, const LaunchShape& shape,
                      mmvssm::DType y_type) {
  args.max_threads = shape.threads;
  args.chunk_tiles = shape.chunk_tiles;
  args.lane_channels = shape.lane_channels;
  args.y_type = y_type;
}

inline void check(bool fits, const char* what) {
  if (!fits) shim::fail("%s: does not fit a block", what);
}

}  // namespace driver
