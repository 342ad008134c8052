// Outputs of a case against the reference, and against another run.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>

#include "typed_array.h"

namespace cases {

class Report {
 public:
  // Relative error over the whole array, in the 2-norm.
  void compare(const char* name, const TypedArray& got, const Array& want) {
    if (got.count() != want.size()) stop("wrong size of", name);
    if (want.empty()) return;
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = got.read(i) - want[i];
      error += difference * difference;
      norm += want[i] * want[i];
    }
    error = std::sqrt(error / (norm > 0.0 ? norm : 1.0));
    // For narrow types, what rounding once makes and no more.
    const double bound = got.type() == DType::kDouble  ? 1e-13
                         : got.type() == DType::kFloat ? 3e-6
                         : got.type() == DType::kHalf  ? 2.8e-4
                                                       : 2.1e-3;
    std::printf(" %s %.1e", name, error);
    if (!(error <= bound)) {
      std::printf("(!)");
      good_ = false;
    }
  }
  // Whether two runs gave the same bits.
  void same(const char* name, const TypedArray& one, const TypedArray& two) {
    if (one.bytes() > 0 && std::memcmp(one.data(), two.data(), one.bytes())) {
      std::printf(" %s depends on the order of threads(!)", name);
      good_ = false;
    }
  }
  int status() const {
    std::printf("\n");
    return good_ ? 0 : 1;
  }

 private:
  bool good_ = true;
};

}  // namespace cases
