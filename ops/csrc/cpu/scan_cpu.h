// Facts on the CPU kernels for `mmvssm.ops.info()`.
#pragma once

#include <string>

namespace mmvssm {

std::string cpu_capability();  // the variant that runs on this processor
std::string cpu_variants();    // all variants that could, best first

}  // namespace mmvssm
