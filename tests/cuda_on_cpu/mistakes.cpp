// Small kernels with one mistake each, to show that the shim notices it.
//
//   mistakes NAME      ends with status 0 only if nothing was noticed
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace {

using namespace mmvssm::cuda;

constexpr int kThreads = 64;

struct Params {
  std::string mistake;
  const float* in;    // (kThreads)
  float* out;         // (kThreads)
  int values, other;  // arrays in shared memory
};

// out[i] = in[i] + in[last - i], by way of shared memory, plus 0 times the sum
// of each warp.
void kernel(Params p) {
  float* values = shared_array<float>(p.values);
  float* other = shared_array<float>(p.other);
  const int thread = static_cast<int>(threadIdx.x);
  const auto is = [&](const char* name) { return p.mistake == name; };

  if (is("misaligned_copy")) {
    copy_async<8>(&values[2 * (thread / 2) + 1], p.in + 2 * (thread / 2));
  }
  if (!is("uninitialised_shared")) {
    copy_async<4>(&values[thread], &p.in[thread]);
  }
  if (!is("copy_not_awaited")) copy_async_wait();
  if (is("overrun_between_arrays")) values[thread + 1] += 0.0f;
  if (is("overrun_of_shared")) other[thread] = 0.0f;
  if (is("return_before_barrier") && thread == 5) return;
  if (is("barrier_in_branch")) {
    if (thread < 32) __syncthreads();
  } else if (!is("missing_barrier")) {
    __syncthreads();
  }

  float sum = values[kThreads - 1 - thread];
  if (is("shuffle_in_branch")) {
    if (thread % 2 == 0) sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  } else if (is("shuffle_outside_mask")) {
    const unsigned mask = thread % 32 < 16 ? 0xffffu : 0xffff0000u;
    sum += __shfl_xor_sync(mask, sum, 16);
  } else {
    sum += 0.0f * __shfl_xor_sync(0xffffffffu, sum, 1);
  }
  if (is("copy_not_awaited")) copy_async_wait();
  const int at = is("overrun_of_global") ? thread + 1 : thread;
  p.out[at] = p.in[thread] + sum;
  if (is("copy_never_awaited")) copy_async<4>(other, p.in);
}

}  // namespace

int main(int, char** words) {
  SharedArena arena;
  const int values = arena.floats(kThreads);
  const int other = arena.floats(4);
  std::vector<float> in(kThreads);
  for (int i = 0; i < kThreads; ++i) in[i] = static_cast<float>(i * i);

  for (const shim::Order order :
       {shim::Order::kAscending, shim::Order::kDescending}) {
    shim::options().order = order;
    std::vector<float> out(kThreads);
    const Params params{words[1], in.data(), out.data(), values, other};
    shim::run_grid(2, kThreads, arena.bytes(), [&] { kernel(params); });
    for (int i = 0; i < kThreads; ++i) {
      if (out[i] != in[i] + in[kThreads - 1 - i]) {
        std::printf("wrong result\n");
        return 1;
      }
    }
  }
  return 0;
}
