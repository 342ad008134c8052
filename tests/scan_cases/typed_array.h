// Arrays in the types of the kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "options.h"
#include "reference.h"

namespace cases {

using reference::Array;

inline size_t size_of(DType type) {
  return type == DType::kDouble ? 8 : type == DType::kFloat ? 4 : 2;
}

// An array of a kernel: exactly as long as it should be, so that
// AddressSanitizer sees any access outside, and at first NaN in all types.
class TypedArray {
 public:
  // `offset` elements behind an address that every vector may have.
  TypedArray(size_t count, DType type, size_t offset = 0)
      : count_(count),
        type_(type),
        offset_(offset * size_of(type)),
        bytes_(new unsigned char[offset_ + bytes()]) {
    for (size_t i = 0; i < offset_ + bytes(); ++i) {
      bytes_[i] = i % 2 ? 0x7f : 0xff;
    }
  }

  // Stores values rounded to the type, and rounds the caller's likewise.
  TypedArray(Array& values, DType type, size_t offset = 0)
      : TypedArray(values.size(), type, offset) {
    for (size_t i = 0; i < count_; ++i) {
      const auto value = static_cast<float>(values[i]);
      if (type == DType::kDouble) {
        std::memcpy(at(i), &values[i], 8);
      } else if (type == DType::kFloat) {
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
    if (type_ == DType::kDouble) {
      double value;
      std::memcpy(&value, at(i), 8);
      return value;
    }
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
  void* raw() { return at(0); }
  // Null where there is nothing, as the kernels want it.
  template <typename S>
  S* as() {
    if (sizeof(S) != size_of(type_)) stop("wrong type of", "an array");
    return count_ == 0 ? nullptr : reinterpret_cast<S*>(at(0));
  }

 private:
  unsigned char* at(size_t i) const {
    return bytes_.get() + offset_ + i * size_of(type_);
  }
  size_t count_;
  DType type_;
  size_t offset_;
  std::unique_ptr<unsigned char[]> bytes_;
};

}  // namespace cases
