// How a chunk of steps is read from and written to memory, for the two forms of
// the scan. The recurrence itself (scan_kernels.h) sees neither.
//
// A layout stages one chunk of kChunk steps of one route at a time: B and C
// (and the dt ranks) for all channels, then u and the raw steps (what softplus
// is applied to) for one block of channels.
#pragma once

#include "cpu/scan_args.h"
#include "cpu/simd.h"

namespace mmvssm {
namespace MMVSSM_ISA {
namespace {

// Cache-line aligned scratch memory of one task, zero-filled where it is taken.
class Arena {
 public:
  explicit Arena(size_t bytes) {
    size_ = (bytes + 4096 + 63) / 64 * 64;
    // Older macOS has no aligned_alloc.
    void* memory = nullptr;
    if (::posix_memalign(&memory, 64, size_) != 0) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    ::memset(base_, 0, size_);
  }
  ~Arena() { ::free(base_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return p;
  }

 private:
  char* base_;
  size_t size_, used_ = 0;
};

// Level 1: channel-first sequences; a chunk is transposed on its way.
template <typename S>
class Layout1d {
 public:
  using V = Vec<S>;
  using Args = Scan1dArgs<S>;
  static constexpr bool kFlushesStates = true;

  static size_t scratch_bytes(const Args& a, const Task&) {
    return 4 * a.d_state * kChunk * sizeof(S);
  }

  Layout1d(const Args& args, const Task& task, Arena* arena)
      : a_(args), channel_group_(task.channel_group) {
    B = arena->take<S>(a_.d_state * kChunk);
    C = arena->take<S>(a_.d_state * kChunk);
    dB = arena->take<S>(a_.d_state * kChunk);
    dC = arena->take<S>(a_.d_state * kChunk);
  }

  // Strides of B and C: by step, by state.
  int64_t step_stride() const { return 1; }
  int64_t state_stride() const { return kChunk; }
  bool use_softplus() const { return a_.softplus; }
  void begin_route(int64_t, int64_t, int64_t) {}
  void end_route(int64_t) {}

  void begin_chunk(int64_t b, int64_t k, int64_t start, int steps) {
    b_ = b;
    k_ = k;
    start_ = start;
    steps_ = steps;
    for (int64_t n = 0; n < a_.d_state; ++n) {
      const int64_t from = bc_offset(0) + n * a_.length;
      for (int t = 0; t < steps; t += W) {
        const int count = at_most(steps - t, W);
        store<S>(B + n * kChunk + t, load<S>(a_.B, a_.in_type, from + t, count),
                 W);
        store<S>(C + n * kChunk + t, load<S>(a_.C, a_.in_type, from + t, count),
                 W);
      }
    }
  }

  void load_inputs(int, int64_t c, int count, V* u, V* raw_step) {
    load_columns<S>(a_.u, a_.in_type, offset(c), a_.length, count, steps_, u);
    load_columns<S>(a_.delta, a_.in_type, offset(c), a_.length, count, steps_,
                    raw_step);
    // The processor does not follow this many rows by itself.
    const int64_t next = a_.length - start_ - kChunk;
    const int ahead = next < 0 ? 0 : at_most(next, kChunk);
    prefetch_rows<S>(a_.u, a_.in_type, offset(c) + kChunk, a_.length, count,
                     ahead);
    prefetch_rows<S>(a_.delta, a_.in_type, offset(c) + kChunk, a_.length, count,
                     ahead);
    if (a_.bias == nullptr) return;
    const V bias = load<S>(a_.bias, DType::kFloat, k_ * a_.channels + c, count);
    for (int t = 0; t < steps_; ++t) raw_step[t] += bias;
  }

  void store_output(int64_t c, int count, V* y) {
    store_columns<S>(a_.y + offset(c), a_.length, count, steps_, y);
  }

  void load_grad(int64_t c, int count, V* dy) {
    load_columns<S>(a_.dy, a_.dy_type, offset(c), a_.length, count, steps_, dy);
  }

  void store_grads(int, int64_t c, int count, V* du, V* d_raw_step) {
    store_columns<S>(a_.du + offset(c), a_.length, count, steps_, du);
    store_columns<S>(a_.ddelta + offset(c), a_.length, count, steps_,
                     d_raw_step);
  }

