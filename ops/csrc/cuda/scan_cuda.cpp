// The CUDA implementations: describe the tensors to the host functions of the
// scans, and launch what they ask for on the current stream.
#include "cuda/scan_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>
#include <mutex>
#include <vector>

#include "common/scan_ops.h"
#include "cuda/kernel_table.h"
#include "cuda/scan_params.h"

namespace mmvssm {
namespace cuda {
namespace {

int attribute(cudaDeviceAttr what, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, device));
  return value;
}

// The current stream of a device, with kernels that nvcc has compiled. Memory
// comes from torch's allocator: what is freed here is not handed to anyone
// before the kernels already on this stream have run.
class StreamDevice : public Device {
 public:
  explicit StreamDevice(const Tensor& input)
      : Device(attribute(cudaDevAttrMultiProcessorCount, input.get_device()),
               attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         input.get_device())),
        options_(input.options()),
        stream_(c10::cuda::getCurrentCUDAStream(input.get_device())) {}

  void* allocate(int64_t bytes) override {
    tensors_.push_back(at::empty({bytes}, options_.dtype(at::kByte)));
    return tensors_.back().data_ptr();
  }

  void fill(void* begin, unsigned char value, int64_t bytes) override {
    C10_CUDA_CHECK(
        cudaMemsetAsync(begin, value, static_cast<size_t>(bytes), stream_));
  }

  void launch(const Launch& launch) override {
    const KernelHandle kernel = find_kernel(launch.kernel);
    TORCH_INTERNAL_ASSERT(kernel != nullptr, name_of(launch.kernel.function),
                          " was not compiled for ", launch.kernel.states,
                          " states");
    // Until the launch no other thread may lower what this one allows.
    static std::mutex mutex;
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (launch.shared_bytes > 48 * 1024) {
      lock.lock();
      C10_CUDA_CHECK(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
          launch.shared_bytes));
    }
    void* arguments[] = {const_cast<void*>(launch.params)};
    C10_CUDA_CHECK(
        cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(launch.blocks)),
                         dim3(static_cast<unsigned>(launch.threads)), arguments,
                         static_cast<size_t>(launch.shared_bytes), stream_));
  }

  // As precise as torch's setting for products of float32 matrices.
  void multiply(const Product& p) override {
    const auto matrices = [&](const float* data, int64_t rows,
                              int64_t columns) {
      return at::from_blob(const_cast<float*>(data), {p.batch, rows, columns},
                           options_.dtype(at::kFloat));
    };
    Tensor out = matrices(p.out, p.rows, p.columns);
    at::bmm_out(out, matrices(p.a, p.rows, p.inner),
                matrices(p.b, p.inner, p.columns));
  }

 private:
  at::TensorOptions options_;
  c10::cuda::CUDAStream stream_;
  std::vector<Tensor> tensors_;
};

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat;
    case at::kHalf:
      return DType::kHalf;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false,
                       "the CUDA scan takes float32, float16 or bfloat16, got ",
                       type, "; choose backend('torch') for it");
  }
}

float* floats(const Tensor& t) {
  return t.defined() && t.numel() > 0 ? t.data_ptr<float>() : nullptr;
}
const float* floats(const OptionalTensor& t) {
  return t.has_value() ? t->data_ptr<float>() : nullptr;
}

Tensor empty_like(const OptionalTensor& t, const Tensor& otherwise) {
  return t.has_value() ? at::empty_like(*t)
                       : at::empty({0}, otherwise.options());
}

// Kernels count inside one image, and blocks, in 32 bits, and may step past
// the end by a block of threads or a tile.
void check_counts(const char* what, int64_t count) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() - 1024;
  TORCH_CHECK_VALUE(count <= limit, "the CUDA scan takes at most ", limit, " ",
                    what, ", got ", count);
}

