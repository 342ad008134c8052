// Makes the plan of one call; mmvssm/ops/nvrtc/plans.py writes the kernel
// around it.
#pragma once

#include "cuda/scan_cuda.h"

namespace mmvssm::cuda {

struct PlannerParams {
  const int64_t* values;
  Plan* plans;
};

template <typename T>
void set_field(T*& field, int64_t value) {
  field = reinterpret_cast<T*>(value);
}
template <typename T>
void set_field(T& field, int64_t value) {
  field = static_cast<T>(value);
}

// `rest`: multiprocessors, shared memory of a block, address of the workspace.
template <typename Args>
void make_plan(bool (*scan)(const Args&, Device&), const Args& args,
               const int64_t* rest, Plan& plan) {
  Device device(static_cast<int>(rest[0]), static_cast<int>(rest[1]), rest[2],
                plan);
  plan.fits = scan(args, device);
}

}  // namespace mmvssm::cuda
