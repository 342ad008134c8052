// Reading the map through a route: tiles of x_dbl rows, x, and the step sizes;
// and where results along routes go.
//
// While a tile is computed, the rows of the next one travel to shared memory by
// cp.async, and so do the entries of the routes of the one after it, on which
// the addresses of its rows depend. Between two tiles the block turns entries
// into offsets, and 16-bit rows into float32 ones; float32 rows go straight
// where they are read. x is loaded by each thread for itself, of the next steps
// before these are computed.
#pragma once

#include "cuda/scan_block.cuh"

namespace mmvssm::cuda {

// Whether none of the steps is -1: the same in all threads.
template <int Steps>
__device__ __forceinline__ bool all_there(const int (&offset)[Steps]) {
  int sign = 0;
#pragma unroll
  for (int t = 0; t < Steps; ++t) sign |= offset[t];
  return sign >= 0;
}

// One thread's columns of rows of D channels, addressed by offsets from the
// tile: y, dy or dx.
template <typename T, int CH>
class RouteColumns {
 public:
  __device__ __forceinline__ RouteColumns(const RouteRows& rows,
                                          const Place<CH>& place)
      : is_float_(is_float<T> || rows.is_float) {
    const int64_t first = place.batch * rows.batch_stride +
                          static_cast<int64_t>(place.route) * rows.route_stride;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      data_[i] = fixed_address(
          static_cast<char*>(rows.data) +
          (first + place.channel[i]) *
              static_cast<int>(is_float_ ? sizeof(float) : sizeof(T)));
      writes_[i] = place.writes(i);
    }
  }

  // Writes steps at offsets `at`, but none at -1.
  template <int Steps>
  __device__ __forceinline__ void store(
      const int* at, const float (&values)[CH][Steps]) const {
    if (is_float<T> || is_float_) {
      store_as<float>(at, values);
    } else {
      store_as<T>(at, values);
    }
  }

  // Starts reading kSub steps, as the bits in memory; 0 at -1.
  __device__ __forceinline__ void request(const int* at,
                                          uint32_t (&bits)[CH][kSub]) const {
    if (is_float<T> || is_float_) {
      request_as<uint32_t>(at, bits);
    } else {
      request_as<uint16_t>(at, bits);
    }
  }
  // What has been read.
  __device__ __forceinline__ void convert(const uint32_t (&bits)[CH][kSub],
                                          float (&values)[CH][kSub]) const {
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        values[i][t] = is_float<T> || is_float_ ? __uint_as_float(bits[i][t])
                                                : from_bits<T>(bits[i][t]);
      }
    }
  }

 private:
  template <typename S, int Steps>
  __device__ __forceinline__ void store_as(
      const int* at, const float (&values)[CH][Steps]) const {
    int offset[Steps];
    read_broadcast(at, offset);
    const bool all = all_there(offset);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      S* to = static_cast<S*>(static_cast<void*>(data_[i]));
      if (!writes_[i]) continue;
      if (all) {
#pragma unroll
        for (int t = 0; t < Steps; ++t) {
          to[offset[t]] = from_float<S>(values[i][t]);
        }
      } else {
#pragma unroll
        for (int t = 0; t < Steps; ++t) {
          if (offset[t] >= 0) to[offset[t]] = from_float<S>(values[i][t]);
        }
      }
    }
  }

  template <typename Bits>
  __device__ __forceinline__ void request_as(const int* at,
                                             uint32_t (&bits)[CH][kSub]) const {
    int offset[kSub];
    read_broadcast(at, offset);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      const Bits* from = static_cast<const Bits*>(static_cast<void*>(data_[i]));
#pragma unroll
      for (int t = 0; t < kSub; ++t) {
        bits[i][t] = offset[t] < 0 ? 0u : from[offset[t]];
      }
    }
  }

  char* data_[CH];
  bool is_float_, writes_[CH];
};

// T is the type of x and x_dbl; kAccesses counts x and the RouteRows.
// A thread takes so many steps at a time; where it is fewer than kSub, it has
// few registers, and what is constant lies in shared memory.
template <typename T, int NT, int CH, int kAccesses, int Steps = kSub>
class RouteTiles {
 public:
  static constexpr int kSteps = Steps;
  // Whether nothing of the next tile is asked for before it begins, neither x
  // nor offsets: then no barrier must follow when these are made. It pays where
  // float32 rows need no conversion, which takes a barrier too, and the warps
  // are many.
  static constexpr bool kOneBarrier = is_float<T> && Steps < kSub;

