// Random inputs, and routes with what is true of them.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "common/scan_common.h"
#include "reference.h"

namespace cases {

using reference::Array;

inline std::mt19937 generator(20);

inline Array normal(size_t count, double scale = 1.0) {
  std::normal_distribution<double> draw(0.0, scale);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
inline Array uniform(size_t count, double low, double high) {
  std::uniform_real_distribution<double> draw(low, high);
  Array values(count);
  for (double& value : values) value = draw(generator);
  return values;
}
inline Array decay_rates(size_t rows, size_t d_state) {
  Array A = uniform(rows * d_state, -1.5, -0.5);
  for (size_t i = 0; i < A.size(); ++i) {
    A[i] *= 1.0 + static_cast<double>(i % d_state);
  }
  return A;
}
// Most step sizes lie between 1e-3 and 0.1, some above 1; long ones between 1
// and 20.
inline Array step_biases(size_t rows, bool long_steps) {
  return long_steps ? uniform(rows, 3.0, 17.0) : uniform(rows, -7.0, 1.0);
}

// Routes with `holes` percent of -1; else permutations (of a part) of the
// pixels, or any pixels when they may repeat. Disjoint ones share the pixels
// out; what the division leaves over belongs to none.
inline std::vector<int32_t> make_routes(size_t num_routes, size_t length,
                                        size_t pixels, bool repeats,
                                        size_t holes, bool disjoint) {
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
inline int64_t facts_of(const reference::Scan2d& scan) {
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

}  // namespace cases
