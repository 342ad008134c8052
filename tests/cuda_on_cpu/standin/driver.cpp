// Stands in for CUDA's driver library (libcuda.so.1): "loads" machine code that
// NVRTC made, and runs the kernel of that name as it is compiled for the CPU,
// on the host's memory. What it was asked for is kept, for the tests to see.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/kernel_table.h"
#include "shim/block.h"

namespace {

using mmvssm::cuda::KernelHandle;

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200,
              kNotFound = 500;
constexpr int kMaxShared = 97, kMajor = 75, kMinor = 76, kProcessors = 16;

struct Function {
  std::string name;
  KernelHandle run;
  int shared_bytes = 48 * 1024;
};

std::string log_text;

void log(const std::string& line) { log_text += line + "\n"; }

// "route_forward_kernel<float, 1, 2>", the kernel's name mangled or not.
std::string kernel_name(const std::string& entry) {
  int status = 0;
  char* text = abi::__cxa_demangle(entry.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : entry;
  std::free(text);
  const size_t begin = name.find("cuda::");
  const size_t end = name.find('>');
  if (begin == std::string::npos || end == std::string::npos) return entry;
  return name.substr(begin + 6, end - begin - 5);
}

// Empty if the emulation has no such kernel.
KernelHandle find_by_name(const std::string& name) {
  char function[64], type[32];
  int states, lane_channels;
  if (std::sscanf(name.c_str(), "%63[^<]<%31[^,], %d, %d>", function, type,
                  &states, &lane_channels) != 4) {
    return KernelHandle();
  }
  using mmvssm::DType;
  using mmvssm::cuda::Function;
  using mmvssm::cuda::name_of;
  for (int f = 0; f <= static_cast<int>(Function::kGatherProjections); ++f) {
    for (const DType t : {DType::kFloat, DType::kHalf, DType::kBFloat16}) {
      const auto id = static_cast<Function>(f);
      if (name_of(id) == std::string(function) &&
          name_of(t) == std::string(type)) {
        return mmvssm::cuda::find_kernel({id, t, states, lane_channels});
      }
    }
  }
  return KernelHandle();
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorString(int error, const char** words) {
  *words = error == kNotFound ? "named symbol not found" : "invalid";
  return kSuccess;
}

// A handle that is not the index.
int cuDeviceGet(int* device, int index) {
  *device = index + 40;
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 40) return kInvalidValue;
  switch (attribute) {
    case kMaxShared:
      *value = shim::options().shared_limit;
      return kSuccess;
    case kMajor:
      *value = 9;
      return kSuccess;
    case kMinor:
      *value = 0;
      return kSuccess;
    case kProcessors:
      *value = 132;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

int cuCtxGetCurrent(void** context) {
  *context = nullptr;
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  log("context " + std::to_string(device));
  *context = &log_text;
  return kSuccess;
}
int cuCtxSetCurrent(void*) { return kSuccess; }

int cuModuleLoadData(void** module, const void* image) {
  if (std::memcmp(image,
                  "\x7f"
                  "ELF",
                  4) != 0) {
    return kInvalidImage;
  }
  *module = const_cast<void*>(image);
  return kSuccess;
}

// Planners are in libraries of their own, plan_*.so beside this one.
int cuModuleGetFunction(void** function, void*, const char* name) {
  const std::string readable = kernel_name(name);
  if (const KernelHandle kernel = find_by_name(readable)) {
    *function = new Function{readable, kernel};
    return kSuccess;
  }
  Dl_info here;
  dladdr(reinterpret_cast<void*>(&kernel_name), &here);
  std::string path = here.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + name + ".so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* entry = library == nullptr ? nullptr : dlsym(library, "run_planner");
  if (entry == nullptr) return kNotFound;
  *function =
      new Function{name, reinterpret_cast<void (*)(const void*)>(entry)};
  return kSuccess;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8) return kInvalidValue;
  if (value > shim::options().shared_limit) return kInvalidValue;
  static_cast<Function*>(function)->shared_bytes = value;
  return kSuccess;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y,
                   unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream,
                   void** params, void** extra) {
  const Function& f = *static_cast<Function*>(function);
  if (grid_y * grid_z * block_y * block_z != 1 || extra != nullptr ||
      static_cast<int>(shared_bytes) > f.shared_bytes) {
    return kInvalidValue;
  }
  char line[64];
  std::snprintf(line, sizeof(line), " %u %u %u %zu ", grid_x, block_x,
                shared_bytes, reinterpret_cast<size_t>(stream));
  log("launch" + std::string(line) + f.name);
  if (block_x == 1) {
    f.run(params[0]);
  } else {
    shim::run_grid(grid_x, static_cast<int>(block_x),
                   static_cast<int>(shared_bytes), [&] { f.run(params[0]); });
  }
  return kSuccess;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes,
                    void* stream) {
  log("fill " + std::to_string(value) + " " + std::to_string(bytes) + " " +
      std::to_string(reinterpret_cast<size_t>(stream)));
  std::memset(reinterpret_cast<void*>(address), value, bytes);
  return kSuccess;
}

// For the tests: what happened since the last call.
const char* standin_log() {
  static std::string taken;
  taken.swap(log_text);
  log_text.clear();
  return taken.c_str();
}
void standin_limit_shared(int bytes) { shim::options().shared_limit = bytes; }
}