  void end_chunk_backward() {
    const int64_t base = bc_offset(channel_group_);
    for (int64_t n = 0; n < a_.d_state; ++n) {
      for (int t = 0; t < steps_; t += W) {
        const int count = at_most(steps_ - t, W);
        const int64_t to = base + n * a_.length + t, from = n * kChunk + t;
        add<S>(a_.dB + to, load<S>(dB, DType::kFloat, from, W), count);
        add<S>(a_.dC + to, load<S>(dC, DType::kFloat, from, W), count);
      }
    }
    ::memset(dB, 0, a_.d_state * kChunk * sizeof(S));
    ::memset(dC, 0, a_.d_state * kChunk * sizeof(S));
  }

  S *B, *C;
  S *dB, *dC;  // (N, kChunk) sums over the channels of the task

 private:
  static constexpr int W = Simd<S>::kLanes;
  int64_t offset(int64_t c) const {
    return ((b_ * a_.num_routes + k_) * a_.channels + c) * a_.length + start_;
  }
  int64_t bc_offset(int64_t channel_group) const {
    return ((channel_group * a_.batch + b_) * a_.num_routes + k_) * a_.d_state *
               a_.length +
           start_;
  }

  const Args& a_;
  const int64_t channel_group_;
  int64_t b_, k_, start_;
  int steps_;
};

// Level 2: channels-last maps, gathered and scattered by pixel; the step
// projection is fused.
template <typename S>
class Layout2d {
 public:
  using V = Vec<S>;
  using Args = Scan2dArgs<S>;
  static constexpr bool kFlushesStates = false;

  static int64_t padded(int64_t n) { return (n + W - 1) / W * W; }
  static int64_t blocks(const Task& t) {
    return (t.channel_end - t.channel_begin + W - 1) / W;
  }

  static size_t scratch_bytes(const Args& a, const Task& task) {
    const int64_t rank = padded(a.dt_rank),
                  width = padded(a.dt_rank + 2 * a.d_state);
    const int64_t weights = blocks(task) * W * rank * 3;
    const int64_t staged =
        kChunk * (width + rank) + 2 * (a.d_state + 1) * kChunk;
    return (weights + staged) * sizeof(S);
  }

  Layout2d(const Args& args, const Task& task, Arena* arena)
      : a_(args),
        channel_group_(task.channel_group),
        rank_(padded(args.dt_rank)),
        width_(padded(args.dt_rank + 2 * args.d_state)),
        plain_(sizeof(S) == 8 || args.in_type == DType::kFloat) {
    rows_ = arena->take<S>(kChunk * width_);
    drank_ = arena->take<S>(kChunk * rank_);
    dB = arena->take<S>(a_.d_state * kChunk);
    dC = arena->take<S>(a_.d_state * kChunk);
    weight_ = arena->take<V>(blocks(task) * rank_);
    weight_rows_ = arena->take<S>(blocks(task) * W * rank_);
    dweight_ = arena->take<V>(blocks(task) * rank_);
    B = rows_ + a_.dt_rank;
    C = B + a_.d_state;
  }

  int64_t step_stride() const { return width_; }
  int64_t state_stride() const { return 1; }
  bool use_softplus() const { return true; }

  void begin_route(int64_t k, int64_t channel_begin, int64_t channel_end) {
    k_ = k;
    for (int64_t c = channel_begin, i = 0; c < channel_end; c += W, ++i) {
      const int count = at_most(channel_end - c, W);
      const int64_t from = (k * a_.channels + c) * a_.dt_rank;
      load_columns<S>(a_.dt_weight, DType::kFloat, from, a_.dt_rank, count,
                      static_cast<int>(a_.dt_rank), weight_ + i * rank_);
      S* rows = weight_rows_ + i * W * rank_;
      for (int lane = 0; lane < count; ++lane) {
        ::memcpy(rows + lane * rank_, a_.dt_weight + from + lane * a_.dt_rank,
                 a_.dt_rank * sizeof(S));
      }
      for (int lane = count; lane < W; ++lane) {
        ::memset(rows + lane * rank_, 0, rank_ * sizeof(S));
      }
    }
    channel_begin_ = channel_begin;
    channel_end_ = channel_end;
  }

