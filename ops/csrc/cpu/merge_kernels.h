// The merge of routes whose channels are gated, on a CPU: means of the
// normalised outputs, from which the gates are computed, and the gated sum.
//
// A row is the channels of one route at one pixel. Rows are multiplied by an
// optional `scale` that routes share. A task walks over the pixels of one block
// of one image, and stages one row after the other in the first-level cache:
// nothing of the size of x is written except its gradient. Lanes are channels.
#pragma once

#include "cpu/layouts.h"

namespace mmvssm {
namespace MMVSSM_ISA {
namespace {

template <typename S>
MMVSSM_INLINE Vec<S> fill(S value) {
  return Vec<S>{} + value;
}

// The sum over lanes, in all lanes.
template <typename S, int Step = Simd<S>::kLanes / 2>
MMVSSM_INLINE Vec<S> sum_in_all_lanes(Vec<S> v) {
  Vec<S> other = v;
  exchange<Step, Vec<S>, typename Simd<S>::Index>(
      &v, &other, std::make_integer_sequence<int, Simd<S>::kLanes>{});
  v += other;
  if constexpr (Step > 1) {
    return sum_in_all_lanes<S, Step / 2>(v);
  } else {
    return v;
  }
}

// The sum of terms of all vectors of a row, in all lanes. Four parts, so that
// additions overlap.
template <typename S, typename Term>
MMVSSM_INLINE Vec<S> sum_row(int64_t vectors, const Term& term) {
  Vec<S> parts[4] = {};
  int64_t i = 0;
  for (; i + 4 <= vectors; i += 4) {
    for (int j = 0; j < 4; ++j) parts[j] += term(i + j);
  }
  for (; i < vectors; ++i) parts[0] += term(i);
  return sum_in_all_lanes<S>((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

// The pixels of one task, and its rows in memory and in scratch. Plain: the
// inputs have type S, and rows are whole vectors.
template <typename S, bool Plain>
class MergeBlock {
 public:
  using V = Vec<S>;
  static constexpr int W = Simd<S>::kLanes;

  // The scratch holds `rows` rows beside the scale.
  MergeBlock(const MergeArgs<S>& args, int64_t task, int64_t rows)
      : a(args),
        vectors((args.channels + W - 1) / W),
        image(task % args.batch),
        block(task / args.batch),
        begin(block * kMergeRows),
        end(begin + kMergeRows < a.pixels ? begin + kMergeRows : a.pixels),
        arena_((rows + 1) * vectors * sizeof(V) + 1024) {
    scale = take_rows(1);
  }

  V* take_rows(int64_t count) {
    return arena_.template take<V>(count * vectors);
  }
  int count(int64_t i) const {
    return Plain ? W : at_most(a.channels - i * W, W);
  }
  DType type() const { return Plain ? DType::kFloat : a.type; }

  V x(int64_t pixel, int64_t k, int64_t i) const {
    return load<S>(a.x, type(), offset(pixel, k) + i * W, count(i));
  }
  V dy(int64_t pixel, int64_t i) const {
    return load<S>(a.dy, DType::kFloat, offset(pixel) + i * W, count(i));
  }
  void store_dx(int64_t pixel, int64_t k, int64_t i, V v) const {
    store<S>(a.dx + offset(pixel, k) + i * W, v, count(i));
  }
  void store_row(S* base, int64_t pixel, const V* row) const {
    if (base == nullptr) return;
    for (int64_t i = 0; i < vectors; ++i) {
      store<S>(base + offset(pixel) + i * W, row[i], count(i));
    }
  }

  void load_scale(int64_t pixel) {
    for (int64_t i = 0; i < vectors; ++i) {
      scale[i] = a.scale == nullptr ? fill<S>(1)
                                    : load<S>(a.scale, type(),
                                              offset(pixel) + i * W, count(i));
    }
  }

  // Rows of all routes of the task's image, (Bt, K, D).
  void load_routes(const S* base, V* rows) const {
    base += image * a.num_routes * a.channels;
    for (int64_t k = 0; k < a.num_routes; ++k) {
      for (int64_t i = 0; i < vectors; ++i) {
        rows[k * vectors + i] =
            load<S>(base, DType::kFloat, k * a.channels + i * W, count(i));
      }
    }
  }
  // The same as the task's part of a sum, (blocks, Bt, K, D).
  void store_routes(S* base, const V* rows) const {
    base += (block * a.batch + image) * a.num_routes * a.channels;
    for (int64_t k = 0; k < a.num_routes; ++k) {
      for (int64_t i = 0; i < vectors; ++i) {
        store<S>(base + k * a.channels + i * W, rows[k * vectors + i],
                 count(i));
      }
    }
  }

  // Stages a scaled row less its mean; returns 1 / its standard deviation.
  V centre(int64_t pixel, int64_t k, V* row) const {
    const V mean = sum_row<S>(vectors,
                              [&](int64_t i) {
                                return row[i] = x(pixel, k, i) * scale[i];
                              }) /
                   S(a.channels);
    const V variance = sum_row<S>(vectors,
                                  [&](int64_t i) {
                                    row[i] -= mean;
                                    for (int j = count(i); j < W; ++j)
                                      row[i][j] = 0;
                                    return row[i] * row[i];
                                  }) /
                       S(a.channels);
    return fill<S>(S(1) / std::sqrt(variance[0] + a.eps));
  }

  const MergeArgs<S>& a;
  const int64_t vectors, image, block, begin, end;
  V* scale;

 private:
  int64_t offset(int64_t pixel) const {
    return (image * a.pixels + pixel) * a.channels;
  }
  int64_t offset(int64_t pixel, int64_t k) const {
    return ((image * a.pixels + pixel) * a.num_routes + k) * a.channels;
  }

  Arena arena_;
};

// y: sums over the pixels of a block of (row - mean) / sigma.
template <typename S, bool Plain>
void means_task(const MergeArgs<S>& a, int64_t task) {
  using V = Vec<S>;
  MergeBlock<S, Plain> block(a, task, a.num_routes + 1);
  const int64_t vectors = block.vectors;
  V* sums = block.take_rows(a.num_routes);
  V* row = block.take_rows(1);
  for (int64_t pixel = block.begin; pixel < block.end; ++pixel) {
    block.load_scale(pixel);
    for (int64_t k = 0; k < a.num_routes; ++k) {
      const V rsigma = block.centre(pixel, k, row);
      for (int64_t i = 0; i < vectors; ++i) {
        sums[k * vectors + i] += row[i] * rsigma;
      }
    }
  }
  block.store_routes(a.y, sums);
}

// With z = (row - mean) / sigma and the gradient g of the sums over pixels:
// the row's gradient is (g - mean(g) - z mean(g z)) / sigma.
template <typename S, bool Plain>
void means_backward_task(const MergeArgs<S>& a, int64_t task) {
  using V = Vec<S>;
  MergeBlock<S, Plain> block(a, task, a.num_routes + 2);
  const int64_t vectors = block.vectors;
  V* grads = block.take_rows(a.num_routes);  // g - mean(g)
  V* row = block.take_rows(1);
  V* dscale = block.take_rows(1);
  block.load_routes(a.dy, grads);
  for (int64_t k = 0; k < a.num_routes; ++k) {
    V* g = grads + k * vectors;
    const V sum = sum_row<S>(vectors, [&](int64_t i) { return g[i]; });
    for (int64_t i = 0; i < vectors; ++i) g[i] -= sum / S(a.channels);
  }
  for (int64_t pixel = block.begin; pixel < block.end; ++pixel) {
    block.load_scale(pixel);
    for (int64_t i = 0; i < vectors; ++i) dscale[i] = V{};
    for (int64_t k = 0; k < a.num_routes; ++k) {
      const V* g = grads + k * vectors;
      const V rsigma = block.centre(pixel, k, row);
      // z sums to zero, so that mean(g) has no part in mean(g z)
      const V sum =
          sum_row<S>(vectors, [&](int64_t i) { return g[i] * row[i]; });
      const V slope = sum * rsigma * rsigma / S(a.channels);
      for (int64_t i = 0; i < vectors; ++i) {
        const V drow = (g[i] - row[i] * slope) * rsigma;
        if (a.dscale != nullptr) dscale[i] += drow * block.x(pixel, k, i);
        block.store_dx(pixel, k, i, drow * block.scale[i]);
      }
    }
    block.store_row(a.dscale, pixel, dscale);
  }
}

// y = scale * sum over routes of gate * x
template <typename S, bool Plain>
void sum_task(const MergeArgs<S>& a, int64_t task) {
  using V = Vec<S>;
  MergeBlock<S, Plain> block(a, task, a.num_routes + 1);
  const int64_t vectors = block.vectors;
  V* gates = block.take_rows(a.num_routes);
  V* row = block.take_rows(1);
  block.load_routes(a.gates, gates);
  for (int64_t pixel = block.begin; pixel < block.end; ++pixel) {
    block.load_scale(pixel);
    for (int64_t i = 0; i < vectors; ++i) {
      V sum{};
      for (int64_t k = 0; k < a.num_routes; ++k) {
        sum += gates[k * vectors + i] * block.x(pixel, k, i);
      }
      row[i] = sum * block.scale[i];
    }
    block.store_row(a.y, pixel, row);
  }
}

template <typename S, bool Plain>
void sum_backward_task(const MergeArgs<S>& a, int64_t task) {
  using V = Vec<S>;
  MergeBlock<S, Plain> block(a, task, 2 * a.num_routes + 1);
  const int64_t vectors = block.vectors;
  V* gates = block.take_rows(a.num_routes);
  V* dgates = block.take_rows(a.num_routes);
  V* dscale = block.take_rows(1);
  block.load_routes(a.gates, gates);
  for (int64_t pixel = block.begin; pixel < block.end; ++pixel) {
    block.load_scale(pixel);
    for (int64_t i = 0; i < vectors; ++i) {
      const V dy = block.dy(pixel, i), scaled = dy * block.scale[i];
      V sum{};
      for (int64_t k = 0; k < a.num_routes; ++k) {
        const V gate = gates[k * vectors + i], x = block.x(pixel, k, i);
        dgates[k * vectors + i] += scaled * x;
        sum += gate * x;
        block.store_dx(pixel, k, i, scaled * gate);
      }
      dscale[i] = dy * sum;
    }
    block.store_row(a.dscale, pixel, dscale);
  }
  block.store_routes(a.dgates, dgates);
}

template <typename S, void (*plain)(const MergeArgs<S>&, int64_t),
          void (*any)(const MergeArgs<S>&, int64_t)>
void merge_task(const MergeArgs<S>& a, int64_t task) {
  const bool is_plain = (sizeof(S) == 8 || a.type == DType::kFloat) &&
                        a.channels % Simd<S>::kLanes == 0;
  (is_plain ? plain : any)(a, task);
}

}  // namespace
}  // namespace MMVSSM_ISA
}  // namespace mmvssm