  __device__ __forceinline__ RouteTiles(const RouteInputs& in,
                                        const RouteLayout& layout,
                                        const ScanShape& s,
                                        const Place<CH>& place)
      : in_(in), layout_(layout), shape_(s), place_(place) {
    const T* x = static_cast<const T*>(in.x) + place.batch * in.x_batch_stride +
                 static_cast<int64_t>(place.route) * in.x_route_stride;
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      x_[i] = fixed_address(x + place.channel[i]);
      const int row = place.row(s, i);
      const float bias = s.bias[row] * kLog2E;
      const float skip =
          s.D != nullptr && place.state_lane == 0 ? s.D[row] : 0.0f;
      if constexpr (kFewRegisters) {
        constant(0, i) = bias;
        constant(1, i) = skip;
      } else {
        bias_[i] = bias;
        skip_[i] = skip;
      }
      const float* w = in.dt_weight + static_cast<int64_t>(row) * in.dt_rank;
#pragma unroll 1
      for (int c = 0; c < 4 * layout_.rank_quads; ++c) {
        const int r = c - rank_padding();
        own_quad(layout_.weights, c / 4, i)[c % 4] =
            r >= 0 ? w[r] * kLog2E : 0.0f;
      }
    }
  }

  // Starts a walk, which advance(-1, first, second) continues.
  __device__ __forceinline__ void begin(int first) {
    clear_rows();
    fetch_entries(first, first % 2);
  }

  // Makes `tile` the current one and starts on the next two; -1: there is none.
  __device__ __forceinline__ void advance(int tile, int second, int third) {
    tile_ = tile >= 0 ? tile : second - 1;  // whatever has the other half
    copy_async_wait();
    __syncthreads();
    if (!kDirect && tile >= 0) unpack(half());
    make_offsets(second, half() ^ 1);
    if (!kOneBarrier) __syncthreads();
    if (second >= 0) fetch_rows(half() ^ 1);
    fetch_entries(third, half());
  }

  // The rows of B and C of this lane's states.
  __device__ __forceinline__ MapRows<NT> maps() const {
    return MapRows<NT>(rows(half()) + layout_.rank_quads * kQuad,
                       place_.state_lane, shape_.state_lanes);
  }

  // Those of a lane of a quad, four states.
  __device__ __forceinline__ MapRows<4> quad_maps(int lane) const {
    return MapRows<4>(rows(half()) + layout_.rank_quads * kQuad, lane, 4);
  }

  __device__ __forceinline__ int tile() const { return tile_; }
  // Says again which tile it is, so that nothing needs to keep it.
  __device__ __forceinline__ void stay(int tile) { tile_ = tile; }

  // Of D, in one of the lanes that share a channel.
  __device__ __forceinline__ float skip(int i) const {
    return kFewRegisters ? constant(1, i) : skip_[i];
  }

  __device__ __forceinline__ void enter_group(int) {}
  __device__ __forceinline__ void leave_group(int) {}

  // The place of a step in the ring of this tile and the next one.
  __device__ __forceinline__ int ring(int step) const {
    return (tile_ * kTile + step) & (2 * kTile - 1);
  }

  // Starts loading x at kSteps steps, from a place in the ring on.
  __device__ __forceinline__ void request(int at) {
    int offset[kSteps];
    read_broadcast(offsets(0, at), offset);
    const bool all = all_there(offset);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      if (all) {
#pragma unroll
        for (int t = 0; t < kSteps; ++t) coming_x_[i][t] = x_[i][offset[t]];
      } else {
#pragma unroll
        for (int t = 0; t < kSteps; ++t) {
          coming_x_[i][t] =
              offset[t] < 0 ? from_float<T>(0.0f) : x_[i][offset[t]];
        }
      }
    }
  }
  // The step sizes, times log2(e).
  __device__ __forceinline__ void load_steps(int step,
                                             float (&d)[CH][kSteps]) const {
    project(step, d);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) d[i][t] = softplus2(d[i][t]);
    }
  }
  // x as last requested, the step sizes times log2(e) and the slope of
  // softplus.
  __device__ __forceinline__ void load(int step, float (&u)[CH][kSteps],
                                       float (&d)[CH][kSteps]) const {
    load_steps(step, d);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        u[i][t] = to_float(coming_x_[i][t]);
      }
    }
  }
  __device__ __forceinline__ void load(int step, float (&u)[CH][kSteps],
                                       float (&d)[CH][kSteps],
                                       float (&slope)[CH][kSteps]) const {
    project(step, d);
#pragma unroll
    for (int i = 0; i < CH; ++i) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        d[i][t] = softplus2(d[i][t], slope[i][t]);
        u[i][t] = to_float(coming_x_[i][t]);
      }
    }
  }

 protected:
  // Of x (0) and of the form's other rows (1, 2), from a place in the ring on;
  // -1 for a step that has none.
  __device__ __forceinline__ int* offsets(int access, int at) const {
    return shared_array<int>(layout_.offsets) + access * 2 * kTile + at;
  }

  // Four values of a channel's step weights, or of what is laid out like them.
  __device__ __forceinline__ float* own_quad(int array, int quad, int i) const {
    return own_quad(array, quad, i, threadIdx.x);
  }
  __device__ __forceinline__ float* own_quad(int array, int quad, int i,
                                             int thread) const {
    return shared_array<float>(array) +
           ((quad * CH + i) * blockDim.x + thread) * 4;
  }
  // Of this thread: its bias (0), its skip weight (1).
  __device__ __forceinline__ float& constant(int which, int i) const {
    return shared_array<float>(
        layout_.constants)[(which * CH + i) * blockDim.x + threadIdx.x];
  }
  // Columns of zeros in front of the dt rank, up to whole quads.
  __device__ __forceinline__ int rank_padding() const {
    return 4 * layout_.rank_quads - in_.dt_rank;
  }
  // The dt rank that a step of the tile reads, first of four columns.
  __device__ __forceinline__ const float* ranks(int quad, int step) const {
    return rows(half()) + quad * kQuad + 4 * step;
  }

  const RouteInputs& in_;
  const RouteLayout& layout_;
  const ScanShape& shape_;
  const Place<CH>& place_;
  const RouteRows* rows_[kAccesses];  // set by the form, from 1 on
  bool from_out_[kAccesses];          // whether they follow out_routes

 private:
  __device__ __forceinline__ int* entries(int half, int table) const {
    return shared_array<int>(layout_.entries) + (half * 2 + table) * kTile;
  }
  // Of entries, offsets and float32 rows, the tile's own ones.
  __device__ __forceinline__ int half() const { return tile_ & 1; }
  // The rows that this block's route reads of its image.
  __device__ __forceinline__ const T* x_dbl() const {
    const auto place = Place<CH>::anew(shape_);
    return static_cast<const T*>(in_.x_dbl) +
           place.batch * in_.x_dbl_batch_stride +
           static_cast<int64_t>(place.route) * in_.x_dbl_route_stride;
  }
  __device__ __forceinline__ T* raw(int step) const {
    return shared_array<T>(layout_.raw) + step * layout_.raw_pitch;
  }
  __device__ __forceinline__ void fetch_entries(int tile, int half) {
    const int first = Place<CH>::anew(shape_).route * shape_.length;
#pragma unroll 1
    for (int i = thread_anew(); i < kTile; i += blockDim.x) {
      int* to = entries(half, 0) + i;
      int* to_out = entries(half, 1) + i;
      const int step = tile * kTile + i;
      if (tile >= 0 && step < shape_.length) {
        const int entry = first + step;
        copy_async<4>(to, in_.routes + entry);
        copy_async<4>(to_out, in_.out_routes + entry);
      } else {
        *to = *to_out = -1;
      }
    }
  }

  __device__ __forceinline__ void make_offsets(int tile, int half) {
#pragma unroll 1
    for (int i = thread_anew(); i < kTile; i += blockDim.x) {
      const int step = tile * kTile + i;
      const bool exists = tile >= 0 && step < shape_.length;
      int* to = offsets(0, half * kTile + i);
      const int pixel = entries(half, 0)[i];
      to[0] = pixel < 0 ? -1 : pixel * in_.x_pixel_stride;
#pragma unroll
      for (int a = 1; a < kAccesses; ++a) {
        const int row = rows_[a]->by_step ? (exists ? step : -1)
                        : from_out_[a]    ? entries(half, 1)[i]
                                          : pixel;
        to[a * 2 * kTile] = row < 0 ? -1 : row * rows_[a]->row_stride;
      }
    }
  }

  // Where a column of x_dbl lies among the rows.
  __device__ __forceinline__ int place_of(int column) const {
    const int after_C = column - in_.dt_rank - shape_.d_state;
    return column + rank_padding() +
           (after_C >= 0 ? NT * shape_.state_lanes - shape_.d_state : 0);
  }

  // visit(piece, step) for each of a thread's pieces of rows: it has that of
  // every split.rows-th step, from `step` on.
  template <typename Visit>
  __device__ __forceinline__ void each_piece(const PieceSplit& split,
                                             const Visit& visit) {
    const int thread = thread_anew();
    const int row = split.first_row(thread);
    if (row >= split.rows) return;
#pragma unroll 1
    for (int c = thread - row * split.per_row; c < split.per_row;
         c += blockDim.x) {
      visit(c, row);
    }
  }

  // Copies pieces of so many bytes, straight to the rows or as they are; of
  // steps without a pixel, zeros.
  template <int Bytes>
  __device__ __forceinline__ void copy_rows(const int* pixels, int half) {
    constexpr int count = Bytes / static_cast<int>(sizeof(T));
    each_piece(layout_.copies, [&](int c, int step) {
      const int column = c * count;
      const T* from = fixed_address(x_dbl() + column);
      T* to;
      if constexpr (kDirect) {
        to = rows_at(half, place_of(column));
      } else {
        to = raw(0) + column;
      }
      const int pitch = kDirect ? 4 : layout_.raw_pitch;
      const int rows = layout_.copies.rows;
      to += step * pitch;
#pragma unroll 4
      for (; step < kTile; step += rows) {
        const int pixel = pixels[step];
        copy_async<Bytes>(to, from + pixel * in_.x_dbl_pixel_stride,
                          pixel >= 0);
        to += rows * pitch;
      }
    });
  }

  __device__ __forceinline__ void fetch_rows(int half) {
    const int* pixels = entries(half, 0);
    if (in_.copy_bytes == 16) {
      copy_rows<16>(pixels, half);
    } else if (in_.copy_bytes == 8) {
      copy_rows<8>(pixels, half);
    } else if (kDirect || in_.copy_bytes == 4) {
      copy_rows<4>(pixels, half);
    } else {
      const T* from = x_dbl();
      each_piece(layout_.copies, [&](int c, int step) {
#pragma unroll 1
        for (; step < kTile; step += layout_.copies.rows) {
          const int pixel = pixels[step];
          raw(step)[c] = pixel < 0 ? from_float<T>(0.0f)
                                   : from[pixel * in_.x_dbl_pixel_stride + c];
        }
      });
    }
  }

  // Converts the rows that have arrived. Columns of padding are zero since the
  // start.
  __device__ __forceinline__ void unpack(int half) {
    each_piece(layout_.columns, [&](int c, int step) {
      float* to = rows_at(half, place_of(c));
#pragma unroll 4
      for (; step < kTile; step += layout_.columns.rows) {
        to[4 * step] = to_float(raw(step)[c]);
      }
    });
  }
  // The rows of a tile, and one column of them.
  __device__ __forceinline__ float* rows(int half) const {
    return shared_array<float>(layout_.rows) +
           (kDirect ? half * layout_.rows_size : 0);
  }
  __device__ __forceinline__ float* rows_at(int half, int place) const {
    return rows(half) + place / 4 * kQuad + place % 4;
  }
  __device__ __forceinline__ void clear_rows() {
    const int count = (kDirect ? 2 : 1) * layout_.rows_size;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += blockDim.x) rows(0)[i] = 0.0f;
  }

  // What softplus is applied to, bias + weights . dt rank, times log2(e).
  __device__ __forceinline__ void project(int step,
                                          float (&raw_step)[CH][kSteps]) const {
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      const float bias = kFewRegisters ? constant(0, i) : bias_[i];
#pragma unroll
      for (int t = 0; t < kSteps; ++t) raw_step[i][t] = bias;
    }
    if (layout_.rank_pairs) {
      add_ranks<2>(0, step, raw_step);
    } else {
      add_ranks<4>(0, step, raw_step);
    }
#pragma unroll 1
    for (int quad = 1; quad < layout_.rank_quads; ++quad) {
      add_ranks<4>(quad, step, raw_step);
    }
  }

  // Of the last so many columns of a quad.
  template <int Columns>
  __device__ __forceinline__ void add_ranks(
      int quad, int step, float (&raw_step)[CH][kSteps]) const {
    float w[CH][Columns];
#pragma unroll
    for (int i = 0; i < CH; ++i) {
      read_broadcast(own_quad(layout_.weights, quad, i) + 4 - Columns, w[i]);
    }
    const float* from = ranks(quad, step) + 4 - Columns;
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      float q[Columns];
      read_broadcast(from + 4 * t, q);
#pragma unroll
      for (int i = 0; i < CH; ++i) {
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          raw_step[i][t] = fmaf(w[i][j], q[j], raw_step[i][t]);
        }
      }
    }
  }

  // float32 rows need no conversion.
  static constexpr bool kDirect = is_float<T>;

  static constexpr bool kFewRegisters = Steps < kSub;

  const T* x_[CH];
  float bias_[CH], skip_[CH];
  T coming_x_[CH][kSteps];
  int tile_;  // the current one
};

}  // namespace mmvssm::cuda
