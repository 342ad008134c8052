// Runs the CUDA kernels, compiled as C++ over the shim, on small awkward shapes
// and compares every output with the double reference.
//
//   driver 2d NAME=VALUE...      one case of the scan along routes
//   driver 1d NAME=VALUE...      one case of the scan of sequences
//
// Prints the relative error of each output; ends with status 1 if one is above
// its bound or if results depend on the order in which threads run. With
// dump=PATH it also writes inputs and outputs: per array a line "NAME COUNT",
// then COUNT doubles.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "cuda/scan_cuda.h"
#include "reference.h"
#include "shim/block.h"

namespace {

using mmvssm::DType;
using mmvssm::kChunk;
using reference::Array;

size_t size_of(DType type) { return type == DType::kFloat ? 4 : 2; }

// An array on the "device": exactly as long as it should be, so that
// AddressSanitizer sees any access outside, and poisoned.
class DeviceArray {
 public:
  DeviceArray(size_t count, DType type)
      : count_(count), type_(type), bytes_(new unsigned char[bytes()]) {
    shim::poison(bytes_.get(), static_cast<int64_t>(bytes()));
  }

  // Stores values rounded to the type, and rounds the caller's likewise.
  DeviceArray(Array& values, DType type) : DeviceArray(values.size(), type) {
    for (size_t i = 0; i < count_; ++i) {
      const auto value = static_cast<float>(values[i]);
      if (type == DType::kFloat) {
        std::memcpy(at(i), &value, 4);
      } else if (type == DType::kHalf) {
        const __half half = __float2half_rn(value);
        std::memcpy(at(i), &half, 2);
      } else {
        const __nv_bfloat16 half = __float2bfloat16_rn(value);
        std::memcpy(at(i), &half, 2);
      }
      values[i] = read(i);
    }
  }

  double read(size_t i) const {
    if (type_ == DType::kFloat) {
      float value;
      std::memcpy(&value, at(i), 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, at(i), 2);
    return type_ == DType::kHalf ? __half2float(__half{bits})
                                 : __bfloat162float(__nv_bfloat16{bits});
  }

  size_t count() const { return count_; }
  size_t bytes() const { return count_ * size_of(type_); }
  DType type() const { return type_; }
  const unsigned char* data() const { return bytes_.get(); }
  operator float*() { return reinterpret_cast<float*>(bytes_.get()); }
  void* raw() { return bytes_.get(); }

 private:
  unsigned char* at(size_t i) const {
    return bytes_.get() + i * size_of(type_);
  }
  size_t count_;
  DType type_;
  std::unique_ptr<unsigned char[]> bytes_;
};

class HeapWorkspace : public mmvssm::cuda::Workspace {
 public:
  void* allocate(int64_t bytes) override {
    blocks_.emplace_back(new unsigned char[static_cast<size_t>(bytes)]);
    shim::poison(blocks_.back().get(), bytes);
    return blocks_.back().get();
  }

