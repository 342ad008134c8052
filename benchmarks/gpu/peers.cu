// The design of the scan kernels that other implementations share, written down
// from its published description to be compared by the same model: never run,
// never shipped.
//
// A block owns one row (batch, route, channel) and takes 2,048 steps at a time,
// 16 in a row each thread. Whatever it reads or writes changes between striped
// and blocked order through shared memory. State after state it reads B and C
// of the steps and scans the pairs (decay, input) over the block.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace peers {

constexpr int kThreads = 128;
constexpr int kItems = 16;
constexpr int kChunk = kThreads * kItems;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxStates = 256;

struct Params {
  const void *u, *delta;  // (Bt, K*D, L)
  const void *B, *C;      // (Bt, K, N, L)
  const float *A, *D, *bias;
  float* y;                // (Bt, K*D, L)
  float2* prefixes;        // (Bt, K*D, chunks, N): written forward
  const float* dy;         // (Bt, K*D, L)
  void *du, *ddelta;       // (Bt, K*D, L)
  float *dB, *dC;          // (Bt, K, N, L): added to
  float *dA, *dD, *dbias;  // added to
  int rows, channels, states, length;
};

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ void put(float* to, float x) { *to = x; }
__device__ void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16(x); }
__device__ void put(__half* to, float x) { *to = __float2half(x); }

// Steps of a warp, through shared memory with a word of padding in 32.
struct Exchange {
  float values[kThreads * kItems + kThreads * kItems / 32];

  static __device__ int lane() { return threadIdx.x % 32; }
  static __device__ int warp() { return threadIdx.x / 32; }
  // The step and the place of a thread's i-th item in striped order, and the
  // place of it in blocked order.
  static __device__ int striped_step(int i) {
    return warp() * 32 * kItems + lane() + i * 32;
  }
  static __device__ int striped(int i) {
    return warp() * 33 * kItems + lane() + i * 33;
  }
  static __device__ int blocked(int i) {
    return static_cast<int>(threadIdx.x) * kItems +
           static_cast<int>(threadIdx.x) / 2 + i;
  }

  // A warp has a part of its own, so that it waits for no other.
  template <typename T>
  static __device__ void fetch(const T* from, int there,
                               float (&items)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int l = striped_step(i);
      items[i] = l < there ? to_float(from[l]) : 0.0f;
    }
  }
  __device__ void to_blocked(float (&items)[kItems]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kItems; ++i) values[striped(i)] = items[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kItems; ++i) items[i] = values[blocked(i)];
  }

  // visit(step, value) for the steps that exist, neighbours side by side.
  template <typename Visit>
  __device__ void each(const float (&items)[kItems], int there,
                       const Visit& visit) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kItems; ++i) values[blocked(i)] = items[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int l = striped_step(i);
      if (l < there) visit(l, values[striped(i)]);
    }
  }
};

// h -> a h + b
struct Affine {
  float a, b;
  __device__ Affine then(const Affine& next) const {
    return {a * next.a, fmaf(next.a, b, next.b)};
  }
};

// Inclusive scan over the block; `from_end` scans from the last step. Returns
// the whole block's. The next scan must be given other `totals`.
__device__ Affine block_scan(Affine (&items)[kItems], const Affine& before,
                             bool from_end, Affine* totals) {
  Affine own = items[from_end ? kItems - 1 : 0];
#pragma unroll
  for (int i = 1; i < kItems; ++i) {
    own = own.then(items[from_end ? kItems - 1 - i : i]);
  }
  const int lane = threadIdx.x % 32;
  const int rank = from_end ? 31 - lane : lane;
  Affine inclusive = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    Affine other;
    other.a = from_end ? __shfl_down_sync(~0u, inclusive.a, step)
                       : __shfl_up_sync(~0u, inclusive.a, step);
    other.b = from_end ? __shfl_down_sync(~0u, inclusive.b, step)
                       : __shfl_up_sync(~0u, inclusive.b, step);
    if (rank >= step) inclusive = other.then(inclusive);
  }
  Affine carry;
  carry.a = from_end ? __shfl_down_sync(~0u, inclusive.a, 1)
                     : __shfl_up_sync(~0u, inclusive.a, 1);
  carry.b = from_end ? __shfl_down_sync(~0u, inclusive.b, 1)
                     : __shfl_up_sync(~0u, inclusive.b, 1);
  if (rank == 0) carry = {1.0f, 0.0f};
  const int warp = from_end ? kWarps - 1 - static_cast<int>(threadIdx.x) / 32
                            : static_cast<int>(threadIdx.x) / 32;
  if (rank == 31) totals[warp] = inclusive;
  __syncthreads();
  Affine all = before;
  Affine mine = before;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) mine = all;
    all = all.then(totals[w]);
  }
  carry = mine.then(carry);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    Affine& item = items[from_end ? kItems - 1 - i : i];
    carry = carry.then(item);
    item = carry;
  }
  return all;
}

