// The gated scan along routes, and its gradients, on a CPU. Real is float or
// double. Without headers of torch this compiles in a second, for any torch.
#include <cstdint>
#include <vector>

struct Sizes {
  int64_t batch, pixels, channels, routes, length;
};

// Walks along all routes; with dy, back again with the gradients.
extern "C" void scan(const Sizes& n, const int32_t* routes, const Real* x,
                     const Real* gate, Real* y, const Real* dy, Real* dx,
                     Real* dgate) {
  const int64_t C = n.channels;
  for (int64_t b = 0; b < n.batch; ++b)
    for (int64_t k = 0; k < n.routes; ++k) {
      const int32_t* route = routes + k * n.length;
      auto pixel = [&](int64_t l) { return b * n.pixels + route[l]; };
      auto gates = [&](int64_t l) { return (pixel(l) * n.routes + k) * C; };
      // row l is the state before step l; a step of -1 leaves it as it is
      std::vector<Real> states((n.length + 1) * C);
      for (int64_t l = 0; l < n.length; ++l)
        for (int64_t c = 0; c < C; ++c) {
          Real h = states[l * C + c];
          if (route[l] >= 0) {
            h += gate[gates(l) + c] * (x[pixel(l) * C + c] - h);
            if (y) y[pixel(l) * C + c] += h;
          }
          states[(l + 1) * C + c] = h;
        }
      // d is the gradient by the state behind step l
      std::vector<Real> d(C);
      for (int64_t l = n.length - 1; dy && l >= 0; --l)
        for (int64_t c = 0; route[l] >= 0 && c < C; ++c) {
          const int64_t i = pixel(l) * C + c, j = gates(l) + c;
          d[c] += dy[i];
          dx[i] += d[c] * gate[j];
          dgate[j] += d[c] * (x[i] - states[l * C + c]);
          d[c] *= 1 - gate[j];
        }
    }
}
