// The selective scan of Mamba (Gu & Dao 2023, algorithm 2) with softplus, D skip, SiLU gate and carried state.
//
// u, delta, z, y(B,T,E), A(E,N), B, C(B,T,N), D, delta_bias(E), state(B,E,N). Per batch, channel and state n, with
// w = delta + delta_bias (delta_bias may be absent: 0) and dt = softplus(w) or w:
//   (1) a[t] = exp(dt[t] A),  h[t] = a[t] h[t-1] + dt[t] B[t] u[t],  h[-1] = state (absent: 0)
//   (2) s[t] = sum_n C[t] h[t] + D u[t]                              (D absent: 0)
//   (3) y[t] = s[t] silu(z[t])                                       (z absent: s[t])
// From step lengths[b] on dt is 0 (lengths absent: nowhere).
// chunks(B,ceil(T/chunk),E,N): h before step c * chunk. kept(T,B,E,N): h after step t. state_out: h after the last
// step.
//
// Gradient, backwards in t; g = dL/dh[t] starts as dstate_out (absent: 0), and h is recomputed from each chunk's start:
//   (4) ds = dy silu(z),  dz = dy s silu'(z),  dC += ds h[t] (sum over E),  dD += ds u,  g += ds C[t]
//   (5) ddt = sum_n g (A a h[t-1] + B u),  dA += g dt a h[t-1],  dB += g dt u (sum over E),  du = ds D + dt sum_n g B
//   (6) dw = ddt softplus'(w) or ddt,  ddelta = dw,  ddelta_bias += dw;  then g <- a g, and before step 0 g is dstate
#pragma once
#include <algorithm>

#include "elementwise.h"

namespace mb::ref {

struct ScanSizes {
  int64_t B, T, E, N, chunk;
  int64_t chunk_count() const { return (T + chunk - 1) / chunk; }
};

struct ScanInputs {
  ScanSizes size;
  bool softplus;
  Vec u, delta, A, B, C, D, z, delta_bias, state;  // D, z, delta_bias, state: empty where absent
  Vec lengths = {};                                // empty: all steps count

