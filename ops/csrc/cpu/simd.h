// Vectors of one cache line and the few functions that the scan needs of them.
//
// This header is compiled once per instruction set, inside a namespace of its
// own (MMVSSM_ISA) and below a target pragma. Nothing here may be an external
// inline function: the linker could then pick a copy that a plainer processor
// cannot run. GCC's vector extensions do the lowering; Clang shares them.
#pragma once

#include "common/scan_common.h"

namespace mmvssm {
namespace MMVSSM_ISA {
namespace {

// A C cast from one of these to another keeps the bits, as GCC documents it.
using FloatVec = float __attribute__((vector_size(64)));
using DoubleVec = double __attribute__((vector_size(64)));
using IntVec = int32_t __attribute__((vector_size(64)));
using LongVec = int64_t __attribute__((vector_size(64)));

#define MMVSSM_INLINE static inline __attribute__((always_inline))

template <typename S>
struct Simd;
template <>
struct Simd<float> {
  using Vec = FloatVec;
  using Index = IntVec;
  static constexpr int kLanes = 16;
};
template <>
struct Simd<double> {
  using Vec = DoubleVec;
  using Index = LongVec;
  static constexpr int kLanes = 8;
};
template <typename S>
using Vec = typename Simd<S>::Vec;

// How many of `left` items fit into a vector or a chunk of `size`.
MMVSSM_INLINE int at_most(int64_t left, int size) {
  return left < size ? static_cast<int>(left) : size;
}

// ---- exponentials -----------------------------------------------------

// 2^f on [-1/2, 1/2] as 1 + f P(f); relative error 5e-9. A shorter polynomial
// drifts over long memories, where decays near 1 are multiplied up.
MMVSSM_INLINE FloatVec exp2_fraction(FloatVec f) {
  FloatVec p = 0.000154035126f * f + 0.00133907355f;
  p = p * f + 0.00961823749f;
  p = p * f + 0.0555035743f;
  p = p * f + 0.240226498f;
  p = p * f + 0.693147188f;
  return p * f + 1.0f;
}

#if MMVSSM_AVX512
MMVSSM_INLINE FloatVec round_nearest(FloatVec x) {
  return (FloatVec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
MMVSSM_INLINE FloatVec scale_by_power(FloatVec p, FloatVec n) {
  return (FloatVec)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#else
MMVSSM_INLINE FloatVec round_nearest(FloatVec x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers
  return (x + shift) - shift;
}
MMVSSM_INLINE FloatVec scale_by_power(FloatVec p, FloatVec n) {
  // Powers below the normal range flush to zero; a NaN stays one.
  const IntVec exponent = __builtin_convertvector(n, IntVec);
  const FloatVec scaled = (FloatVec)((IntVec)p + (exponent << 23));
  const FloatVec clipped = exponent > 126 ? p * __builtin_inff() : scaled;
  return exponent < -126 ? p * 0.0f : clipped;
}
#endif

// x[j] <- 2^x[j], for decays: x <= 0 unless a rate is positive. Several at a
// time, step by step, so that their chains of dependent operations overlap.
#if MMVSSM_AVX512
// 2^x = 2^floor(r) T[16 frac(r)] 2^(x - r) with r = x rounded to sixteenths: a
// table in one register leaves a cubic. Decays near 1 use the exact entry T[0],
// so nothing drifts over long memories.
template <int Count>
MMVSSM_INLINE void exp2_decay(FloatVec* x) {
  const FloatVec table = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f,
                          1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                          1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                          1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
  constexpr int kSixteenths = (4 << 4) | _MM_FROUND_TO_NEAREST_INT;
  FloatVec r[Count], scale[Count], p[Count];
  for (int j = 0; j < Count; ++j) {
    r[j] = (FloatVec)_mm512_roundscale_ps((__m512)x[j], kSixteenths);
  }
  for (int j = 0; j < Count; ++j) x[j] -= r[j];
  // 1.5 * 2^19 moves the sixteenths to the lowest mantissa bits.
  for (int j = 0; j < Count; ++j) {
    scale[j] = (FloatVec)_mm512_permutexvar_ps(
        _mm512_castps_si512((__m512)(r[j] + 786432.0f)), (__m512)table);
  }
  for (int j = 0; j < Count; ++j) p[j] = 0.0555041087f * x[j] + 0.240233551f;
  for (int j = 0; j < Count; ++j) p[j] = p[j] * x[j] + 0.693147181f;
  for (int j = 0; j < Count; ++j) p[j] = p[j] * x[j] + 1.0f;
  for (int j = 0; j < Count; ++j) p[j] *= scale[j];
  for (int j = 0; j < Count; ++j) x[j] = scale_by_power(p[j], r[j]);
}
#else
template <int Count>
MMVSSM_INLINE void exp2_decay(FloatVec* x) {
  for (int j = 0; j < Count; ++j) {
    FloatVec clipped = x[j] < -150.0f ? FloatVec{} - 150.0f : x[j];
    clipped = clipped > 128.0f ? FloatVec{} + 128.0f : clipped;
    const FloatVec n = round_nearest(clipped);
    x[j] = scale_by_power(exp2_fraction(clipped - n), n);
  }
}
#endif

// exp(-|v|) with the argument reduced in two parts, so that its relative error
// does not grow with |v|.
MMVSSM_INLINE FloatVec exp_negative_abs(FloatVec v) {
  FloatVec x = (FloatVec)((IntVec)v | INT32_MIN);
  x = x < -100.0f ? FloatVec{} - 100.0f : x;
  const FloatVec n = round_nearest(x * 1.44269504f);
  const FloatVec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  return scale_by_power(exp2_fraction(r * 1.44269504f), n);
}

// log(1 + t) on [0, 1] as t P(t), relative error 5e-9: keeps its accuracy for
// small t, where a step size of 1e-3 lives.
MMVSSM_INLINE FloatVec log1p_unit(FloatVec t) {
  FloatVec p = 0.0198514593f - 0.0032440245f * t;
  p = p * t - 0.0569595285f;
  p = p * t + 0.106036543f;
  p = p * t - 0.153055922f;
  p = p * t + 0.196759391f;
  p = p * t - 0.249541336f;
  p = p * t + 0.333299624f;
  p = p * t - 0.499999024f;
  return (p * t + 1.0f) * t;
}

// Step size of a raw step, and its derivative. In single precision
// both reach the linear branch above kSoftplusThreshold by rounding.
MMVSSM_INLINE void softplus(FloatVec raw_step, FloatVec* value,
                            FloatVec* slope) {
  const FloatVec t = exp_negative_abs(raw_step);
  *value = (raw_step < 0.0f ? FloatVec{} : raw_step) + log1p_unit(t);
  *slope = (raw_step < 0.0f ? t : FloatVec{} + 1.0f) / (t + 1.0f);
}

// Double precision serves gradient checks: plain library calls, lane by lane.
template <int Count>
MMVSSM_INLINE void exp2_decay(DoubleVec* x) {
  for (int j = 0; j < Count; ++j) {
    for (int i = 0; i < 8; ++i) x[j][i] = ::exp2(x[j][i]);
  }
}

MMVSSM_INLINE void softplus(DoubleVec raw_step, DoubleVec* value,
                            DoubleVec* slope) {
  for (int i = 0; i < 8; ++i) {
    const double v = raw_step[i], t = ::exp(v > 0 ? -v : v);
    const bool linear = v > kSoftplusThreshold;
    (*value)[i] = linear ? v : (v > 0 ? v : 0.0) + ::log1p(t);
    (*slope)[i] = linear ? 1.0 : (v > 0 ? 1.0 : t) / (1.0 + t);
  }
}

// ---- lanes <-> steps ----------------------------------------------------

// Exchanges the off-diagonal Step x Step blocks of two rows.
template <int Step, typename V, typename I, int... L>
MMVSSM_INLINE void exchange(V* a, V* b, std::integer_sequence<int, L...>) {
  constexpr int W = sizeof...(L);
#ifdef __clang__
  const V low =
      __builtin_shufflevector(*a, *b, ((L & Step) ? W + L - Step : L)...);
  const V high =
      __builtin_shufflevector(*a, *b, ((L & Step) ? W + L : L + Step)...);
#else
  const V low =
      __builtin_shuffle(*a, *b, I{((L & Step) ? W + L - Step : L)...});
  const V high =
      __builtin_shuffle(*a, *b, I{((L & Step) ? W + L : L + Step)...});
#endif
  *a = low;
  *b = high;
}

template <typename S, int Step>
MMVSSM_INLINE void transpose_stage(Vec<S>* v) {
  constexpr int W = Simd<S>::kLanes;
  for (int i = 0; i < W; ++i) {
    if ((i & Step) == 0) {
      exchange<Step, Vec<S>, typename Simd<S>::Index>(
          v + i, v + i + Step, std::make_integer_sequence<int, W>{});
    }
  }
  if constexpr (Step > 1) {
    transpose_stage<S, Step / 2>(v);
  }
}

// Transposes a square of lanes in place.
template <typename S>
MMVSSM_INLINE void transpose(Vec<S>* v) {
  transpose_stage<S, Simd<S>::kLanes / 2>(v);
}

template <typename S, int Step>
MMVSSM_INLINE void sum_stage(Vec<S>* v) {
  for (int i = 0; i < Step; ++i) {
    exchange<Step, Vec<S>, typename Simd<S>::Index>(
        v + i, v + i + Step,
        std::make_integer_sequence<int, Simd<S>::kLanes>{});
    v[i] += v[i + Step];
  }
  if constexpr (Step > 1) {
    sum_stage<S, Step / 2>(v);
  }
}

// Lane i of the result is the sum over the lanes of v[i]; destroys v.
template <typename S>
MMVSSM_INLINE Vec<S> sum_lanes(Vec<S>* v) {
  sum_stage<S, Simd<S>::kLanes / 2>(v);
  return v[0];
}

// ---- memory --------------------------------------------------------------

MMVSSM_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  float f;
  if ((h & 0x7c00) == 0x7c00) {  // infinity, NaN
    const uint32_t bits = sign | 0x7f800000u | magnitude;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
  // 2^112 moves the exponent's bias from half's 15 to single's 127.
  __builtin_memcpy(&f, &magnitude, 4);
  f *= 5.192296858534828e33f;
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  bits |= sign;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// `count` values at `offset` of an array of the given type, the rest zero.
template <typename S>
MMVSSM_INLINE Vec<S> load(const void* base, DType type, int64_t offset,
                          int count) {
  constexpr int W = Simd<S>::kLanes;
  Vec<S> v{};
  if (sizeof(S) == 8 || type == DType::kFloat) {
    const S* p = static_cast<const S*>(base) + offset;
    if (count == W) {
      __builtin_memcpy(&v, p, sizeof(v));
    } else {
      for (int i = 0; i < count; ++i) v[i] = p[i];
    }
  } else if (type == DType::kBFloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(base) + offset;
    IntVec bits{};
    for (int i = 0; i < count; ++i)
      bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    __builtin_memcpy(&v, &bits, sizeof(v));
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(base) + offset;
    for (int i = 0; i < count; ++i) v[i] = half_to_float(p[i]);
  }
  return v;
}

// Stores or adds the first `count` lanes.
template <typename S>
MMVSSM_INLINE void store(S* p, Vec<S> v, int count) {
  if (count == Simd<S>::kLanes) {
    __builtin_memcpy(p, &v, sizeof(v));
  } else {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
}

template <typename S>
MMVSSM_INLINE void add(S* p, Vec<S> v, int count) {
  store<S>(p, load<S>(p, DType::kFloat, 0, count) + v, count);
}

template <typename S>
MMVSSM_INLINE void put(S* p, Vec<S> v, int count, bool adds) {
  if (adds) {
    add<S>(p, v, count);
  } else {
    store<S>(p, v, count);
  }
}

// out[j] lane i = base[offset + i * stride + j] for i < rows, j < columns;
// lanes and columns beyond are zero. `out` has room for whole squares.
template <typename S>
MMVSSM_INLINE void load_columns(const void* base, DType type, int64_t offset,
                                int64_t stride, int rows, int columns,
                                Vec<S>* out) {
  constexpr int W = Simd<S>::kLanes;
  const bool plain = sizeof(S) == 8 || type == DType::kFloat;
  for (int j = 0; j < columns; j += W) {
    if (plain && rows == W && columns - j >= W) {
      const S* p = static_cast<const S*>(base) + offset + j;
      for (int i = 0; i < W; ++i) {
        __builtin_memcpy(out + j + i, p + i * stride, sizeof(Vec<S>));
      }
    } else {
      const int count = at_most(columns - j, W);
      for (int i = 0; i < W; ++i) {
        out[j + i] = i < rows
                         ? load<S>(base, type, offset + i * stride + j, count)
                         : Vec<S>{};
      }
    }
    transpose<S>(out + j);
  }
}

// Asks for the rows of a chunk that will be loaded next.
template <typename S>
MMVSSM_INLINE void prefetch_rows(const void* base, DType type, int64_t offset,
                                 int64_t stride, int rows, int columns) {
  const int64_t size = type == DType::kDouble  ? 8
                       : type == DType::kFloat ? 4
                                               : 2;
  const char* p = static_cast<const char*>(base) + offset * size;
  for (int i = 0; i < rows; ++i) {
    for (int64_t at = 0; at < columns * size; at += 64) {
      __builtin_prefetch(p + i * stride * size + at);
    }
  }
}

// The inverse. Destroys `in`.
template <typename S>
MMVSSM_INLINE void store_columns(S* base, int64_t stride, int rows, int columns,
                                 Vec<S>* in) {
  constexpr int W = Simd<S>::kLanes;
  for (int j = 0; j < columns; j += W) {
    const int count = at_most(columns - j, W);
    transpose<S>(in + j);
    for (int i = 0; i < rows; ++i) {
      store<S>(base + i * stride + j, in[j + i], count);
    }
  }
}

}  // namespace
}  // namespace MMVSSM_ISA
}  // namespace mmvssm
