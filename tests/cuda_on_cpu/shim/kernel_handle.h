// A kernel as what runs one thread of it.
#pragma once

#include <functional>

namespace mmvssm::cuda {

using KernelHandle = std::function<void(const void* params)>;

template <typename Params>
KernelHandle handle_of(void (*kernel)(Params)) {
  return [kernel](const void* params) {
    kernel(*static_cast<const Params*>(params));
  };
}

}  // namespace mmvssm::cuda
