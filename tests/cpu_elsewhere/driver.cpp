// Runs the CPU kernels, without torch, on small awkward shapes and compares
// every output with the double reference, for each instruction set that this
// processor has.
//
//   driver names                 the instruction sets, best first
//   driver FILE                  the cases of a file, a line each:
//     2d NAME=VALUE...           one case of the scan along routes
//     1d NAME=VALUE...           one case of the scan of sequences
//
// Prints the relative error of each output; ends with status 1 if one is above
// its bound.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/scan_args.h"
#include "scan_cases/cases.h"
#include "scan_cases/report.h"

namespace {

using cases::Options;
using cases::TypedArray;
using mmvssm::DType;
using mmvssm::kChunk;
using mmvssm::KernelTable;
using mmvssm::Task;
using reference::Array;

template <typename S>
constexpr DType kTypeOf =
    sizeof(S) == 8 ? mmvssm::DType::kDouble : mmvssm::DType::kFloat;

template <typename S>
const mmvssm::Kernels<S>& kernels_of(const KernelTable& table) {
  if constexpr (sizeof(S) == 4) {
    return table.single_precision;
  } else {
    return table.double_precision;
  }
}

// What a kernel writes, one copy after the other where tasks write partial
// sums; and the comparison of their sum with the reference.
template <typename S>
class Results {
 public:
  S* add(const char* name, const Array& want, size_t parts, bool cleared) {
    arrays_.push_back(
        {name, &want, parts, TypedArray(want.size() * parts, kTypeOf<S>)});
    TypedArray& array = arrays_.back().array;
    if (cleared) std::memset(array.raw(), 0, array.bytes());
    return array.template as<S>();
  }
  int judge() const {
    cases::Report report;
    for (const auto& item : arrays_) {
      Array sum(item.want->size(), 0.0);
      for (size_t i = 0; i < item.array.count(); ++i) {
        sum[i % sum.size()] += item.array.read(i);
      }
      report.compare(item.name, TypedArray(sum, kTypeOf<S>), *item.want);
    }
    return report.status();
  }

 private:
  struct Item {
    const char* name;
    const Array* want;
    size_t parts;
    TypedArray array;
  };
  std::vector<Item> arrays_;
};

// Tasks as the host code makes them: batches in slots, whole vectors of
// channels in groups, and routes apart where they share no row.
struct Split {
  size_t slots, groups;
  std::vector<Task> tasks;

  Split(size_t batch, size_t routes, size_t channels, size_t lanes,
        bool split_routes, size_t wanted_groups)
      : slots(batch < 2 ? batch : 2) {
    const size_t blocks = (channels + lanes - 1) / lanes;
    groups = wanted_groups < blocks ? wanted_groups : blocks;
    for (size_t s = 0; s < slots; ++s) {
      for (size_t k = 0; k < (split_routes ? routes : 1); ++k) {
        for (size_t g = 0; g < groups; ++g) {
          const size_t end = blocks * (g + 1) / groups * lanes;
          const size_t values[] = {s,
                                   batch * s / slots,
                                   batch * (s + 1) / slots,
                                   k,
                                   split_routes ? k + 1 : routes,
                                   g,
                                   blocks * g / groups * lanes,
                                   end < channels ? end : channels};
          int64_t v[8];
          for (int i = 0; i < 8; ++i) v[i] = static_cast<int64_t>(values[i]);
          tasks.push_back({v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]});
        }
      }
    }
  }
};