  double shifted_delta(int64_t bt, int64_t e) const {
    return delta[bt * size.E + e] + (delta_bias.empty() ? 0 : delta_bias[e]);
  }
  double step(int64_t bt, int64_t e) const {
    if (!lengths.empty() && double(bt % size.T) >= lengths[bt / size.T]) return 0;
    return softplus ? softplus_of(shifted_delta(bt, e)) : shifted_delta(bt, e);
  }
  // Equation (1) for one channel, in place; h has N values.
  void advance(double* h, int64_t bt, int64_t e) const {
    const double dt = step(bt, e);
    for (int64_t n = 0; n < size.N; n++) {
      h[n] = std::exp(dt * A[e * size.N + n]) * h[n] + dt * B[bt * size.N + n] * u[bt * size.E + e];
    }
  }
  // Equation (2).
  double output(const double* h, int64_t bt, int64_t e) const {
    double s = D.empty() ? 0 : D[e] * u[bt * size.E + e];
    for (int64_t n = 0; n < size.N; n++) s += C[bt * size.N + n] * h[n];
    return s;
  }
};

struct ScanOutputs {
  Vec y, state, chunks, kept;
};

// kept takes T times the state, so it is filled on request only.
inline ScanOutputs scan_of(const ScanInputs& in, bool keep) {
  const auto [B, T, E, N, chunk] = in.size;
  const int64_t chunk_count = in.size.chunk_count();
  ScanOutputs out{Vec(B * T * E), Vec(B * E * N), Vec(B * chunk_count * E * N), Vec(keep ? T * B * E * N : 0)};
  if (!in.state.empty()) out.state = in.state;
  for (int64_t b = 0; b < B; b++) {
    for (int64_t e = 0; e < E; e++) {
      double* h = &out.state[(b * E + e) * N];
      for (int64_t t = 0; t < T; t++) {
        const int64_t bt = b * T + t;
        if (t % chunk == 0) std::copy(h, h + N, &out.chunks[((b * chunk_count + t / chunk) * E + e) * N]);
        in.advance(h, bt, e);
        const double s = in.output(h, bt, e);
        out.y[bt * E + e] = in.z.empty() ? s : s * silu_of(in.z[bt * E + e]);
        if (keep) std::copy(h, h + N, &out.kept[((t * B + b) * E + e) * N]);
      }
    }
  }
  return out;
}

struct ScanGradients {
  Vec du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dstate;
};

// Equations (4) to (6) of one channel at one step. before, after: h[t-1] and h[t]; g: dL/dh, carried.
inline void scan_gradient_step(const ScanInputs& in, const Vec& dy, int64_t bt, int64_t e, const double* before,
                               const double* after, double* g, ScanGradients& grad) {
  const int64_t E = in.size.E, N = in.size.N, i = bt * E + e;
  const double u = in.u[i], dt = in.step(bt, e);
  double ds = dy[i];
  if (!in.z.empty()) {
    grad.dz[i] = dy[i] * in.output(after, bt, e) * silu_slope(in.z[i]);
    ds *= silu_of(in.z[i]);
  }
  double ddt = 0, du = in.D.empty() ? 0 : ds * in.D[e];
  grad.dD[e] += ds * u;
  for (int64_t n = 0; n < N; n++) {
    const double A = in.A[e * N + n], B = in.B[bt * N + n], a = std::exp(dt * A);
    grad.dC[bt * N + n] += ds * after[n];
    g[n] += ds * in.C[bt * N + n];
    ddt += g[n] * (A * a * before[n] + B * u);
    grad.dA[e * N + n] += g[n] * dt * a * before[n];
    grad.dB[bt * N + n] += g[n] * dt * u;
    du += g[n] * dt * B;
    g[n] *= a;
  }
  const double dw = in.softplus ? ddt * softplus_slope(in.shifted_delta(bt, e)) : ddt;
  grad.du[i] = du;
  grad.ddelta[i] = dw;
  grad.ddelta_bias[e] += dw;
}

inline ScanGradients scan_gradient(const ScanInputs& in, const Vec& dy, const Vec& chunks, const Vec& dstate_out) {
  const auto [B, T, E, N, chunk] = in.size;
  const int64_t chunk_count = in.size.chunk_count();
  ScanGradients grad{Vec(B * T * E), Vec(B * T * E), Vec(E * N), Vec(B * T * N), Vec(B * T * N),
                     Vec(E),         Vec(B * T * E), Vec(E),     Vec(B * E * N)};
  if (!dstate_out.empty()) grad.dstate = dstate_out;
  Vec h((chunk + 1) * N);  // states before each step of a chunk, and after its last
  for (int64_t b = 0; b < B; b++) {
    for (int64_t e = 0; e < E; e++) {
      double* g = &grad.dstate[(b * E + e) * N];
      for (int64_t c = chunk_count - 1; c >= 0; c--) {
        const int64_t first = c * chunk, steps = std::min(chunk, T - first);
        const double* start = &chunks[((b * chunk_count + c) * E + e) * N];
        std::copy(start, start + N, h.begin());
        for (int64_t j = 0; j < steps; j++) {
          std::copy(&h[j * N], &h[j * N] + N, &h[(j + 1) * N]);
          in.advance(&h[(j + 1) * N], b * T + first + j, e);
        }
        for (int64_t j = steps - 1; j >= 0; j--) {
          scan_gradient_step(in, dy, b * T + first + j, e, &h[j * N], &h[(j + 1) * N], g, grad);
        }
      }
    }
  }
  return grad;
}

// No chunk length means one chunk.
inline ScanSizes scan_sizes(const Tensor& u, const Tensor& A, double chunk) {
  const int64_t T = u.dim(1);
  return {u.dim(0), T, u.dim(2), A.cols(), chunk >= 1 ? static_cast<int64_t>(chunk) : std::max<int64_t>(T, 1)};
}

inline void selective_scan(const Node& node) {
  namespace in = at::selective_scan::in;
  namespace out = at::selective_scan::out;
  namespace attr = at::selective_scan::attr;
  const ScanInputs inputs{scan_sizes(node.in(in::u), node.in(in::A), node.attr(attr::chunk)),
                          node.attr(attr::softplus) != 0,
                          load(node.in(in::u)),
                          load(node.in(in::delta)),
                          load(node.in(in::A)),
                          load(node.in(in::B)),
                          load(node.in(in::C)),
                          load(node.in(in::D)),
                          load(node.in(in::z)),
                          load(node.in(in::delta_bias)),
                          load(node.in(in::state)),
                          load(node.in(in::lengths))};
  const ScanOutputs outputs = scan_of(inputs, static_cast<bool>(node.out(out::kept)));
  store(node.out(out::y), outputs.y);
  store(node.out(out::state_out), outputs.state);
  store(node.out(out::chunks), outputs.chunks);
  store(node.out(out::kept), outputs.kept);
}

inline void selective_scan_grad(const Node& node) {
  namespace in = at::selective_scan_grad::in;
  namespace out = at::selective_scan_grad::out;
  namespace attr = at::selective_scan_grad::attr;
  const ScanInputs inputs{scan_sizes(node.in(in::u), node.in(in::A), node.attr(attr::chunk)),
                          node.attr(attr::softplus) != 0,
                          load(node.in(in::u)),
                          load(node.in(in::delta)),
                          load(node.in(in::A)),
                          load(node.in(in::B)),
                          load(node.in(in::C)),
                          load(node.in(in::D)),
                          load(node.in(in::z)),
                          load(node.in(in::delta_bias)),
                          {}};
  const ScanGradients grad =
      scan_gradient(inputs, load(node.in(in::dy)), load(node.in(in::chunks)), load(node.in(in::dstate_out)));
  const bool accumulate = node.attr(attr::accumulate) != 0;
  store(node.out(out::du), grad.du);
  store(node.out(out::ddelta), grad.ddelta);
  store_gradient(node.out(out::dA), grad.dA, accumulate);
  store(node.out(out::dB), grad.dB);
  store(node.out(out::dC), grad.dC);
  store_gradient(node.out(out::dD), grad.dD, accumulate);
  store(node.out(out::dz), grad.dz);
  store_gradient(node.out(out::ddelta_bias), grad.ddelta_bias, accumulate);
  store(node.out(out::dstate), grad.dstate);
}

}  // namespace mb::ref
