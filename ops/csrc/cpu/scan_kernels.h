// The selective scan on a CPU, forward and backward, in terms of chunks.
//
// Lanes are channels, time is sequential: the states of one block of channels
// stay in registers while B and C are broadcast. The backward pass walks the
// chunks from the last to the first, recomputes each from its saved state, and
// sweeps back through it.
#pragma once

#include "cpu/layouts.h"

namespace mmvssm {
namespace MMVSSM_ISA {
namespace {

constexpr double kLog2e = 1.4426950408889634;

// Advances Count states by one chunk: h <- 2^(d log2_decay) h + du B, y += C h.
template <int Count, typename S>
MMVSSM_INLINE void forward_states(int steps, const Vec<S>* d, const Vec<S>* du,
                                  Vec<S>* y, const S* B, const S* C,
                                  int64_t step_stride, int64_t state_stride,
                                  const Vec<S>* log2_decays, Vec<S>* h) {
  Vec<S> state[Count], log2_decay[Count];
  for (int j = 0; j < Count; ++j) {
    state[j] = h[j];
    log2_decay[j] = log2_decays[j];
  }
  for (int t = 0; t < steps; ++t) {
    const Vec<S> step = d[t], input = du[t];
    Vec<S> sum = y[t], decay[Count];
    for (int j = 0; j < Count; ++j) decay[j] = step * log2_decay[j];
    exp2_decay<Count>(decay);
    for (int j = 0; j < Count; ++j) {
      state[j] =
          decay[j] * state[j] + input * B[t * step_stride + j * state_stride];
    }
    for (int j = 0; j < Count; ++j) {
      sum += state[j] * C[t * step_stride + j * state_stride];
    }
    y[t] = sum;
  }
  for (int j = 0; j < Count; ++j) h[j] = state[j];
}

template <typename S>
MMVSSM_INLINE void forward_all_states(int64_t d_state, int steps,
                                      const Vec<S>* d, const Vec<S>* du,
                                      Vec<S>* y, const S* B, const S* C,
                                      int64_t ts, int64_t ns,
                                      const Vec<S>* log2_decays, Vec<S>* h) {
  int64_t n = 0;
  for (; n + 4 <= d_state; n += 4) {
    forward_states<4, S>(steps, d, du, y, B + n * ns, C + n * ns, ts, ns,
                         log2_decays + n, h + n);
  }
  for (; n + 2 <= d_state; n += 2) {
    forward_states<2, S>(steps, d, du, y, B + n * ns, C + n * ns, ts, ns,
                         log2_decays + n, h + n);
  }
  if (n < d_state) {
    forward_states<1, S>(steps, d, du, y, B + n * ns, C + n * ns, ts, ns,
                         log2_decays + n, h + n);
  }
}

template <typename S>
MMVSSM_INLINE S* saved_state(const ScanArgs<S>& a, int64_t b, int64_t k,
                             int64_t chunk, int64_t n, int64_t c) {
  const int64_t saved = num_saved_states(a.length);
  const int64_t at =
      (((b * a.num_routes + k) * saved + chunk - 1) * a.d_state + n) *
          a.channels +
      c;
  return a.states + at;
}

// log2(e) A of one route as vectors over channels, (blocks, padded N).
template <typename S>
void load_log2_decays(const ScanArgs<S>& a, const Task& task, int64_t k,
                      int64_t stride, Vec<S>* log2_decays) {
  constexpr int W = Simd<S>::kLanes;
  for (int64_t c = task.channel_begin, i = 0; c < task.channel_end;
       c += W, ++i) {
    const int count = at_most(task.channel_end - c, W);
    load_columns<S>(a.A, DType::kFloat, (k * a.channels + c) * a.d_state,
                    a.d_state, count, static_cast<int>(a.d_state),
                    log2_decays + i * stride);
    for (int64_t n = 0; n < a.d_state; ++n)
      log2_decays[i * stride + n] *= S(kLog2e);
  }
}

template <typename S, template <typename> class Layout>
void forward_task(const typename Layout<S>::Args& a, const Task& task) {
  using V = Vec<S>;
  constexpr int W = Simd<S>::kLanes;
  const int64_t blocks = (task.channel_end - task.channel_begin + W - 1) / W;
  const int64_t states = (a.d_state + W - 1) / W * W;
  Arena arena(Layout<S>::scratch_bytes(a, task) +
              (2 * blocks * states + 5 * kChunk + 8) * sizeof(V) + 1024);
  Layout<S> layout(a, task, &arena);
  V* log2_decays = arena.take<V>(blocks * states);
  V* h = arena.take<V>(blocks * states);
  V* u = arena.take<V>(kChunk);
  V* raw_step = arena.take<V>(kChunk);
  V* du = arena.take<V>(kChunk);
  V* y = arena.take<V>(kChunk);

  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    layout.begin_route(k, task.channel_begin, task.channel_end);
    load_log2_decays<S>(a, task, k, states, log2_decays);
    for (int64_t b = task.batch_begin; b < task.batch_end; ++b) {
      ::memset(h, 0, blocks * states * sizeof(V));
      for (int64_t start = 0; start < a.length; start += kChunk) {
        const int steps = at_most(a.length - start, kChunk);
        layout.begin_chunk(b, k, start, steps);
        for (int64_t c = task.channel_begin, i = 0; c < task.channel_end;
             c += W, ++i) {
          const int count = at_most(task.channel_end - c, W);
          if (a.states != nullptr && start > 0) {
            for (int64_t n = 0; n < a.d_state; ++n) {
              store<S>(saved_state<S>(a, b, k, start / kChunk, n, c),
                       h[i * states + n], count);
            }
          }
          layout.load_inputs(static_cast<int>(i), c, count, u, raw_step);
          const V skip = a.D == nullptr ? V{}
                                        : load<S>(a.D, DType::kFloat,
                                                  k * a.channels + c, count);
          for (int t = 0; t < steps; ++t) {
            V slope;
            if (layout.use_softplus())
              softplus(raw_step[t], &raw_step[t], &slope);
            du[t] = raw_step[t] * u[t];
            y[t] = skip * u[t];
          }
          forward_all_states<S>(a.d_state, steps, raw_step, du, y, layout.B,
                                layout.C, layout.step_stride(),
                                layout.state_stride(), log2_decays + i * states,
                                h + i * states);
          layout.store_output(c, count, y);
        }
      }
      if constexpr (Layout<S>::kFlushesStates) {
        for (int64_t c = task.channel_begin, i = 0; c < task.channel_end;
             c += W, ++i) {
          const int count = at_most(task.channel_end - c, W);
          const int64_t row = (b * a.num_routes + k) * a.channels + c;
          store_columns<S>(a.last_state + row * a.d_state, a.d_state, count,
                           static_cast<int>(a.d_state), h + i * states);
        }
      }
    }
  }
}

// Scratch of the backward sweep over one chunk and one block of channels.
template <typename S>
struct ChunkGrads {
  using V = Vec<S>;
  V *d, *du, *dy;    // step sizes, d * u, output gradient
  V* sum_gB;         // sum over states of g B: gradient of d * u
  V* sum_decay;      // sum over states of A g a h: the decay's part of the step
                     // gradient
  V *decay, *state;  // (2, kChunk + 1) recomputed; state[0] enters the chunk
};

// Recomputes Count states over the chunk, then sweeps back. With e = dL/dy:
// g[t] = e[t] C[t] + a[t+1] g[t+1];  dC = sum e h;  dB = sum g d u.
template <int Count, typename S>
MMVSSM_INLINE void backward_states(int steps, const ChunkGrads<S>& s,
                                   const S* B, const S* C, S* dB, S* dC,
                                   int64_t ts, int64_t ns,
                                   const Vec<S>* log2_decays,
                                   const Vec<S>* entering, Vec<S>* carry,
                                   Vec<S>* dA) {
  using V = Vec<S>;
  constexpr int W = Simd<S>::kLanes;
  constexpr int kRow = kChunk + 1;
  V log2_decay[Count], h[Count];
  for (int j = 0; j < Count; ++j) {
    log2_decay[j] = log2_decays[j];
    h[j] = s.state[j * kRow] = entering[j];
  }
  for (int t = 0; t < steps; ++t) {
    V decay[Count];
    for (int j = 0; j < Count; ++j) decay[j] = s.d[t] * log2_decay[j];
    exp2_decay<Count>(decay);
    for (int j = 0; j < Count; ++j) {
      h[j] = decay[j] * h[j] + s.du[t] * B[t * ts + j * ns];
      s.decay[j * kRow + t] = decay[j];
      s.state[j * kRow + t + 1] = h[j];
    }
  }
  V later[Count], drate[Count];
  for (int j = 0; j < Count; ++j) {
    later[j] = carry[j];
    drate[j] = dA[j];
  }
  for (int t = steps - 1; t >= 0; --t) {
    const V e = s.dy[t], du = s.du[t], d = s.d[t];
    V gB = s.sum_gB[t], decay_part = s.sum_decay[t];
    for (int j = 0; j < Count; ++j) {
      const int64_t at = t * ts + j * ns;
      const V g = e * C[at] + later[j];
      gB += g * B[at];
      later[j] = g * s.decay[j * kRow + t];
      const V through = later[j] * s.state[j * kRow + t];
      decay_part += log2_decay[j] * through;
      drate[j] += d * through;
      // From here on the two arrays hold the terms of dC and dB.
      s.state[j * kRow + t + 1] *= e;
      s.decay[j * kRow + t] = g * du;
    }
    s.sum_gB[t] = gB;
    s.sum_decay[t] = decay_part;
  }
  for (int j = 0; j < Count; ++j) {
    carry[j] = later[j];
    dA[j] = drate[j];
    V *terms_C = s.state + j * kRow + 1, *terms_B = s.decay + j * kRow;
    for (int t = 0; t < steps; t += W) {
      for (int i = steps - t; i < W; ++i) {
        terms_C[t + i] = terms_B[t + i] = V{};
      }
      add<S>(dC + j * kChunk + t, sum_lanes<S>(terms_C + t), W);
      add<S>(dB + j * kChunk + t, sum_lanes<S>(terms_B + t), W);
    }
  }
}

template <typename S, template <typename> class Layout>
void backward_task(const typename Layout<S>::Args& a, const Task& task) {
  using V = Vec<S>;
  constexpr int W = Simd<S>::kLanes;
  const int64_t blocks = (task.channel_end - task.channel_begin + W - 1) / W;
  const int64_t states = (a.d_state + W - 1) / W * W;
  Arena arena(Layout<S>::scratch_bytes(a, task) +
              (3 * blocks * states + 2 * blocks + 14 * kChunk + states + 16) *
                  sizeof(V) +
              1024);
  Layout<S> layout(a, task, &arena);
  V* log2_decays = arena.take<V>(blocks * states);
  V* carry = arena.take<V>(blocks * states);
  V* dA = arena.take<V>(blocks * states);
  V* dD = arena.take<V>(blocks);
  V* dbias = arena.take<V>(blocks);
  V* entering = arena.take<V>(states);
  V* u = arena.take<V>(kChunk);
  V* raw_step = arena.take<V>(kChunk);
  V* slope = arena.take<V>(kChunk);
  ChunkGrads<S> s;
  s.d = arena.take<V>(kChunk);
  s.du = arena.take<V>(kChunk);
  s.dy = arena.take<V>(kChunk);
  s.sum_gB = arena.take<V>(kChunk);
  s.sum_decay = arena.take<V>(kChunk);
  s.decay = arena.take<V>(2 * (kChunk + 1));
  s.state = arena.take<V>(2 * (kChunk + 1));

  for (int64_t k = task.route_begin; k < task.route_end; ++k) {
    layout.begin_route(k, task.channel_begin, task.channel_end);
    load_log2_decays<S>(a, task, k, states, log2_decays);
    ::memset(dA, 0, blocks * states * sizeof(V));
    ::memset(dD, 0, blocks * sizeof(V));
    ::memset(dbias, 0, blocks * sizeof(V));
    for (int64_t b = task.batch_begin; b < task.batch_end; ++b) {
      ::memset(carry, 0, blocks * states * sizeof(V));
      for (int64_t chunk = num_saved_states(a.length); chunk >= 0; --chunk) {
        const int64_t start = chunk * kChunk;
        const int steps = at_most(a.length - start, kChunk);
        layout.begin_chunk(b, k, start, steps);
        for (int64_t c = task.channel_begin, i = 0; c < task.channel_end;
             c += W, ++i) {
          const int count = at_most(task.channel_end - c, W);
          layout.load_inputs(static_cast<int>(i), c, count, u, raw_step);
          layout.load_grad(c, count, s.dy);
          for (int t = 0; t < steps; ++t) {
            s.d[t] = raw_step[t];
            slope[t] = V{} + S(1);
            if (layout.use_softplus())
              softplus(raw_step[t], &s.d[t], &slope[t]);
            s.du[t] = s.d[t] * u[t];
            s.sum_gB[t] = s.sum_decay[t] = V{};
          }
          for (int64_t n = 0; n < a.d_state; ++n) {
            entering[n] = chunk == 0
                              ? V{}
                              : load<S>(saved_state<S>(a, b, k, chunk, n, c),
                                        DType::kFloat, 0, count);
          }
          const int64_t ts = layout.step_stride(), ns = layout.state_stride();
          const int64_t at = i * states;
          int64_t n = 0;
          for (; n + 2 <= a.d_state; n += 2) {
            backward_states<2, S>(steps, s, layout.B + n * ns,
                                  layout.C + n * ns, layout.dB + n * kChunk,
                                  layout.dC + n * kChunk, ts, ns,
                                  log2_decays + at + n, entering + n,
                                  carry + at + n, dA + at + n);
          }
          if (n < a.d_state) {
            backward_states<1, S>(steps, s, layout.B + n * ns,
                                  layout.C + n * ns, layout.dB + n * kChunk,
                                  layout.dC + n * kChunk, ts, ns,
                                  log2_decays + at + n, entering + n,
                                  carry + at + n, dA + at + n);
          }
          const V skip = a.D == nullptr ? V{}
                                        : load<S>(a.D, DType::kFloat,
                                                  k * a.channels + c, count);
          for (int t = 0; t < steps; ++t) {
            // log2_decay is A scaled for base 2.
            const V dstep = u[t] * s.sum_gB[t] + s.sum_decay[t] * S(1 / kLog2e);
            dD[i] += s.dy[t] * u[t];
            u[t] = skip * s.dy[t] + s.d[t] * s.sum_gB[t];
            raw_step[t] = dstep * slope[t];
            dbias[i] += raw_step[t];
          }
          layout.store_grads(static_cast<int>(i), c, count, u, raw_step);
        }
        layout.end_chunk_backward();
      }
    }
    layout.end_route(task.slot);
    for (int64_t c = task.channel_begin, i = 0; c < task.channel_end;
         c += W, ++i) {
      const int count = at_most(task.channel_end - c, W);
      const int64_t row = (task.slot * a.num_routes + k) * a.channels + c;
      store_columns<S>(a.dA + row * a.d_state, a.d_state, count,
                       static_cast<int>(a.d_state), dA + i * states);
      if (a.dD != nullptr) store<S>(a.dD + row, dD[i], count);
      if (a.dbias != nullptr) store<S>(a.dbias + row, dbias[i], count);
    }
  }
}

}  // namespace
}  // namespace MMVSSM_ISA
}  // namespace mmvssm
