// Makes the plan of one call; mmvssm/ops/nvrtc/plans.py writes the kernel
// around it.
#pragma once

#include "cuda/scan_cuda.h"

namespace mmvssm::cuda {

struct PlannerParams {
  const int64_t* values;      // fields of the scan's arguments, workspace
  const int32_t* attributes;  // of the device
  LaunchPlan* plans;
};

template <typename T>
__device__ void set_field(T*& field, int64_t value) {
  field = reinterpret_cast<T*>(value);
}
template <typename T>
__device__ void set_field(T& field, int64_t value) {
  field = static_cast<T>(value);
}

template <typename Args>
__device__ void make_plan(cudaError_t (*scan)(const Args&, Workspace&,
                                              cudaStream_t),
                          const Args& args, int64_t workspace,
                          LaunchPlan& plan) {
  plan.count = 0;
  plan.workspace_bytes = 0;
  Workspace memory(plan, workspace);
  plan.status = scan(args, memory, reinterpret_cast<cudaStream_t>(&plan));
}

}  // namespace mmvssm::cuda