struct Shared {
  Exchange exchange[2];
  Affine totals[4][kWarps];
  float decays[2][kThreads];
  Affine prefixes[kMaxStates], suffixes[kMaxStates];
};

__device__ float softplus(float x) { return x <= 20.0f ? log1pf(expf(x)) : x; }

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) peer_forward(const Params p) {
  __shared__ Shared s;
  const int row = blockIdx.x % p.rows;
  const int64_t route = blockIdx.x / p.channels;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.length;
  const T* u = static_cast<const T*>(p.u) + start;
  const T* delta = static_cast<const T*>(p.delta) + start;
  const int chunks = (p.length + kChunk - 1) / kChunk;
  const float bias = p.bias[row], skip = p.D[row];
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    const int there = min(kChunk, p.length - c * kChunk);
    float us[kItems], ds[kItems], ys[kItems];
    Exchange::fetch(u + c * kChunk, there, us);
    Exchange::fetch(delta + c * kChunk, there, ds);
    s.exchange[0].to_blocked(us);
    s.exchange[1].to_blocked(ds);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      ds[i] = softplus(ds[i] + bias);
      ys[i] = skip * us[i];
    }
#pragma unroll 1
    for (int n = 0; n < p.states; ++n) {
      const float rate = p.A[row * p.states + n] * 1.4426950408889634f;
      const int64_t at = (route * p.states + n) * p.length + c * kChunk;
      float Bs[kItems], Cs[kItems];
      Exchange::fetch(static_cast<const T*>(p.B) + at, there, Bs);
      Exchange::fetch(static_cast<const T*>(p.C) + at, there, Cs);
      s.exchange[0].to_blocked(Bs);
      s.exchange[1].to_blocked(Cs);
      Affine items[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool exists = static_cast<int>(threadIdx.x) * kItems + i < there;
        items[i] = {exists ? exp2f(ds[i] * rate) : 1.0f,
                    exists ? ds[i] * us[i] * Bs[i] : 0.0f};
      }
      Affine before{1.0f, 0.0f};
      if (c > 0) before = s.prefixes[n];
      const Affine all = block_scan(items, before, false, s.totals[n % 2]);
      if (threadIdx.x == 0) {
        s.prefixes[n] = all;
        p.prefixes[(static_cast<int64_t>(blockIdx.x) * chunks + c) * p.states +
                   n] = {all.a, all.b};
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) ys[i] = fmaf(items[i].b, Cs[i], ys[i]);
    }
    s.exchange[0].each(ys, there, [&](int l, float value) {
      p.y[start + c * kChunk + l] = value;
    });
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) peer_backward(const Params p) {
  __shared__ Shared s;
  const int row = blockIdx.x % p.rows;
  const int64_t route = blockIdx.x / p.channels;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.length;
  const int chunks = (p.length + kChunk - 1) / kChunk;
  const float bias = p.bias[row], skip = p.D[row];
  float dD = 0.0f, dbias = 0.0f;
#pragma unroll 1
  for (int c = chunks - 1; c >= 0; --c) {
    const int there = min(kChunk, p.length - c * kChunk);
    const int64_t from = start + c * kChunk;
    float us[kItems], ds[kItems], es[kItems], dus[kItems], dds[kItems];
    Exchange::fetch(static_cast<const T*>(p.u) + from, there, us);
    Exchange::fetch(static_cast<const T*>(p.delta) + from, there, ds);
    Exchange::fetch(p.dy + from, there, es);
    s.exchange[0].to_blocked(us);
    s.exchange[1].to_blocked(ds);
    s.exchange[0].to_blocked(es);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      ds[i] = softplus(ds[i] + bias);
      dus[i] = skip * es[i];
      dds[i] = 0.0f;
      dD = fmaf(es[i], us[i], dD);
    }
#pragma unroll 1
    for (int n = 0; n < p.states; ++n) {
      const float A = p.A[row * p.states + n];
      const int64_t at = (route * p.states + n) * p.length + c * kChunk;
      float Bs[kItems], Cs[kItems];
      Exchange::fetch(static_cast<const T*>(p.B) + at, there, Bs);
      Exchange::fetch(static_cast<const T*>(p.C) + at, there, Cs);
      s.exchange[0].to_blocked(Bs);
      s.exchange[1].to_blocked(Cs);
      Affine forth[kItems], back[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool exists = static_cast<int>(threadIdx.x) * kItems + i < there;
        const float decay = exists ? exp2f(ds[i] * A * 1.4426950408889634f) : 1;
        forth[i] = {decay, exists ? ds[i] * us[i] * Bs[i] : 0.0f};
        if (i > 0) back[i - 1].a = decay;
        back[i].b = es[i] * Cs[i];
      }
      // The decay of the step after the thread's last.
      s.decays[n % 2][threadIdx.x] = forth[0].a;
      __syncthreads();
      back[kItems - 1].a =
          threadIdx.x + 1 < kThreads ? s.decays[n % 2][threadIdx.x + 1] : 1.0f;
      Affine before{1.0f, 0.0f};
      if (c > 0) {
        const float2 saved =
            p.prefixes[(static_cast<int64_t>(blockIdx.x) * chunks + c - 1) *
                           p.states +
                       n];
        before = {saved.x, saved.y};
      }
      block_scan(forth, before, false, s.totals[n % 2]);
      Affine after{1.0f, 0.0f};
      if (c < chunks - 1) after = s.suffixes[n];
      const Affine all = block_scan(back, after, true, s.totals[2 + n % 2]);
      if (threadIdx.x == 0) s.suffixes[n] = all;
      float dA = 0.0f, dBs[kItems], dCs[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float g = back[i].b, h = forth[i].b;
        const float kept = h - ds[i] * us[i] * Bs[i];
        dus[i] = fmaf(g * ds[i], Bs[i], dus[i]);
        dds[i] += g * (us[i] * Bs[i] + A * kept);
        dA += g * ds[i] * kept;
        dBs[i] = g * ds[i] * us[i];
        dCs[i] = es[i] * h;
      }
      s.exchange[0].each(dBs, there, [&](int l, float value) {
        atomicAdd(p.dB + at + l, value);
      });
      s.exchange[1].each(dCs, there, [&](int l, float value) {
        atomicAdd(p.dC + at + l, value);
      });
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        dA += __shfl_xor_sync(~0u, dA, step);
      }
      if (threadIdx.x % 32 == 0) atomicAdd(p.dA + row * p.states + n, dA);
    }
    float raw[kItems];
    Exchange::fetch(static_cast<const T*>(p.delta) + from, there, raw);
    s.exchange[0].to_blocked(raw);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float x = raw[i] + bias;
      dds[i] = x <= 20.0f ? dds[i] / (1.0f + expf(-x)) : dds[i];
      dbias += dds[i];
    }
    s.exchange[0].each(dus, there, [&](int l, float value) {
      put(static_cast<T*>(p.du) + from + l, value);
    });
    s.exchange[1].each(dds, there, [&](int l, float value) {
      put(static_cast<T*>(p.ddelta) + from + l, value);
    });
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    dD += __shfl_xor_sync(~0u, dD, step);
    dbias += __shfl_xor_sync(~0u, dbias, step);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(p.dD + row, dD);
    atomicAdd(p.dbias + row, dbias);
  }
}

template __global__ void peer_forward<float>(const Params);
template __global__ void peer_forward<__nv_bfloat16>(const Params);
template __global__ void peer_backward<float>(const Params);
template __global__ void peer_backward<__nv_bfloat16>(const Params);

}  // namespace peers
