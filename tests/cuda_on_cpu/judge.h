// Outputs of a case against the reference, and against themselves under other
// orders of the threads.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "scan_cases/report.h"
#include "shim/block.h"

namespace driver {

using cases::TypedArray;
using mmvssm::DType;
using reference::Array;

using Outputs =
    std::vector<std::pair<const char*, std::unique_ptr<TypedArray>>>;

inline TypedArray& add(Outputs& outputs, const char* name, size_t count,
                       DType type) {
  outputs.emplace_back(name, std::make_unique<TypedArray>(count, type));
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
  cases::Report report;
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
