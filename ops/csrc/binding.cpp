// Registers the host functions under the schemas of mmvssm/ops/library.py, and
// exports them to Python in the manner of mmcv's extension.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "common/scan_ops.h"
#include "cpu/merge_cpu.h"
#include "cpu/scan_cpu.h"

namespace {

std::vector<std::string> devices() {
#ifdef MMVSSM_WITH_CUDA
  return {"cpu", "cuda"};
#else
  return {"cpu"};
#endif
}

// The architectures that nvcc was asked for; empty without CUDA kernels.
std::string cuda_architectures() {
#ifdef MMVSSM_CUDA_ARCHITECTURES
  return MMVSSM_CUDA_ARCHITECTURES;
#else
  return "";
#endif
}

// Why the build holds no more than it does; empty where it holds all.
std::string build_note() { return MMVSSM_BUILD_NOTE; }

void register_kernels(torch::Library& m) {
  m.impl("selective_scan", &mmvssm::selective_scan_forward);
  m.impl("selective_scan_backward", &mmvssm::selective_scan_backward);
  m.impl("selective_scan_2d", &mmvssm::selective_scan_2d_forward);
  m.impl("selective_scan_2d_backward", &mmvssm::selective_scan_2d_backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(mmvssm, CPU, m) {
  register_kernels(m);
  m.impl("normalized_means", &mmvssm::normalized_means);
  m.impl("normalized_means_backward", &mmvssm::normalized_means_backward);
  m.impl("gated_sum", &mmvssm::gated_sum);
  m.impl("gated_sum_backward", &mmvssm::gated_sum_backward);
}
#ifdef MMVSSM_WITH_CUDA
TORCH_LIBRARY_IMPL(mmvssm, CUDA, m) { register_kernels(m); }
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled selective-scan kernels; use them through mmvssm.ops.";
  m.def("selective_scan_forward", &mmvssm::selective_scan_forward);
  m.def("selective_scan_backward", &mmvssm::selective_scan_backward);
  m.def("selective_scan_2d_forward", &mmvssm::selective_scan_2d_forward);
  m.def("selective_scan_2d_backward", &mmvssm::selective_scan_2d_backward);
  m.def("devices", &devices, "Devices that kernels were compiled for.");
  m.def("cpu_capability", &mmvssm::cpu_capability, "Instruction set in use.");
  m.def("cpu_variants", &mmvssm::cpu_variants,
        "Instruction sets this processor can run.");
  m.def("cuda_architectures", &cuda_architectures,
        "CUDA architectures compiled for.");
  m.def("build_note", &build_note, "Why no more was built.");
}