 private:
  std::vector<std::unique_ptr<unsigned char[]>> blocks_;
};

class Options {
 public:
  Options(int count, char** words) {
    for (int i = 0; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        shim::fail("want NAME=VALUE: %s", words[i]);
      }
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  size_t number(const std::string& name, size_t otherwise) {
    const auto found = values_.find(name);
    if (found == values_.end()) return otherwise;
    const size_t value = std::stoul(found->second);
    values_.erase(found);
    return value;
  }
  DType type(const std::string& name) {
    const std::string value = text(name);
    if (value.empty() || value == "float") return DType::kFloat;
    if (value == "half") return DType::kHalf;
    if (value != "bfloat16") shim::fail("unknown type %s", value.c_str());
    return DType::kBFloat16;
  }
  std::string text(const std::string& name) {
    const auto found = values_.find(name);
    if (found == values_.end()) return "";
    const std::string value = found->second;
    values_.erase(found);
    return value;
  }
  void finish() const {
    for (const auto& item : values_) {
      shim::fail("unknown option %s", item.first.c_str());
    }
  }

 private:
  std::map<std::string, std::string> values_;
};

std::mt19937 generator(20);

Array normal(size_t count, double scale = 1.0) {
  std::normal_distribution<double> draw(0.0, scale);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
Array uniform(size_t count, double low, double high) {
  std::uniform_real_distribution<double> draw(low, high);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
Array decay_rates(size_t rows, size_t d_state) {
  Array A = uniform(rows * d_state, -1.5, -0.5);
  for (size_t i = 0; i < A.size(); ++i) {
    A[i] *= 1.0 + static_cast<double>(i % d_state);
  }
  return A;
}
// Most step sizes lie between 1e-3 and 0.1, some above 1.
Array step_biases(size_t rows) { return uniform(rows, -7.0, 1.0); }

class Report {
 public:
  // Relative error over the whole array, in the 2-norm.
  void compare(const char* name, const DeviceArray& got, const Array& want) {
    if (got.count() != want.size()) shim::fail("%s: size", name);
    if (want.empty()) return;
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = got.read(i) - want[i];
      error += difference * difference;
      norm += want[i] * want[i];
    }
    error = std::sqrt(error / (norm > 0.0 ? norm : 1.0));
    // For narrow types, what rounding once makes and no more.
    const double bound = got.type() == DType::kFloat  ? 3e-6
                         : got.type() == DType::kHalf ? 2.8e-4
                                                      : 2.1e-3;
    std::printf(" %s %.1e", name, error);
    if (!(error <= bound)) {
      std::printf("(!)");
      good_ = false;
    }
  }
  // Whether two runs gave the same bits.
  void same(const char* name, const DeviceArray& one, const DeviceArray& two) {
    if (one.bytes() > 0 && std::memcmp(one.data(), two.data(), one.bytes())) {
      std::printf(" %s depends on the order of threads(!)", name);
      good_ = false;
    }
  }
  int status() const {
    std::printf("\n");
    return good_ ? 0 : 1;
  }

 private:
  bool good_ = true;
};

using Outputs =
    std::vector<std::pair<const char*, std::unique_ptr<DeviceArray>>>;

DeviceArray& add(Outputs& outputs, const char* name, size_t count, DType type) {
  outputs.emplace_back(name, std::make_unique<DeviceArray>(count, type));
  return *outputs.back().second;
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) shim::fail("%s: error %d", what, status);
}

using Arrays = std::map<std::string, const Array*>;

void dump(const std::string& path, const Arrays& inputs,
          const Outputs& outputs) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) shim::fail("cannot write %s", path.c_str());
  const auto put = [&](const char* name, const Array& values) {
    std::fprintf(file, "%s %zu\n", name, values.size());
    std::fwrite(values.data(), sizeof(double), values.size(), file);
  };
  for (const auto& input : inputs) put(input.first.c_str(), *input.second);
  for (const auto& output : outputs) {
    Array values;
    for (size_t i = 0; i < output.second->count(); ++i) {
      values.push_back(output.second->read(i));
    }
    put(output.first, values);
  }
  std::fclose(file);
}

// `run` gives the outputs; every order of threads must give the same.
template <typename Run>
int judge(const Run& run, const Arrays& wanted, const std::string& dump_path,
          const Arrays& inputs) {
  Report report;
  const Outputs first = run();
  if (!dump_path.empty()) dump(dump_path, inputs, first);
  for (const auto& output : first) {
    report.compare(output.first, *output.second, *wanted.at(output.first));
  }
  for (const shim::Order order :
       {shim::Order::kDescending, shim::Order::kShuffled}) {
    shim::options().order = order;
    const Outputs again = run();
    for (size_t i = 0; i < first.size(); ++i) {
      report.same(first[i].first, *first[i].second, *again[i].second);
    }
  }
  return report.status();
}

// Routes with `holes` percent of -1; else permutations (of a part) of the
// pixels, or any pixels when they may repeat. Disjoint ones share the pixels
// out; what the division leaves over belongs to none.
std::vector<int32_t> make_routes(size_t num_routes, size_t length,
                                 size_t pixels, bool repeats, size_t holes,
                                 bool disjoint) {
  std::vector<int32_t> order(pixels);
  for (size_t p = 0; p < pixels; ++p) order[p] = static_cast<int32_t>(p);
  const size_t share = disjoint ? pixels / num_routes : pixels;
  std::vector<int32_t> table;
  for (size_t k = 0; k < num_routes; ++k) {
    if (k == 0 || !disjoint) {
      std::shuffle(order.begin(), order.end(), generator);
    }
    const size_t first = disjoint ? k * share : 0;
    for (size_t l = 0; l < length; ++l) {
      const bool hole = generator() % 100 < holes;
      const size_t at = repeats ? generator() % share : l;
      table.push_back(hole || at >= share ? -1 : order[first + at]);
    }
  }
  return table;
}

// What is true of the tables, as a set of routes would find it.
int64_t facts_of(const reference::Scan2d& scan) {
  int64_t facts = mmvssm::kChecked;
  const auto look = [&](const std::vector<int32_t>& table, size_t size,
                        int64_t repeats, int64_t gaps) {
    std::vector<int> owners(size, 0);
    for (size_t k = 0; k < scan.num_routes; ++k) {
      std::vector<int> visits(size, 0);
      for (size_t l = 0; l < scan.length; ++l) {
        const int32_t entry = table[k * scan.length + l];
        if (entry >= 0) ++visits[static_cast<size_t>(entry)];
      }
      for (size_t i = 0; i < size; ++i) {
        if (visits[i] > 1) facts |= repeats;
        if (visits[i] == 0) facts |= gaps;
        if (visits[i] > 0) ++owners[i];
      }
    }
    return owners;
  };
  look(scan.routes, scan.pixels, mmvssm::kReadRepeats, mmvssm::kReadGaps);
  bool disjoint = scan.routes == scan.out_routes;
  for (const int count : look(scan.out_routes, scan.out_rows,
                              mmvssm::kOutRepeats, mmvssm::kOutGaps)) {
    if (count == 0) facts |= mmvssm::kUnionGaps;
    disjoint = disjoint && count <= 1;
  }
  return disjoint ? facts | mmvssm::kDisjoint : facts;
}

// What both forms ask for; blocks stay at `threads` channels, however few there
// are.
template <class Scan>
void set_sizes(mmvssm::cuda::ScanArgs& args, const Scan& scan, int threads,
               DType type, DType y_type) {
  args.max_threads = threads;
  args.min_blocks = 0;
  args.batch = static_cast<int64_t>(scan.batch);
  args.num_routes = static_cast<int64_t>(scan.num_routes);
  args.channels = static_cast<int64_t>(scan.channels);
  args.d_state = static_cast<int64_t>(scan.d_state);
  args.length = static_cast<int64_t>(scan.length);
  args.in_type = type;
  args.y_type = y_type;
}

int run_2d(Options& options) {
  reference::Scan2d want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.dt_rank = options.number("R", 1);
  want.length = options.number("L", 17);
  want.pixels = options.number("P", want.length);
  const bool apart = options.number("out", 0) != 0;
  const size_t holes = options.number("holes", 0);
  const bool repeats = options.number("repeats", 0) != 0;
  const bool disjoint = options.number("disjoint", 0) != 0;
  const bool with_facts = options.number("facts", 1) != 0;
  want.out_rows = apart ? options.number("Q", want.length) : want.pixels;
  want.x_per_route = options.number("x_per_route", 0) != 0;
  want.shared_projection = options.number("shared", 0) != 0;
  want.merge = options.number("merge", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const int threads = static_cast<int>(options.number("threads", 128));
  const DType type = options.type("type");
  const DType y_type = options.type("y");
  const std::string dump_path = options.text("dump");
  options.finish();

  const size_t rows = want.num_routes * want.channels;
  const size_t width = want.dt_rank + 2 * want.d_state;
  want.routes = make_routes(want.num_routes, want.length, want.pixels, repeats,
                            holes, disjoint);
  want.out_routes = apart ? make_routes(want.num_routes, want.length,
                                        want.out_rows, repeats, holes, disjoint)
                          : want.routes;
  want.x = normal(want.batch * want.pixels *
                  (want.x_per_route ? rows : want.channels));
  want.x_dbl = normal(want.batch * want.pixels *
                      (want.shared_projection ? 1 : want.num_routes) * width);
  want.A = decay_rates(rows, want.d_state);
  want.dt_weight = normal(rows * want.dt_rank,
                          1.0 / std::sqrt(static_cast<double>(want.dt_rank)));
  want.bias = step_biases(rows);
  if (with_D) want.D = normal(rows);
  want.dy =
      normal(want.batch * want.out_rows * (want.merge ? want.channels : rows));

  DeviceArray x(want.x, type), x_dbl(want.x_dbl, type),
      A(want.A, DType::kFloat), weight(want.dt_weight, DType::kFloat),
      bias(want.bias, DType::kFloat), D(want.D, DType::kFloat),
      dy(want.dy, y_type);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapWorkspace workspace;
    mmvssm::cuda::Scan2dArgs args{};
    set_sizes(args, want, threads, type, y_type);
    args.pixels = static_cast<int64_t>(want.pixels);
    args.out_rows = static_cast<int64_t>(want.out_rows);
    args.dt_rank = static_cast<int64_t>(want.dt_rank);
    args.x_per_route = want.x_per_route;
    args.shared_projection = want.shared_projection;
    args.merge = want.merge;
    args.facts = mmvssm::reliable_facts(with_facts ? facts_of(want) : 0);
    args.x = x.raw();
    args.x_dbl = x_dbl.raw();
    args.routes = want.routes.data();
    args.out_routes = want.out_routes.data();
    args.A = A;
    args.dt_weight = weight;
    args.bias = bias;
    args.D = with_D ? static_cast<float*>(D) : nullptr;
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.states = add(out, "states", want.states.size(), DType::kFloat);
    check(mmvssm::cuda::scan_2d_forward(args, workspace, nullptr), "forward");
    args.dx = add(out, "dx", want.dx.size(), type).raw();
    args.dx_dbl = add(out, "dx_dbl", want.dx_dbl.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat);
    args.ddt_weight =
        add(out, "ddt_weight", want.ddt_weight.size(), DType::kFloat);
    args.dbias = add(out, "dbias", want.dbias.size(), DType::kFloat);
    if (with_D) args.dD = add(out, "dD", want.dD.size(), DType::kFloat);
    check(mmvssm::cuda::scan_2d_backward(args, workspace, nullptr), "backward");
    return out;
  };
  const Array routes(want.routes.begin(), want.routes.end());
  const Array out_routes(want.out_routes.begin(), want.out_routes.end());
  return judge(run,
               {{"y", &want.y},
                {"states", &want.states},
                {"dx", &want.dx},
                {"dx_dbl", &want.dx_dbl},
                {"dA", &want.dA},
                {"ddt_weight", &want.ddt_weight},
                {"dbias", &want.dbias},
                {"dD", &want.dD}},
               dump_path,
               {{"x", &want.x},
                {"x_dbl", &want.x_dbl},
                {"routes", &routes},
                {"out_routes", &out_routes},
                {"A", &want.A},
                {"dt_weight", &want.dt_weight},
                {"dt_bias", &want.bias},
                {"D", &want.D},
                {"dy", &want.dy}});
}

int run_1d(Options& options) {
  reference::Scan1d want;
  want.batch = options.number("batch", 1);
  want.num_routes = options.number("K", 1);
  want.channels = options.number("D", 3);
  want.d_state = options.number("N", 1);
  want.length = options.number("L", 17);
  want.softplus = options.number("softplus", 1) != 0;
  const bool with_D = options.number("skip", 1) != 0;
  const bool with_bias = options.number("bias", 1) != 0;
  const int threads = static_cast<int>(options.number("threads", 128));
  const DType type = options.type("type");
  const DType y_type = options.type("y");
  const std::string dump_path = options.text("dump");
  options.finish();

  const size_t rows = want.num_routes * want.channels;
  const size_t maps = want.batch * want.num_routes * want.d_state * want.length;
  want.u = normal(want.batch * rows * want.length);
  want.delta =
      want.softplus ? normal(want.u.size()) : uniform(want.u.size(), 1e-3, 0.5);
  want.A = decay_rates(rows, want.d_state);
  want.B = normal(maps);
  want.C = normal(maps);
  if (with_D) want.D = normal(rows);
  if (with_bias) {
    want.bias = want.softplus ? step_biases(rows) : uniform(rows, 0.0, 0.1);
  }
  want.dy = normal(want.u.size());

  DeviceArray u(want.u, type), delta(want.delta, type),
      A(want.A, DType::kFloat), B(want.B, type), C(want.C, type),
      D(want.D, DType::kFloat), bias(want.bias, DType::kFloat),
      dy(want.dy, y_type);
  want.run(static_cast<size_t>(kChunk));

  const auto run = [&] {
    Outputs out;
    HeapWorkspace workspace;
    mmvssm::cuda::Scan1dArgs args{};
    set_sizes(args, want, threads, type, y_type);
    args.softplus = want.softplus;
    args.u = u.raw();
    args.delta = delta.raw();
    args.A = A;
    args.B = B.raw();
    args.C = C.raw();
    args.bias = with_bias ? static_cast<float*>(bias) : nullptr;
    args.D = with_D ? static_cast<float*>(D) : nullptr;
    args.dy = dy.raw();
    args.y = add(out, "y", want.y.size(), y_type).raw();
    args.last_state =
        add(out, "last_state", want.last_state.size(), DType::kFloat);
    args.states = add(out, "states", want.states.size(), DType::kFloat);
    check(mmvssm::cuda::scan_1d_forward(args, workspace, nullptr), "forward");
    args.du = add(out, "du", want.du.size(), type).raw();
    args.ddelta = add(out, "ddelta", want.ddelta.size(), type).raw();
    args.dA = add(out, "dA", want.dA.size(), DType::kFloat);
    args.dB = add(out, "dB", want.dB.size(), type).raw();
    args.dC = add(out, "dC", want.dC.size(), type).raw();
    if (with_bias) {
      args.dbias = add(out, "dbias", want.dbias.size(), DType::kFloat);
    }
    if (with_D) args.dD = add(out, "dD", want.dD.size(), DType::kFloat);
    check(mmvssm::cuda::scan_1d_backward(args, workspace, nullptr), "backward");
    return out;
  };
  return judge(run,
               {{"y", &want.y},
                {"last_state", &want.last_state},
                {"states", &want.states},
                {"du", &want.du},
                {"ddelta", &want.ddelta},
                {"dA", &want.dA},
                {"dB", &want.dB},
                {"dC", &want.dC},
                {"dbias", &want.dbias},
                {"dD", &want.dD}},
               dump_path,
               {{"u", &want.u},
                {"delta", &want.delta},
                {"A", &want.A},
                {"B", &want.B},
                {"C", &want.C},
                {"D", &want.D},
                {"delta_bias", &want.bias},
                {"dy", &want.dy}});
}

}  // namespace

int main(int count, char** words) {
  const std::string form = count > 1 ? words[1] : "";
  if (form != "1d" && form != "2d") shim::fail("want 1d or 2d");
  Options options(count - 2, words + 2);
  return form == "2d" ? run_2d(options) : run_1d(options);
}
