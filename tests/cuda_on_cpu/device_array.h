// Arrays on the "device", and the device itself, in host memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <memory>

#include "cuda/kernel_table.h"
#include "reference.h"
#include "shim/block.h"

namespace driver {

using mmvssm::DType;
using reference::Array;

inline size_t size_of(DType type) { return type == DType::kFloat ? 4 : 2; }

// An array on the "device": exactly as long as it should be, so that
// AddressSanitizer sees any access outside, and poisoned.
class DeviceArray {
 public:
  // `offset` elements behind an address that every vector may have.
  DeviceArray(size_t count, DType type, size_t offset = 0)
      : count_(count),
        type_(type),
        offset_(offset * size_of(type)),
        bytes_(new unsigned char[offset_ + bytes()]) {
    shim::poison(bytes_.get(), static_cast<int64_t>(offset_ + bytes()));
  }

  // Stores values rounded to the type, and rounds the caller's likewise.
  DeviceArray(Array& values, DType type, size_t offset = 0)
      : DeviceArray(values.size(), type, offset) {
    for (size_t i = 0; i < count_; ++i) {
      const auto value = static_cast<float>(values[i]);
      if (type == DType::kFloat) {
        std::memcpy(at(i), &value, 4);
      } else if (type == DType::kHalf) {
        const __half half = __float2half_rn(value);
        std::memcpy(at(i), &half, 2);
      } else {
        const __nv_bfloat16 half = __float2bfloat16_rn(value);
        std::memcpy(at(i), &half, 2);
      }
      values[i] = read(i);
    }
  }

  double read(size_t i) const {
    if (type_ == DType::kFloat) {
      float value;
      std::memcpy(&value, at(i), 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, at(i), 2);
    return type_ == DType::kHalf ? __half2float(__half{bits})
                                 : __bfloat162float(__nv_bfloat16{bits});
  }

  size_t count() const { return count_; }
  size_t bytes() const { return count_ * size_of(type_); }
  DType type() const { return type_; }
  const unsigned char* data() const { return at(0); }
  operator float*() { return reinterpret_cast<float*>(at(0)); }
  void* raw() { return at(0); }

 private:
  unsigned char* at(size_t i) const {
    return bytes_.get() + offset_ + i * size_of(type_);
  }
  size_t count_;
  DType type_;
  size_t offset_;
  std::unique_ptr<unsigned char[]> bytes_;
};

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
            const int64_t at = p.transposed ? i * p.rows + r : r * p.inner + i;
            sum += p.a[b * p.rows * p.inner + at] *
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

}  // namespace driver
