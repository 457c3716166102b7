// Diagonal state space model with complex states (S4D, Gu et al. 2022). u, y(B,T,E), log_dt, D(E), log_A_real,
// A_imag(E,M), Ab, Bb, C(E,M,2), state(B,E,M,2), k(E,T); pairs are real and imaginary parts. Per channel, sums over its
// M states:
//   (1) A = -exp(log_A_real) + i A_imag,  dt = exp(log_dt),  Ab = exp(dt A),  Bb = (Ab - 1) / A
//   (2) h[t] = Ab h[t-1] + Bb u[t],  h[-1] = state (absent: 0);  y[t] = 2 Re(sum C h[t]) + D u[t]  (D absent: 0)
//   (3) k[l] = 2 Re(sum C Bb Ab^l)
// Gradients are pairs g of derivatives by real and imaginary part, so that dL = Re(conj(g) dz); a derivative X with
// dL = 2 Re(X dz) is the pair 2 conj(X). With p = conj(dAb), q = conj(dBb):
//   (4) dA = conj(p dt Ab + q dBb/dA),  ddt = Re sum (p A + q) Ab;  dlog_A_real = Re(dA) Re(A),  dlog_dt = ddt dt
//   (5) S = sum_l dk[l] Ab^l,  S' = sum_l l dk[l] Ab^(l-1):  dC = 2 conj(S Bb),  dBb = 2 conj(S C),  dAb = 2 conj(C Bb
//   S')
#pragma once
#include <complex>

#include "operand.h"

