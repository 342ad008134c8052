// Runs the CUDA kernels, compiled as C++ over the shim, on small awkward shapes
// and compares every output with the double reference.
//
//   driver 2d NAME=VALUE...      one case of the scan along routes
//   driver 1d NAME=VALUE...      one case of the scan of sequences
//   driver rule NAME=VALUE...    how a scan would be cut on a device
//
// Prints the relative error of each output; ends with status 1 if one is above
// its bound or if results depend on the order in which threads run. With
// dump=PATH it also writes inputs and outputs: per array a line "NAME COUNT",
// then COUNT doubles.
#include "scan_cases/options.h"

namespace driver {
int run_1d(cases::Options& options);
int run_2d(cases::Options& options);
int run_rule(cases::Options& options);
}  // namespace driver

int main(int count, char** words) {
  const std::string form = count > 1 ? words[1] : "";
  cases::Options options(count - 2, words + 2);
  if (form == "1d") return driver::run_1d(options);
  if (form == "2d") return driver::run_2d(options);
  if (form == "rule") return driver::run_rule(options);
  cases::stop("want 1d, 2d or rule, got", form);
}