void set_sizes(ScanArgs& args, int64_t batch, int64_t num_routes,
               int64_t channels, int64_t d_state, int64_t length) {
  args.batch = batch;
  args.num_routes = num_routes;
  args.channels = channels;
  args.d_state = d_state;
  args.length = length;
  // A block takes at least one channel of a tile.
  check_counts("blocks",
               batch * num_routes * channels * ((length + kTile - 1) / kTile));
  check_counts("parameters in A", num_routes * channels * d_state);
}

Tensor empty_states(const ScanArgs& args, bool save, const Tensor& A) {
  const int64_t saved = save ? num_saved_states(args.length) : 0;
  return at::empty(
      {args.batch, args.num_routes, saved, args.d_state, args.channels},
      A.options());
}

template <typename Args>
void run(bool (*scan)(const Args&, Device&), const Args& args,
         const Tensor& input) {
  StreamDevice device(input);
  TORCH_CHECK_VALUE(scan(args, device),
                    "the CUDA scan needs more than a block of this device has "
                    "for N = ",
                    args.d_state,
                    " and this step rank R; choose backend('torch')");
}

Scan1dArgs describe_1d(const Tensor& u, const Scan1dInputs& in) {
  Scan1dArgs args{};
  set_sizes(args, u.size(0), in.B.size(1), u.size(1) / in.B.size(1),
            in.A.size(1), u.size(2));
  check_counts("elements of u in an image", u.size(1) * u.size(2));
  check_counts("elements of B in an image",
               in.B.size(1) * in.B.size(2) * in.B.size(3));
  args.in_type = dtype_of(u.scalar_type());
  args.A = floats(in.A);
  args.D = floats(in.D);
  args.bias = floats(in.delta_bias);
  args.softplus = in.delta_softplus;
  args.u = u.data_ptr();
  args.delta = in.delta.data_ptr();
  args.B = in.B.data_ptr();
  args.C = in.C.data_ptr();
  return args;
}

ScanForward forward_1d(const Tensor& u, const Scan1dInputs& in,
                       at::ScalarType out_dtype, bool save_states) {
  const c10::cuda::CUDAGuard guard(u.device());
  Scan1dArgs args = describe_1d(u, in);
  Tensor y = at::empty_like(u, u.options().dtype(out_dtype));
  Tensor last_state =
      at::empty({u.size(0), in.A.size(0), in.A.size(1)}, in.A.options());
  Tensor states = empty_states(args, save_states, in.A);
  if (args.batch == 0) return {y, last_state, states};
  args.y_type = dtype_of(out_dtype);
  args.y = y.data_ptr();
  args.last_state = floats(last_state);
  args.states = floats(states);
  run(scan_1d_forward, args, u);
  return {y, last_state, states};
}

ScanBackward backward_1d(const Tensor& dy, const Tensor& u,
                         const Scan1dInputs& in, const Tensor& states) {
  const c10::cuda::CUDAGuard guard(u.device());
  Scan1dArgs args = describe_1d(u, in);
  Tensor du = at::empty_like(u);
  Tensor ddelta = at::empty_like(in.delta);
  Tensor dA = at::empty_like(in.A);
  Tensor dB = at::empty_like(in.B);
  Tensor dC = at::empty_like(in.C);
  Tensor dD = empty_like(in.D, in.A);
  Tensor dbias = empty_like(in.delta_bias, in.A);
  if (args.batch == 0) {
    return {du, ddelta, dA.zero_(), dB, dC, dD.zero_(), dbias.zero_()};
  }
  args.y_type = dtype_of(dy.scalar_type());
  args.dy = dy.data_ptr();
  args.states = floats(states);
  args.du = du.data_ptr();
  args.ddelta = ddelta.data_ptr();
  args.dA = floats(dA);
  args.dB = dB.data_ptr();
  args.dC = dC.data_ptr();
  args.dD = floats(dD);
  args.dbias = floats(dbias);
  run(scan_1d_backward, args, u);
  return {du, ddelta, dA, dB, dC, dD, dbias};
}

