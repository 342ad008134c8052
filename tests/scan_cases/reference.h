// The scan along routes and the scan of sequences, step by step in double, with
// their gradients by hand: what the kernels are compared with.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

using Array = std::vector<double>;

// One channel of one sequence. Everything is read and added by callbacks, so
// that both forms share the recurrence:
//   h_l = exp(d_l A) h_{l-1} + d_l u_l B_l,  y_l = C_l h_l + D u_l.
struct Channel {
  int length, d_state;
  Array u, d, slope;  // (L): input, step size, d(step size)/d(its argument)
  Array B, C;         // (L, N)
  const double* A;    // (N)
  double D;

  Array h;  // (L + 1, N): h[0] = 0
  Array y;  // (L)

  Array du, d_raw_step, dB, dC,
      dA;  // d_raw_step: by the argument of the step size
  double dD;

  void forward() {
    const size_t N = static_cast<size_t>(d_state);
    h.assign((static_cast<size_t>(length) + 1) * N, 0.0);
    y.assign(static_cast<size_t>(length), 0.0);
    for (size_t l = 0; l < static_cast<size_t>(length); ++l) {
      y[l] = D * u[l];
      for (size_t n = 0; n < N; ++n) {
        const double next =
            std::exp(d[l] * A[n]) * h[l * N + n] + d[l] * u[l] * B[l * N + n];
        h[(l + 1) * N + n] = next;
        y[l] += C[l * N + n] * next;
      }
    }
  }

  void backward(const Array& dy) {
    const size_t N = static_cast<size_t>(d_state);
    du.assign(u.size(), 0.0);
    d_raw_step.assign(u.size(), 0.0);
    dB.assign(B.size(), 0.0);
    dC.assign(C.size(), 0.0);
    dA.assign(N, 0.0);
    dD = 0.0;
    Array dh(N, 0.0);  // by the state after the step
    for (size_t l = u.size(); l-- > 0;) {
      dD += dy[l] * u[l];
      du[l] = D * dy[l];
      double dd = 0.0;
      for (size_t n = 0; n < N; ++n) {
        const double before = h[l * N + n];
        const double decay = std::exp(d[l] * A[n]);
        dC[l * N + n] = dy[l] * h[(l + 1) * N + n];
        dh[n] += dy[l] * C[l * N + n];
        dB[l * N + n] = dh[n] * d[l] * u[l];
        du[l] += dh[n] * d[l] * B[l * N + n];
        dd += dh[n] * (u[l] * B[l * N + n] + A[n] * decay * before);
        dA[n] += dh[n] * d[l] * decay * before;
        dh[n] *= decay;
      }
      d_raw_step[l] = dd * slope[l];
    }
  }
};

inline double softplus(double raw_step) {
  return raw_step > 20 ? raw_step : std::log1p(std::exp(raw_step));
}
inline double softplus_slope(double raw_step) {
  return raw_step > 20 ? 1.0 : 1.0 / (1.0 + std::exp(-raw_step));
}

struct Scan2d {
  size_t batch, num_routes, channels, d_state, dt_rank, length, pixels,
      out_rows;
  bool x_per_route, shared_projection, merge;
  Array x, x_dbl, A, dt_weight, bias, D, dy;
  std::vector<int32_t> routes, out_routes;
  Array y, states, dx, dx_dbl, dA, ddt_weight, dbias, dD;

  void run(size_t chunk) {
    const size_t width = dt_rank + 2 * d_state;
    const size_t rows = merge ? 1 : num_routes;
    const size_t saved = (length - 1) / chunk;
    y.assign(batch * out_rows * rows * channels, 0.0);
    states.assign(batch * num_routes * saved * d_state * channels, 0.0);
    dx.assign(x.size(), 0.0);
    dx_dbl.assign(x_dbl.size(), 0.0);
    dA.assign(A.size(), 0.0);
    ddt_weight.assign(dt_weight.size(), 0.0);
    dbias.assign(bias.size(), 0.0);
    dD.assign(D.size(), 0.0);
    for (size_t b = 0; b < batch; ++b) {
      for (size_t k = 0; k < num_routes; ++k) {
        for (size_t c = 0; c < channels; ++c) channel(b, k, c, width, chunk);
      }
    }
  }

