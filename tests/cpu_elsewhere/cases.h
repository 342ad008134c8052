// What a driver of kernels is made of: the options of a case, its random inputs
// in the types of the kernels, and the comparison with the double reference.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/scan_common.h"
#include "reference.h"

namespace cases {

using mmvssm::DType;
using reference::Array;

// Ends the program with status 3.
[[noreturn]] inline void stop(const char* message, const std::string& detail) {
  std::printf("%s %s\n", message, detail.c_str());
  std::exit(3);
}

inline size_t size_of(DType type) {
  return type == DType::kDouble ? 8 : type == DType::kFloat ? 4 : 2;
}

// An array of a kernel: exactly as long as it should be, so that
// AddressSanitizer sees any access outside, and NaN in all types.
class TypedArray {
 public:
  TypedArray(size_t count, DType type)
      : count_(count), type_(type), bytes_(new unsigned char[bytes()]) {
    for (size_t i = 0; i < bytes(); ++i) bytes_[i] = i % 2 ? 0x7f : 0xff;
  }

  // Stores values rounded to the type, and rounds the caller's likewise.
  TypedArray(Array& values, DType type) : TypedArray(values.size(), type) {
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
  const unsigned char* data() const { return bytes_.get(); }
  void* raw() { return bytes_.get(); }
  // Null where there is nothing, as the kernels want it.
  template <typename S>
  S* as() {
    if (sizeof(S) != size_of(type_)) stop("wrong type of", "an array");
    return count_ == 0 ? nullptr : reinterpret_cast<S*>(bytes_.get());
  }

 private:
  unsigned char* at(size_t i) const {
    return bytes_.get() + i * size_of(type_);
  }
  size_t count_;
  DType type_;
  std::unique_ptr<unsigned char[]> bytes_;
};

class Options {
 public:
  Options(int count, char** words) {
    for (int i = 0; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        stop("want NAME=VALUE:", word);
      }
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  size_t number(const std::string& name, size_t otherwise) {
    const auto found = values_.find(name);
    if (found == values_.end()) return otherwise;
    const size_t value = std::stoul(found->second);
    values_.erase(found);
    return value;
  }
  DType type(const std::string& name) {
    const std::string value = text(name);
    if (value.empty() || value == "float") return DType::kFloat;
    if (value == "half") return DType::kHalf;
    if (value == "double") return DType::kDouble;
    if (value != "bfloat16") stop("unknown type", value);
    return DType::kBFloat16;
  }
  std::string text(const std::string& name) {
    const auto found = values_.find(name);
    if (found == values_.end()) return "";
    const std::string value = found->second;
    values_.erase(found);
    return value;
  }
  void finish() const {
    for (const auto& item : values_) stop("unknown option", item.first);
  }

 private:
  std::map<std::string, std::string> values_;
};

inline std::mt19937 generator(20);

inline Array normal(size_t count, double scale = 1.0) {
  std::normal_distribution<double> draw(0.0, scale);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
inline Array uniform(size_t count, double low, double high) {
  std::uniform_real_distribution<double> draw(low, high);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
inline Array decay_rates(size_t rows, size_t d_state) {
  Array A = uniform(rows * d_state, -1.5, -0.5);
  for (size_t i = 0; i < A.size(); ++i) {
    A[i] *= 1.0 + static_cast<double>(i % d_state);
  }
  return A;
}
// Most step sizes lie between 1e-3 and 0.1, some above 1.
inline Array step_biases(size_t rows) { return uniform(rows, -7.0, 1.0); }

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

using Outputs =
    std::vector<std::pair<const char*, std::unique_ptr<TypedArray>>>;

inline TypedArray& add(Outputs& outputs, const char* name, size_t count,
                       DType type) {
  outputs.emplace_back(name, std::make_unique<TypedArray>(count, type));
  return *outputs.back().second;
}

// Routes with `holes` percent of -1; else permutations (of a part) of the
// pixels, or any pixels when they may repeat. Disjoint ones share the pixels
// out; what the division leaves over belongs to none.
inline std::vector<int32_t> make_routes(size_t num_routes, size_t length,
                                        size_t pixels, bool repeats,
                                        size_t holes, bool disjoint) {
  std::vector<int32_t> order(pixels);
  for (size_t p = 0; p < pixels; ++p) order[p] = static_cast<int32_t>(p);
  const size_t share = disjoint ? pixels / num_routes : pixels;
  std::vector<int32_t> table;
  for (size_t k = 0; k < num_routes; ++k) {
    if (k == 0 || !disjoint) {
      std::shuffle(order.begin(), order.end(), generator);
    }
    const size_t first = disjoint ? k * share : 0;
    for (size_t l = 0; l < length; ++l) {
      const bool hole = generator() % 100 < holes;
      const size_t at = repeats ? generator() % share : l;
      table.push_back(hole || at >= share ? -1 : order[first + at]);
    }
  }
  return table;
}

// What is true of the tables, as a set of routes would find it.
inline int64_t facts_of(const reference::Scan2d& scan) {
  int64_t facts = mmvssm::kChecked;
  const auto look = [&](const std::vector<int32_t>& table, size_t size,
                        int64_t repeats, int64_t gaps) {
    std::vector<int> owners(size, 0);
    for (size_t k = 0; k < scan.num_routes; ++k) {
      std::vector<int> visits(size, 0);
      for (size_t l = 0; l < scan.length; ++l) {
        const int32_t entry = table[k * scan.length + l];
        if (entry >= 0) ++visits[static_cast<size_t>(entry)];
      }
      for (size_t i = 0; i < size; ++i) {
        if (visits[i] > 1) facts |= repeats;
        if (visits[i] == 0) facts |= gaps;
        if (visits[i] > 0) ++owners[i];
      }
    }
    return owners;
  };
  look(scan.routes, scan.pixels, mmvssm::kReadRepeats, mmvssm::kReadGaps);
  bool disjoint = scan.routes == scan.out_routes;
  for (const int count : look(scan.out_routes, scan.out_rows,
                              mmvssm::kOutRepeats, mmvssm::kOutGaps)) {
    if (count == 0) facts |= mmvssm::kUnionGaps;
    disjoint = disjoint && count <= 1;
  }
  return disjoint ? facts | mmvssm::kDisjoint : facts;
}

// The sizes and the random inputs of a case, still in double.
struct Case2d {
  reference::Scan2d want;
  DType type, y_type;
  int64_t facts;  // that the kernels may rely on
};
struct Case1d {
  reference::Scan1d want;
  DType type, y_type;
};

inline Case2d draw_2d(Options& options) {
  Case2d made;
  reference::Scan2d& want = made.want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.dt_rank = options.number("R", 1);
  want.length = options.number("L", 17);
  want.pixels = options.number("P", want.length);
  const bool apart = options.number("out", 0) != 0;
  const size_t holes = options.number("holes", 0);
  const bool repeats = options.number("repeats", 0) != 0;
  const bool disjoint = options.number("disjoint", 0) != 0;
  const bool with_facts = options.number("facts", 1) != 0;
  want.out_rows = apart ? options.number("Q", want.length) : want.pixels;
  want.x_per_route = options.number("x_per_route", 0) != 0;
  want.shared_projection = options.number("shared", 0) != 0;
  want.merge = options.number("merge", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  made.type = options.type("type");
  made.y_type = options.type("y");

  const size_t rows = want.num_routes * want.channels;
  const size_t width = want.dt_rank + 2 * want.d_state;
  want.routes = make_routes(want.num_routes, want.length, want.pixels, repeats,
                            holes, disjoint);
  want.out_routes = apart ? make_routes(want.num_routes, want.length,
                                        want.out_rows, repeats, holes, disjoint)
                          : want.routes;
  want.x = normal(want.batch * want.pixels *
                  (want.x_per_route ? rows : want.channels));
  want.x_dbl = normal(want.batch * want.pixels *
                      (want.shared_projection ? 1 : want.num_routes) * width);
  want.A = decay_rates(rows, want.d_state);
  want.dt_weight = normal(rows * want.dt_rank,
                          1.0 / std::sqrt(static_cast<double>(want.dt_rank)));
  want.bias = step_biases(rows);
  if (with_D) want.D = normal(rows);
  want.dy =
      normal(want.batch * want.out_rows * (want.merge ? want.channels : rows));
  made.facts = mmvssm::reliable_facts(with_facts ? facts_of(want) : 0);
  return made;
}

inline Case1d draw_1d(Options& options) {
  Case1d made;
  reference::Scan1d& want = made.want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.length = options.number("L", 17);
  want.softplus = options.number("softplus", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const bool with_bias = options.number("bias", 1) != 0;
  made.type = options.type("type");
  made.y_type = options.type("y");

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
    want.bias = want.softplus ? step_biases(rows) : uniform(rows, 0.0, 0.1);
  }
  want.dy = normal(want.u.size());
  return made;
}

}  // namespace cases