Scan2dArgs describe_2d(const Tensor& x, const Scan2dInputs& in) {
  Scan2dArgs args{};
  set_sizes(args, x.size(0), in.routes.size(0), x.size(-1), in.A.size(1),
            in.routes.size(1));
  args.pixels = x.size(1);
  args.out_rows = in.out_rows;
  args.dt_rank = in.dt_weight.size(2);
  args.x_per_route = x.dim() == 4;
  args.shared_projection = in.x_dbl.size(2) == 1;
  args.merge = in.merge;
  args.facts = in.facts;
  const int64_t width = args.dt_rank + 2 * args.d_state;
  check_counts("elements of x in an image for all routes",
               args.pixels * args.num_routes * args.channels);
  check_counts("elements of the output in an image for all routes",
               args.out_rows * args.num_routes * args.channels);
  check_counts("elements of x_dbl in an image",
               args.pixels * args.num_routes * width);
  check_counts("route entries", args.num_routes * args.length);
  check_counts("steps of a route times channels", args.length * args.channels);
  args.in_type = dtype_of(x.scalar_type());
  args.x = x.data_ptr();
  args.x_dbl = in.x_dbl.data_ptr();
  args.routes = in.routes.data_ptr<int32_t>();
  args.out_routes = in.out_routes.data_ptr<int32_t>();
  args.A = floats(in.A);
  args.D = floats(in.D);
  args.dt_weight = floats(in.dt_weight);
  args.bias = floats(in.dt_bias);
  return args;
}

Scan2dForward forward_2d(const Tensor& x, const Scan2dInputs& in,
                         at::ScalarType out_dtype, bool save_states) {
  const c10::cuda::CUDAGuard guard(x.device());
  Scan2dArgs args = describe_2d(x, in);
  std::vector<int64_t> shape{args.batch, args.out_rows, args.channels};
  if (!in.merge) shape.insert(shape.begin() + 2, args.num_routes);
  Tensor y = at::empty(shape, x.options().dtype(out_dtype));
  Tensor states = empty_states(args, save_states, in.A);
  if (args.batch == 0) return {y, states};
  args.y_type = dtype_of(out_dtype);
  args.y = y.data_ptr();
  args.states = floats(states);
  run(scan_2d_forward, args, x);
  return {y, states};
}

Scan2dBackward backward_2d(const Tensor& dy, const Tensor& x,
                           const Scan2dInputs& in, const Tensor& states) {
  const c10::cuda::CUDAGuard guard(x.device());
  Scan2dArgs args = describe_2d(x, in);
  Tensor dx = at::empty_like(x);
  Tensor dx_dbl = at::empty_like(in.x_dbl);
  Tensor dA = at::empty_like(in.A);
  Tensor ddt_weight = at::empty_like(in.dt_weight);
  Tensor ddt_bias = at::empty_like(in.dt_bias);
  Tensor dD = empty_like(in.D, in.A);
  if (args.batch == 0) {
    return {dx,        dx_dbl, dA.zero_(), ddt_weight.zero_(), ddt_bias.zero_(),
            dD.zero_()};
  }
  args.y_type = dtype_of(dy.scalar_type());
  args.dy = dy.data_ptr();
  args.states = floats(states);
  args.dx = dx.data_ptr();
  args.dx_dbl = dx_dbl.data_ptr();
  args.dA = floats(dA);
  args.ddt_weight = floats(ddt_weight);
  args.dbias = floats(ddt_bias);
  args.dD = floats(dD);
  run(scan_2d_backward, args, x);
  return {dx, dx_dbl, dA, ddt_weight, ddt_bias, dD};
}

}  // namespace
}  // namespace cuda

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CUDA, cuda::forward_1d);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CUDA, cuda::backward_1d);
REGISTER_DEVICE_IMPL(selective_scan_2d_forward_impl, CUDA, cuda::forward_2d);
REGISTER_DEVICE_IMPL(selective_scan_2d_backward_impl, CUDA, cuda::backward_2d);

}  // namespace mmvssm