  // The weight gradient of the route goes to its slot.
  void end_route(int64_t slot) {
    S* base =
        a_.ddt_weight + (slot * a_.num_routes + k_) * a_.channels * a_.dt_rank;
    for (int64_t c = channel_begin_, i = 0; c < channel_end_; c += W, ++i) {
      const int count = at_most(channel_end_ - c, W);
      store_columns<S>(base + c * a_.dt_rank, a_.dt_rank, count,
                       static_cast<int>(a_.dt_rank), dweight_ + i * rank_);
      ::memset(dweight_ + i * rank_, 0, rank_ * sizeof(V));
    }
  }

  void begin_chunk(int64_t b, int64_t k, int64_t start, int steps) {
    b_ = b;
    steps_ = steps;
    pixel_ = a_.routes + k * a_.length + start;
    out_row_ = a_.out_routes + k * a_.length + start;
    const int64_t width = a_.dt_rank + 2 * a_.d_state;
    for (int t = 0; t < steps; ++t) {
      S* row = rows_ + t * width_;
      if (pixel_[t] < 0) {
        ::memset(row, 0, width_ * sizeof(S));
        continue;
      }
      const int64_t from = projection_offset(0, pixel_[t]);
      if (plain_) {
        ::memcpy(row, static_cast<const S*>(a_.x_dbl) + from,
                 width * sizeof(S));
        continue;
      }
      for (int64_t j = 0; j < width; j += W) {
        const int count = at_most(width - j, W);
        store<S>(row + j, load<S>(a_.x_dbl, a_.in_type, from + j, count), W);
      }
    }
  }

  void load_inputs(int block, int64_t c, int count, V* u, V* raw_step) {
    if (plain_ && count == W) {
      const S* x = static_cast<const S*>(a_.x);
      for (int t = 0; t < steps_; ++t) {
        u[t] = V{};
        if (pixel_[t] >= 0) {
          __builtin_memcpy(u + t, x + x_offset(pixel_[t], c), sizeof(V));
        }
      }
    } else {
      for (int t = 0; t < steps_; ++t) {
        u[t] = pixel_[t] < 0
                   ? V{}
                   : load<S>(a_.x, a_.in_type, x_offset(pixel_[t], c), count);
      }
    }
    const V bias = load<S>(a_.bias, DType::kFloat, k_ * a_.channels + c, count);
    const V* weight = weight_ + block * rank_;
    int t = 0;
    for (; t + 4 <= steps_; t += 4) {
      const S* q = rows_ + t * width_;
      V sum0 = bias, sum1 = bias, sum2 = bias, sum3 = bias;
      for (int64_t r = 0; r < a_.dt_rank; ++r) {
        const V w = weight[r];
        sum0 += w * q[r];
        sum1 += w * q[width_ + r];
        sum2 += w * q[2 * width_ + r];
        sum3 += w * q[3 * width_ + r];
      }
      raw_step[t] = sum0;
      raw_step[t + 1] = sum1;
      raw_step[t + 2] = sum2;
      raw_step[t + 3] = sum3;
    }
    for (; t < steps_; ++t) {
      V sum = bias;
      for (int64_t r = 0; r < a_.dt_rank; ++r) {
        sum += weight[r] * rows_[t * width_ + r];
      }
      raw_step[t] = sum;
    }
  }

  void store_output(int64_t c, int count, V* y) {
    const bool adds = a_.y.adds(k_);
    for (int t = 0; t < steps_; ++t) {
      if (out_row_[t] < 0) continue;
      put<S>(a_.y.data + y_offset(out_row_[t], c), y[t], count, adds);
    }
  }

  void load_grad(int64_t c, int count, V* dy) {
    for (int t = 0; t < steps_; ++t) {
      dy[t] = out_row_[t] < 0
                  ? V{}
                  : load<S>(a_.dy, a_.dy_type, y_offset(out_row_[t], c), count);
    }
  }

