// How a host function finds the implementation of its tensors' device: mmcv's
// registry where mmcv was installed at the build, else the same two macros over
// a table of our own.
#pragma once

#if __has_include("pytorch_device_registry.hpp")
#include "pytorch_device_registry.hpp"  // shipped by the installed mmcv
#else

#include <torch/types.h>

#include <array>
#include <utility>

namespace mmvssm {

// Implementations of the host function `key`, by device type; null for none.
template <typename Function, Function key>
struct DeviceTable {
  static auto& functions() {
    static std::array<Function, at::COMPILE_TIME_MAX_DEVICE_TYPES> table{};
    return table;
  }

  template <typename... Args>
  static auto dispatch(const char* name, const at::Tensor& first,
                       Args&&... args) {
    const auto function =
        functions()[static_cast<int8_t>(first.device().type())];
    TORCH_CHECK(function != nullptr, name, ": implementation for device ",
                first.device(), " not found.");
    return function(first, std::forward<Args>(args)...);
  }
};

}  // namespace mmvssm

#define REGISTER_DEVICE_IMPL(key, device, value)                 \
  static const bool key##_##device##_is_registered =             \
      (::mmvssm::DeviceTable<decltype(&(key)), key>::functions() \
           [static_cast<int8_t>(at::k##device)] = value,         \
       true)

#define DISPATCH_DEVICE_IMPL(key, ...) \
  ::mmvssm::DeviceTable<decltype(&(key)), key>::dispatch(#key, __VA_ARGS__)

#endif
