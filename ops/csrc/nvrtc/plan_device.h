// A Device that only notes what it is asked for: a list that mmvssm/ops/nvrtc
// goes through whenever a call of the same sizes comes. Takes the place of the
// class in cuda/scan_cuda.h, which includes it, when MMVSSM_PLAN is defined.
//
// NVRTC compiles no host code. With every function taken for device code, the
// host functions run on one thread of the GPU (planner.h), hence no virtual
// functions and no recursion, whose depth of stack would not be known.
#pragma once

namespace mmvssm::cuda {

enum class Act : int32_t { kLaunch, kFill, kMultiply };

struct PlannedAct {
  Act act;
  int32_t threads, shared_bytes;
  int32_t value;  // of every byte, for kFill
  int64_t blocks;
  int64_t bytes;         // of params; for kFill, to fill
  char header[64];       // of a kernel
  char kernel[160];      // its name with the template arguments
  uint64_t params[128];  // of a kernel; a Product; or the address to fill
};

constexpr int kMaxActs = 40;

struct Plan {
  int32_t fits;   // false: a block of this device is too small
  int32_t count;  // above kMaxActs: there was no room for all
  int64_t workspace_bytes;
  PlannedAct acts[kMaxActs];
};

class Device {
 public:
  Device(int multiprocessors, int shared_limit, int64_t workspace, Plan& plan)
      : multiprocessors(multiprocessors),
        shared_limit(shared_limit),
        workspace_(workspace),
        plan_(plan) {
    plan.count = 0;
    plan.workspace_bytes = 0;
  }

  void* allocate(int64_t bytes) {
    const int64_t begin = plan_.workspace_bytes;
    plan_.workspace_bytes += (bytes + 255) / 256 * 256;
    return reinterpret_cast<void*>(workspace_ + begin);
  }

  void fill(void* begin, unsigned char value, int64_t bytes) {
    PlannedAct& act = add(Act::kFill);
    act.value = value;
    act.bytes = bytes;
    act.params[0] = reinterpret_cast<uint64_t>(begin);
  }

  void launch(const Launch& launch) {
    PlannedAct& act = add(Act::kLaunch);
    act.blocks = launch.blocks;
    act.threads = launch.threads;
    act.shared_bytes = launch.shared_bytes;
    copy_params(act, launch.params, launch.params_bytes);
    write(act.header, header_of(launch.kernel.function));
    char* to = write(act.kernel, name_of(launch.kernel.function));
    to = write(write(to, "<"), name_of(launch.kernel.type));
    to = write_number(write(to, ", "), launch.kernel.states);
    to = write_number(write(to, ", "), launch.kernel.lane_channels);
    write(to, ">");
  }

  void multiply(const Product& product) {
    copy_params(add(Act::kMultiply), &product, sizeof(product));
  }

  const int multiprocessors;
  const int shared_limit;

 private:
  PlannedAct& add(Act kind) {
    // The last one is written over where there is no room.
    const int at = plan_.count < kMaxActs ? plan_.count : kMaxActs - 1;
    ++plan_.count;
    plan_.acts[at].act = kind;
    return plan_.acts[at];
  }

  static void copy_params(PlannedAct& act, const void* params, int64_t bytes) {
    act.bytes = bytes;
    if (bytes > static_cast<int64_t>(sizeof(act.params))) return;
    const auto* from = static_cast<const unsigned char*>(params);
    auto* to = reinterpret_cast<unsigned char*>(act.params);
#pragma unroll 1
    for (int64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }

  // Both return where the text ends.
  static char* write(char* to, const char* text) {
    while (*text) *to++ = *text++;
    *to = 0;
    return to;
  }
  static char* write_number(char* to, int number) {
    int unit = 1;
    while (number / unit >= 10) unit *= 10;
    for (; unit > 0; unit /= 10) {
      *to++ = static_cast<char>('0' + number / unit % 10);
    }
    *to = 0;
    return to;
  }

  const int64_t workspace_;
  Plan& plan_;
};

}  // namespace mmvssm::cuda