namespace mb::ref {

using Complex = std::complex<double>;

inline Complex pair_at(const Vec& v, int64_t i) { return {v[2 * i], v[2 * i + 1]}; }
inline void set_pair(Vec& v, int64_t i, Complex z) { v[2 * i] = z.real(), v[2 * i + 1] = z.imag(); }

// Equation (1) of one state, and dBb/dA = (dt Ab - Bb) / A.
struct Held {
  Complex A, Ab, Bb, slope;
};
inline Held hold(double dt, double log_A_real, double A_imag) {
  const Complex A(-std::exp(log_A_real), A_imag), x = dt * A;
  const Complex Ab = std::exp(x);
  // Near 0 the quotients cancel; their series are exact there to the last digit but one.
  if (std::abs(x) < 0.02) {
    const Complex phi = 1.0 + x * (1 / 2.0 + x * (1 / 6.0 + x * (1 / 24.0 + x * (1 / 120.0 + x * (1 / 720.0)))));
    const Complex phi_slope =
        1 / 2.0 + x * (1 / 3.0 + x * (1 / 8.0 + x * (1 / 30.0 + x * (1 / 144.0 + x * (1 / 840.0)))));
    return {A, Ab, dt * phi, dt * dt * phi_slope};
  }
  const Complex Bb = (Ab - 1.0) / A;
  return {A, Ab, Bb, (dt * Ab - Bb) / A};
}

inline void zero_order_hold(const Node& node) {
  namespace in = at::zero_order_hold::in;
  namespace out = at::zero_order_hold::out;
  const Vec log_dt = load(node.in(in::log_dt)), log_A_real = load(node.in(in::log_A_real));
  const Vec A_imag = load(node.in(in::A_imag));
  const int64_t states = static_cast<int64_t>(A_imag.size()), M = node.in(in::A_imag).cols();
  Vec Ab(2 * states), Bb(2 * states);
  for (int64_t i = 0; i < states; i++) {
    const Held held = hold(std::exp(log_dt[i / M]), log_A_real[i], A_imag[i]);
    set_pair(Ab, i, held.Ab);
    set_pair(Bb, i, held.Bb);
  }
  store(node.out(out::Ab), Ab);
  store(node.out(out::Bb), Bb);
}

inline void zero_order_hold_grad(const Node& node) {
  namespace in = at::zero_order_hold_grad::in;
  namespace out = at::zero_order_hold_grad::out;
  const Vec dAb = load(node.in(in::dAb)), dBb = load(node.in(in::dBb)), log_dt = load(node.in(in::log_dt));
  const Vec log_A_real = load(node.in(in::log_A_real)), A_imag = load(node.in(in::A_imag));
  const int64_t states = static_cast<int64_t>(A_imag.size()), M = node.in(in::A_imag).cols();
  Vec dlog_dt(log_dt.size()), dlog_A_real(states), dA_imag(states);
  for (int64_t i = 0; i < states; i++) {
    const double dt = std::exp(log_dt[i / M]);
    const Held held = hold(dt, log_A_real[i], A_imag[i]);
    const Complex p = std::conj(pair_at(dAb, i)), q = std::conj(pair_at(dBb, i));
    const Complex dA = std::conj(p * dt * held.Ab + q * held.slope);
    dlog_A_real[i] = dA.real() * held.A.real();
    dA_imag[i] = dA.imag();
    dlog_dt[i / M] += dt * ((p * held.A + q) * held.Ab).real();
  }
  const bool accumulate = node.attr(at::zero_order_hold_grad::attr::accumulate) != 0;
  store_gradient(node.out(out::dlog_dt), dlog_dt, accumulate);
  store_gradient(node.out(out::dlog_A_real), dlog_A_real, accumulate);
  store_gradient(node.out(out::dA_imag), dA_imag, accumulate);
}

inline void diagonal_ssm(const Node& node) {
  namespace in = at::diagonal_ssm::in;
  namespace out = at::diagonal_ssm::out;
  const Vec u = load(node.in(in::u)), Ab = load(node.in(in::Ab)), Bb = load(node.in(in::Bb)), C = load(node.in(in::C));
  const Vec D = load(node.in(in::D));
  const int64_t B = node.in(in::u).dim(0), T = node.in(in::u).dim(1), E = node.in(in::u).dim(2);
  const int64_t M = node.in(in::Ab).dim(1);
  const bool keep = static_cast<bool>(node.out(out::kept));
  Vec h = load(node.in(in::state)), y(u.size()), kept(keep ? T * B * E * M * 2 : 0);
  h.resize(B * E * M * 2);
  for (int64_t b = 0; b < B; b++) {
    for (int64_t e = 0; e < E; e++) {
      for (int64_t t = 0; t < T; t++) {
        const int64_t at = (b * T + t) * E + e;
        y[at] = D.empty() ? 0 : D[e] * u[at];
        for (int64_t m = 0; m < M; m++) {
          const int64_t own = (b * E + e) * M + m, shared = e * M + m;
          const Complex now = pair_at(Ab, shared) * pair_at(h, own) + pair_at(Bb, shared) * u[at];
          set_pair(h, own, now);
          y[at] += 2 * (pair_at(C, shared) * now).real();
          if (keep) set_pair(kept, t * B * E * M + own, now);
        }
      }
    }
  }
  store(node.out(out::y), y);
  store(node.out(out::state_out), h);
  store(node.out(out::kept), kept);
}

inline void ssm_kernel(const Node& node) {
  namespace in = at::ssm_kernel::in;
  const Vec Ab = load(node.in(in::Ab)), Bb = load(node.in(in::Bb)), C = load(node.in(in::C));
  const Tensor& k = node.out(at::ssm_kernel::out::k);
  const int64_t T = k.cols(), M = node.in(in::Ab).dim(1), states = static_cast<int64_t>(Ab.size()) / 2;
  Vec values(k.elems());
  for (int64_t i = 0; i < states; i++) {
    Complex term = 2.0 * pair_at(C, i) * pair_at(Bb, i);
    for (int64_t l = 0; l < T; l++, term *= pair_at(Ab, i)) values[i / M * T + l] += term.real();
  }
  store(k, values);
}

inline void ssm_kernel_grad(const Node& node) {
  namespace in = at::ssm_kernel_grad::in;
  namespace out = at::ssm_kernel_grad::out;
  const Vec dk = load(node.in(in::dk)), Ab = load(node.in(in::Ab)), Bb = load(node.in(in::Bb));
  const Vec C = load(node.in(in::C));
  const int64_t T = node.in(in::dk).cols(), M = node.in(in::Ab).dim(1), states = static_cast<int64_t>(Ab.size()) / 2;
  Vec dAb(Ab.size()), dBb(Ab.size()), dC(Ab.size());
  for (int64_t i = 0; i < states; i++) {
    const Complex a = pair_at(Ab, i), b = pair_at(Bb, i), c = pair_at(C, i);
    Complex S = 0, slope = 0;  // Horner's rule for the polynomial of coefficients dk and its derivative
    for (int64_t l = T - 1; l >= 0; l--) {
      slope = slope * a + S;
      S = S * a + dk[i / M * T + l];
    }
    set_pair(dC, i, 2.0 * std::conj(S * b));
    set_pair(dBb, i, 2.0 * std::conj(S * c));
    set_pair(dAb, i, 2.0 * std::conj(c * b * slope));
  }
  store(node.out(out::dAb), dAb);
  store(node.out(out::dBb), dBb);
  store_gradient(node.out(out::dC), dC, node.attr(at::ssm_kernel_grad::attr::accumulate) != 0);
}

}  // namespace mb::ref