 private:
  void channel(size_t b, size_t k, size_t c, size_t width, size_t chunk) {
    const size_t row = k * channels + c;
    const double* w = &dt_weight[row * dt_rank];
    const auto x_at = [&](int32_t pixel) {
      const size_t p = b * pixels + static_cast<size_t>(pixel);
      return x_per_route ? (p * num_routes + k) * channels + c
                         : p * channels + c;
    };
    const auto row_at = [&](int32_t pixel) {
      const size_t p = b * pixels + static_cast<size_t>(pixel);
      return (shared_projection ? p : p * num_routes + k) * width;
    };
    const auto y_at = [&](int32_t pixel) {
      const size_t p = b * out_rows + static_cast<size_t>(pixel);
      return merge ? p * channels + c : (p * num_routes + k) * channels + c;
    };

    Channel scan;
    scan.length = static_cast<int>(length);
    scan.d_state = static_cast<int>(d_state);
    scan.A = &A[row * d_state];
    scan.D = D.empty() ? 0.0 : D[row];
    Array e(length, 0.0);
    for (size_t l = 0; l < length; ++l) {
      const int32_t source = routes[k * length + l];
      const int32_t target = out_routes[k * length + l];
      double raw_step = bias[row];
      for (size_t r = 0; r < dt_rank && source >= 0; ++r) {
        raw_step += w[r] * x_dbl[row_at(source) + r];
      }
      scan.u.push_back(source < 0 ? 0.0 : x[x_at(source)]);
      scan.d.push_back(softplus(raw_step));
      scan.slope.push_back(softplus_slope(raw_step));
      for (size_t n = 0; n < d_state; ++n) {
        const size_t at = source < 0 ? 0 : row_at(source) + dt_rank + n;
        scan.B.push_back(source < 0 ? 0.0 : x_dbl[at]);
        scan.C.push_back(source < 0 ? 0.0 : x_dbl[at + d_state]);
      }
      if (target >= 0) e[l] = dy[y_at(target)];
    }
    scan.forward();
    for (size_t l = 0; l < length; ++l) {
      const int32_t target = out_routes[k * length + l];
      if (target >= 0) y[y_at(target)] += scan.y[l];
    }
    const size_t saved = (length - 1) / chunk;
    for (size_t s = 0; s < saved; ++s) {
      for (size_t n = 0; n < d_state; ++n) {
        states[(((b * num_routes + k) * saved + s) * d_state + n) * channels +
               c] = scan.h[(s + 1) * chunk * d_state + n];
      }
    }

    scan.backward(e);
    for (size_t l = 0; l < length; ++l) {
      dbias[row] += scan.d_raw_step[l];
      const int32_t source = routes[k * length + l];
      if (source < 0) continue;
      dx[x_at(source)] += scan.du[l];
      const size_t at = row_at(source);
      for (size_t r = 0; r < dt_rank; ++r) {
        dx_dbl[at + r] += scan.d_raw_step[l] * w[r];
        ddt_weight[row * dt_rank + r] += scan.d_raw_step[l] * x_dbl[at + r];
      }
      for (size_t n = 0; n < d_state; ++n) {
        dx_dbl[at + dt_rank + n] += scan.dB[l * d_state + n];
        dx_dbl[at + dt_rank + d_state + n] += scan.dC[l * d_state + n];
      }
    }
    for (size_t n = 0; n < d_state; ++n) dA[row * d_state + n] += scan.dA[n];
    if (!D.empty()) dD[row] += scan.dD;
  }
};

struct Scan1d {
  size_t batch, num_routes, channels, d_state, length;
  bool softplus;
  Array u, delta, A, B, C, bias, D, dy;
  Array y, last_state, states, du, ddelta, dA, dB, dC, dbias, dD;

  void run(size_t chunk) {
    const size_t saved = (length - 1) / chunk;
    y.assign(u.size(), 0.0);
    last_state.assign(batch * A.size(), 0.0);
    states.assign(batch * num_routes * saved * d_state * channels, 0.0);
    du.assign(u.size(), 0.0);
    ddelta.assign(u.size(), 0.0);
    dA.assign(A.size(), 0.0);
    dB.assign(B.size(), 0.0);
    dC.assign(C.size(), 0.0);
    dbias.assign(bias.size(), 0.0);
    dD.assign(D.size(), 0.0);
    for (size_t b = 0; b < batch; ++b) {
      for (size_t row = 0; row < num_routes * channels; ++row) {
        channel(b, row, chunk);
      }
    }
  }

 private:
  void channel(size_t b, size_t row, size_t chunk) {
    const size_t at = (b * num_routes * channels + row) * length;
    const size_t k = row / channels;
    const auto map_at = [&](size_t n, size_t l) {
      return ((b * num_routes + k) * d_state + n) * length + l;
    };
    Channel scan;
    scan.length = static_cast<int>(length);
    scan.d_state = static_cast<int>(d_state);
    scan.A = &A[row * d_state];
    scan.D = D.empty() ? 0.0 : D[row];
    Array e;
    for (size_t l = 0; l < length; ++l) {
      const double raw_step = delta[at + l] + (bias.empty() ? 0.0 : bias[row]);
      scan.u.push_back(u[at + l]);
      scan.d.push_back(softplus ? reference::softplus(raw_step) : raw_step);
      scan.slope.push_back(softplus ? softplus_slope(raw_step) : 1.0);
      for (size_t n = 0; n < d_state; ++n) {
        scan.B.push_back(B[map_at(n, l)]);
        scan.C.push_back(C[map_at(n, l)]);
      }
      e.push_back(dy[at + l]);
    }
    scan.forward();
    scan.backward(e);
    const size_t saved = (length - 1) / chunk;
    for (size_t n = 0; n < d_state; ++n) {
      last_state[(b * num_routes * channels + row) * d_state + n] =
          scan.h[length * d_state + n];
      dA[row * d_state + n] += scan.dA[n];
      for (size_t s = 0; s < saved; ++s) {
        states[(((b * num_routes + k) * saved + s) * d_state + n) * channels +
               row % channels] = scan.h[(s + 1) * chunk * d_state + n];
      }
    }
    for (size_t l = 0; l < length; ++l) {
      y[at + l] = scan.y[l];
      du[at + l] = scan.du[l];
      ddelta[at + l] = scan.d_raw_step[l];
      if (!bias.empty()) dbias[row] += scan.d_raw_step[l];
      for (size_t n = 0; n < d_state; ++n) {
        dB[map_at(n, l)] += scan.dB[l * d_state + n];
        dC[map_at(n, l)] += scan.dC[l * d_state + n];
      }
    }
    if (!D.empty()) dD[row] += scan.dD;
  }
};

}  // namespace reference
