// A case as NAME=VALUE words.
#pragma once

#include <map>
#include <string>

#include "cuda/scan_cuda.h"
#include "shim/block.h"

namespace driver {

using mmvssm::DType;

class Options {
 public:
  Options(int count, char** words) {
    for (int i = 0; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        shim::fail("want NAME=VALUE: %s", words[i]);
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
    if (value != "bfloat16") shim::fail("unknown type %s", value.c_str());
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
    for (const auto& item : values_) {
      shim::fail("unknown option %s", item.first.c_str());
    }
  }

 private:
  std::map<std::string, std::string> values_;
};

}  // namespace driver