template <typename S>
int run_2d(cases::Case2d& made, size_t groups, const KernelTable& table) {
  reference::Scan2d& want = made.want;
  constexpr DType kS = kTypeOf<S>;
  TypedArray x(want.x, made.type), x_dbl(want.x_dbl, made.type), A(want.A, kS),
      weight(want.dt_weight, kS), bias(want.bias, kS), D(want.D, kS),
      dy(want.dy, made.y_type);
  want.run(static_cast<size_t>(kChunk));

  Results<S> out;
  mmvssm::Scan2dArgs<S> args{};
  cases::set_sizes(args, want, made.type);
  cases::set_map(args, want);
  args.dy_type = made.y_type;
  args.x = x.raw();
  args.x_dbl = x_dbl.raw();
  args.A = A.as<S>();
  args.D = D.as<S>();
  args.dt_weight = weight.as<S>();
  args.bias = bias.as<S>();
  args.dy = dy.raw();
  const bool one = want.num_routes == 1;
  const size_t lanes =
      static_cast<size_t>(table.float_lanes) * sizeof(float) / sizeof(S);
  const auto split = [&](bool exclusive) {
    return Split(want.batch, want.num_routes, want.channels, lanes, exclusive,
                 groups);
  };
  const auto along_routes = [&](const char* name, const Array& wanted,
                                size_t parts, mmvssm::RouteWrites writes) {
    return mmvssm::RouteArray<S>{out.add(name, wanted, parts, writes.cleared()),
                                 writes};
  };

  args.y = along_routes("y", want.y, 1,
                        mmvssm::out_writes(made.facts, !want.merge || one));
  args.states = out.add("states", want.states, 1, false);
  for (const Task& task : split(args.y.writes.exclusive).tasks) {
    kernels_of<S>(table).forward_2d(args, task);
  }

  const auto x_writes =
      mmvssm::read_writes(made.facts, want.x_per_route || one);
  const auto x_dbl_writes =
      mmvssm::read_writes(made.facts, !want.shared_projection || one);
  const Split back = split(x_writes.exclusive && x_dbl_writes.exclusive);
  args.dx = along_routes("dx", want.dx, 1, x_writes);
  args.dx_dbl = along_routes("dx_dbl", want.dx_dbl, back.groups, x_dbl_writes);
  args.dA = out.add("dA", want.dA, back.slots, false);
  args.ddt_weight = out.add("ddt_weight", want.ddt_weight, back.slots, false);
  args.dbias = out.add("dbias", want.dbias, back.slots, false);
  args.dD = out.add("dD", want.dD, back.slots, false);
  for (const Task& task : back.tasks) {
    kernels_of<S>(table).backward_2d(args, task);
  }
  return out.judge();
}

template <typename S>
int run_1d(cases::Case1d& made, size_t groups, const KernelTable& table) {
  reference::Scan1d& want = made.want;
  constexpr DType kS = kTypeOf<S>;
  TypedArray u(want.u, made.type), delta(want.delta, made.type), A(want.A, kS),
      B(want.B, made.type), C(want.C, made.type), D(want.D, kS),
      bias(want.bias, kS), dy(want.dy, made.y_type);
  want.run(static_cast<size_t>(kChunk));

  Results<S> out;
  mmvssm::Scan1dArgs<S> args{};
  cases::set_sizes(args, want, made.type);
  args.dy_type = made.y_type;
  args.softplus = want.softplus;
  args.u = u.raw();
  args.delta = delta.raw();
  args.A = A.as<S>();
  args.B = B.raw();
  args.C = C.raw();
  args.D = D.as<S>();
  args.bias = bias.as<S>();
  args.dy = dy.raw();
  const size_t lanes =
      static_cast<size_t>(table.float_lanes) * sizeof(float) / sizeof(S);
  const Split split(want.batch, want.num_routes, want.channels, lanes, true,
                    groups);
  args.y = out.add("y", want.y, 1, false);
  args.last_state = out.add("last_state", want.last_state, 1, false);
  args.states = out.add("states", want.states, 1, false);
  for (const Task& task : split.tasks) {
    kernels_of<S>(table).forward_1d(args, task);
  }
  args.du = out.add("du", want.du, 1, false);
  args.ddelta = out.add("ddelta", want.ddelta, 1, false);
  args.dB = out.add("dB", want.dB, split.groups, true);
  args.dC = out.add("dC", want.dC, split.groups, true);
  args.dA = out.add("dA", want.dA, split.slots, false);
  args.dbias = out.add("dbias", want.dbias, split.slots, false);
  args.dD = out.add("dD", want.dD, split.slots, false);
  for (const Task& task : split.tasks) {
    kernels_of<S>(table).backward_1d(args, task);
  }
  return out.judge();
}

int run(const std::string& line, const KernelTable& table) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  if (words.empty()) return 0;
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  Options options(static_cast<int>(words.size()) - 1, pointers.data() + 1);
  std::printf("%s %s:", table.name, line.c_str());
  cases::generator.seed(20);
  const size_t groups = options.number("groups", 2);
  const auto go = [&](auto made, auto run_float, auto run_double) {
    options.finish();
    return made.type == DType::kDouble ? run_double(made, groups, table)
                                       : run_float(made, groups, table);
  };
  if (words[0] == "2d") {
    return go(cases::draw_2d(options), run_2d<float>, run_2d<double>);
  }
  if (words[0] != "1d") cases::stop("want 1d or 2d, got", words[0]);
  return go(cases::draw_1d(options), run_1d<float>, run_1d<double>);
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) cases::stop("want", "names or a file of cases");
  const auto tables = mmvssm::runnable_kernels();
  if (std::string(words[1]) == "names") {
    for (const KernelTable* table : tables) std::printf("%s\n", table->name);
    return 0;
  }
  std::ifstream file(words[1]);
  if (!file) cases::stop("cannot read", words[1]);
  int status = 0;
  for (std::string line; std::getline(file, line);) {
    for (const KernelTable* table : tables) status |= run(line, *table);
  }
  return status;
}
