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
#include <vector>

#include "shim/block.h"

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200,
              kNotFound = 500;
constexpr int kMaxShared = 97, kMajor = 75, kMinor = 76, kProcessors = 16;

struct Function {
  std::string name;
  void (*run)(const void*);
  int threads;
  size_t param_bytes;
  int shared_bytes = 48 * 1024;
};

std::string log_text;

void log(const std::string& line) { log_text += line + "\n"; }

// TYPE of "... run_kernel<TYPE>(...)", the kernel's name mangled or not.
std::string kernel_type(const std::string& name) {
  int status = 0;
  char* readable = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string text = status == 0 ? readable : name;
  std::free(readable);
  const std::string prefix = "run_kernel<";
  const size_t begin = text.find(prefix);
  if (begin == std::string::npos) return "";
  const size_t end =
      text.find(">(") == std::string::npos ? text.rfind('>') : text.find(">(");
  return text.substr(begin + prefix.size(), end - begin - prefix.size());
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorString(int error, const char** words) {
  *words = error == kNotFound ? "named symbol not found" : "invalid";
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
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
  if (const shim::RegisteredKernel* kernel =
          shim::find_kernel(kernel_type(name))) {
    *function = new Function{kernel_type(name), kernel->run, kernel->threads,
                             kernel->param_bytes};
    return kSuccess;
  }
  Dl_info here;
  dladdr(reinterpret_cast<void*>(&kernel_type), &here);
  std::string path = here.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + name + ".so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* entry = library == nullptr ? nullptr : dlsym(library, "run_planner");
  if (entry == nullptr) return kNotFound;
  *function = new Function{name, reinterpret_cast<void (*)(const void*)>(entry),
                           1, 3 * sizeof(void*)};
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
      static_cast<int>(block_x) > f.threads ||
      static_cast<int>(shared_bytes) > f.shared_bytes) {
    return kInvalidValue;
  }
  char line[64];
  std::snprintf(line, sizeof(line), " %u %u %u %zu ", grid_x, block_x,
                shared_bytes, reinterpret_cast<size_t>(stream));
  log("launch" + std::string(line) + f.name);
  // Nothing may look at the caller's memory behind the parameters.
  std::vector<uint64_t> copy((f.param_bytes + 7) / 8);
  std::memcpy(copy.data(), params[0], f.param_bytes);
  if (block_x == 1) {
    f.run(copy.data());
  } else {
    shim::run_grid(grid_x, static_cast<int>(block_x),
                   static_cast<int>(shared_bytes), [&] { f.run(copy.data()); });
  }
  return kSuccess;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes,
                    void* stream) {
  log("clear " + std::to_string(bytes) + " " +
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
