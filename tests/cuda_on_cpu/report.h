// Outputs of a case against the reference, and against themselves under other
// orders of the threads.
#pragma once

#include <cmath>
#include <cstdio>
#include <map>
#include <string>

#include "device_array.h"

namespace driver {

class Report {
 public:
  // Relative error over the whole array, in the 2-norm.
  void compare(const char* name, const DeviceArray& got, const Array& want) {
    if (got.count() != want.size()) shim::fail("%s: size", name);
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
    const double bound = got.type() == DType::kFloat  ? 3e-6
                         : got.type() == DType::kHalf ? 2.8e-4
                                                      : 2.1e-3;
    std::printf(" %s %.1e", name, error);
    if (!(error <= bound)) {
      std::printf("(!)");
      good_ = false;
    }
  }
  // Whether two runs gave the same bits.
  void same(const char* name, const DeviceArray& one, const DeviceArray& two) {
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
    std::vector<std::pair<const char*, std::unique_ptr<DeviceArray>>>;

inline DeviceArray& add(Outputs& outputs, const char* name, size_t count,
                        DType type) {
  outputs.emplace_back(name, std::make_unique<DeviceArray>(count, type));
  return *outputs.back().second;
}

using Arrays = std::map<std::string, const Array*>;

inline void dump(const std::string& path, const Arrays& inputs,
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

}  // namespace driver