  void store_grads(int block, int64_t c, int count, V* du, V* d_raw_step) {
    const bool adds = a_.dx.adds(k_);
    for (int t = 0; t < steps_; ++t) {
      if (pixel_[t] < 0) continue;
      put<S>(a_.dx.data + x_offset(pixel_[t], c), du[t], count, adds);
    }
    // Gradient of the dt ranks: sum over channels, lanes are ranks.
    const S* weight = weight_rows_ + block * W * rank_;
    for (int t = 0; t < steps_; ++t) {
      for (int64_t r = 0; r < rank_; r += W) {
        V sum = load<S>(drank_, DType::kFloat, t * rank_ + r, W);
        for (int lane = 0; lane < W; ++lane) {
          sum += d_raw_step[t][lane] *
                 load<S>(weight, DType::kFloat, lane * rank_ + r, W);
        }
        store<S>(drank_ + t * rank_ + r, sum, W);
      }
    }
    // Gradient of the weight: sum over steps, lanes are channels.
    V* dweight = dweight_ + block * rank_;
    for (int64_t r = 0; r < a_.dt_rank; ++r) {
      V even{}, odd{};
      int t = 0;
      for (; t + 2 <= steps_; t += 2) {
        even += d_raw_step[t] * rows_[t * width_ + r];
        odd += d_raw_step[t + 1] * rows_[(t + 1) * width_ + r];
      }
      if (t < steps_) even += d_raw_step[t] * rows_[t * width_ + r];
      dweight[r] += even + odd;
    }
  }

  // The sums of the chunk over its channels, to the rows of x_dbl.
  void end_chunk_backward() {
    const int64_t width = a_.dt_rank + 2 * a_.d_state;
    const bool adds = a_.dx_dbl.adds(k_);
    for (int t = 0; t < steps_; ++t) {
      if (pixel_[t] < 0) continue;
      S* to = a_.dx_dbl.data + projection_offset(channel_group_, pixel_[t]);
      if (!adds) ::memset(to, 0, width * sizeof(S));
      for (int64_t r = 0; r < a_.dt_rank; ++r) to[r] += drank_[t * rank_ + r];
      to += a_.dt_rank;
      for (int64_t n = 0; n < a_.d_state; ++n) {
        to[n] += dB[n * kChunk + t];
        to[a_.d_state + n] += dC[n * kChunk + t];
      }
    }
    ::memset(drank_, 0, kChunk * rank_ * sizeof(S));
    ::memset(dB, 0, a_.d_state * kChunk * sizeof(S));
    ::memset(dC, 0, a_.d_state * kChunk * sizeof(S));
  }

  S *B, *C;
  S *dB, *dC;  // (N, kChunk) sums over the channels of the task

 private:
  static constexpr int W = Simd<S>::kLanes;
  int64_t x_offset(int64_t pixel, int64_t c) const {
    const int64_t at = b_ * a_.pixels + pixel;
    return (a_.x_per_route ? at * a_.num_routes + k_ : at) * a_.channels + c;
  }
  int64_t y_offset(int64_t row, int64_t c) const {
    const int64_t at = b_ * a_.out_rows + row;
    return (a_.merge ? at : at * a_.num_routes + k_) * a_.channels + c;
  }
  int64_t projection_offset(int64_t channel_group, int64_t pixel) const {
    const int64_t width = a_.dt_rank + 2 * a_.d_state;
    const int64_t at = (channel_group * a_.batch + b_) * a_.pixels + pixel;
    return (a_.shared_projection ? at : at * a_.num_routes + k_) * width;
  }

  const Args& a_;
  const int64_t channel_group_;
  const int64_t rank_, width_;  // padded to whole vectors
  const bool plain_;            // the inputs have type S
  int64_t b_, k_, channel_begin_, channel_end_;
  int steps_;
  const int32_t *pixel_, *out_row_;
  S *rows_, *drank_;      // (kChunk, width), (kChunk, rank)
  V *weight_, *dweight_;  // (blocks, rank) lanes = channels
  S* weight_rows_;        // (blocks, lanes, rank)
};

}  // namespace
}  // namespace MMVSSM_ISA
}  // namespace mmvssm
