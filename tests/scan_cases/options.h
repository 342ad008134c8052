// A case as NAME=VALUE words.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "common/scan_common.h"

namespace cases {

using mmvssm::DType;

// Ends the program with status 3.
[[noreturn]] inline void stop(const char* message, const std::string& detail) {
  std::printf("%s %s\n", message, detail.c_str());
  std::exit(3);
}

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

}  // namespace cases
