// Diagonal state space model with complex states, step by step (S4D, Gu et al. 2022), and the zero-order hold that
// makes its Ab and Bb. u, y (B,T,E); Ab, Bb, C (E,M,2); D (E); state (B,E,M,2):
//   h[t] = Ab h[t-1] + Bb u[t];  y[t] = 2 Re(sum_m C h[t]) + D u[t]
//
// A vector holds one number of W channels. The states of a few steps are computed state by state, so that a state and
// its parameters stay in registers; every y is summed over the states in their order whatever the number of steps, so a
// sequence may be cut anywhere and gives the same bits.
#pragma once

namespace mb::cpu::MB_TARGET {

// Equation of the hold and dBb/dA; see native/ref/diagonal_ssm.h.
struct Held {
  Complex A, Ab, Bb, slope;
};
MB_INLINE Held hold(double dt, double log_A_real, double A_imag) {
  constexpr double kOne = 1;
  const Complex one{kOne, 0}, A{-__builtin_exp(log_A_real), A_imag}, x = dt * A;
  const double size = __builtin_exp(x.re);
  const Complex Ab{size * __builtin_cos(x.im), size * __builtin_sin(x.im)};
  // Near 0 the quotients cancel; their series are exact there to the last digit but one.
  if (x.re * x.re + x.im * x.im < 4e-4) {
    constexpr double of[] = {1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 1 / 2.0, 1.0};
    constexpr double slope_of[] = {1 / 840.0, 1 / 144.0, 1 / 30.0, 1 / 8.0, 1 / 3.0, 1 / 2.0};
    Complex phi{0, 0}, slope{0, 0};
    for (int i = 0; i < 6; i++) phi = of[i] * one + x * phi, slope = slope_of[i] * one + x * slope;
    return {A, Ab, dt * phi, dt * dt * slope};
  }
  const Complex Bb = (Ab - one) / A;
  return {A, Ab, Bb, (dt * Ab - Bb) / A};
}

// Everything in f32 and packed but for rows of (B,T,E).
static const char* w_ssm(const Node& node) {
  if (const char* why = w_all_f32(node)) return why;
  for (int i = 0; i < node.n_in; i++) {
    if (!node.in(i).contiguous()) return "expected the parameters of a diagonal SSM to lie without gaps";
  }
  for (int i = 0; i < node.n_out; i++) {
    if (!node.out(i).contiguous()) return "expected the results for a diagonal SSM to lie without gaps";
  }
  return nullptr;
}

static void k_zero_order_hold(const Node& node, const Team& team) {
  namespace in = at::zero_order_hold::in;
  namespace out = at::zero_order_hold::out;
  const float *log_dt = node.in(in::log_dt).ptr<float>(), *log_A_real = node.in(in::log_A_real).ptr<float>();
  const float* A_imag = node.in(in::A_imag).ptr<float>();
  float *Ab = node.out(out::Ab).ptr<float>(), *Bb = node.out(out::Bb).ptr<float>();
  const int64_t M = node.in(in::A_imag).cols();
  const Team::Range mine = team.share(node.in(in::log_dt).cols());
  for (int64_t e = mine.begin; e < mine.end; e++) {
    const double dt = __builtin_exp(static_cast<double>(log_dt[e]));
    for (int64_t i = e * M; i < (e + 1) * M; i++) {
      const Held held = hold(dt, log_A_real[i], A_imag[i]);
      set_pair(Ab, i, held.Ab);
      set_pair(Bb, i, held.Bb);
    }
  }
}

static void k_zero_order_hold_grad(const Node& node, const Team& team) {
  namespace in = at::zero_order_hold_grad::in;
  namespace out = at::zero_order_hold_grad::out;
  const float *log_dt = node.in(in::log_dt).ptr<float>(), *log_A_real = node.in(in::log_A_real).ptr<float>();
  const float* A_imag = node.in(in::A_imag).ptr<float>();
  const float *dAb = node.in(in::dAb).ptr<float>(), *dBb = node.in(in::dBb).ptr<float>();
  float *dlog_dt = node.out(out::dlog_dt).ptr<float>(), *dlog_A_real = node.out(out::dlog_A_real).ptr<float>();
  float* dA_imag = node.out(out::dA_imag).ptr<float>();
  const bool accumulate = node.attr(at::zero_order_hold_grad::attr::accumulate) != 0;
  const auto leave = [&](float* to, double value) { *to = static_cast<float>(accumulate ? *to + value : value); };
  const int64_t M = node.in(in::A_imag).cols();
  const Team::Range mine = team.share(node.in(in::log_dt).cols());
  for (int64_t e = mine.begin; e < mine.end; e++) {
    const double dt = __builtin_exp(static_cast<double>(log_dt[e]));
    double ddt = 0;
    for (int64_t i = e * M; i < (e + 1) * M; i++) {
      const Held held = hold(dt, log_A_real[i], A_imag[i]);
      const Complex p = conj(pair_at(dAb, i)), q = conj(pair_at(dBb, i));
      const Complex dA = conj(dt * (p * held.Ab) + q * held.slope);
      ddt += ((p * held.A + q) * held.Ab).re;
      if (dlog_A_real) leave(dlog_A_real + i, dA.re * held.A.re);
      if (dA_imag) leave(dA_imag + i, dA.im);
    }
    if (dlog_dt) leave(dlog_dt + e, ddt * dt);
  }
}

constexpr int kSsmSteps = 32;  // steps whose y is held while the states go by

// Operands of W channels, [2 M][W]: real and imaginary parts in turn.
struct SsmBlock {
  float *Ab, *Bb, *C, *h;
  static int64_t floats(int64_t M) { return 4 * 2 * M * W; }
  static SsmBlock at(float* scratch, int64_t M) {
    const int64_t n = 2 * M * W;
    return {scratch, scratch + n, scratch + 2 * n, scratch + 3 * n};
  }
};

// `count` steps of K neighbouring states: adds their Re(C h) to sums.
template <int K>
MB_INLINE void ssm_states(const SsmBlock& s, int64_t m, int count, const V* u, V* sums) {
  V ar[K], ai[K], br[K], bi[K], cr[K], ci[K], hr[K], hi[K];
  MB_UNROLL
  for (int k = 0; k < K; k++) {
    const int64_t at = 2 * (m + k) * W;
    ar[k] = load(s.Ab + at), ai[k] = load(s.Ab + at + W), br[k] = load(s.Bb + at), bi[k] = load(s.Bb + at + W);
    cr[k] = load(s.C + at), ci[k] = neg(load(s.C + at + W)), hr[k] = load(s.h + at), hi[k] = load(s.h + at + W);
  }
  for (int t = 0; t < count; t++) {
    V sum = sums[t];
    MB_UNROLL
    for (int k = 0; k < K; k++) {
      const V re = fma(ar[k], hr[k], fma(neg(ai[k]), hi[k], br[k] * u[t]));
      hi[k] = fma(ar[k], hi[k], fma(ai[k], hr[k], bi[k] * u[t]));
      hr[k] = re;
      sum = fma(ci[k], hi[k], fma(cr[k], hr[k], sum));
    }
    sums[t] = sum;
  }
  MB_UNROLL
  for (int k = 0; k < K; k++) {
    const int64_t at = 2 * (m + k) * W;
    store(s.h + at, hr[k]);
    store(s.h + at + W, hi[k]);
  }
}

static int64_t s_diagonal_ssm(const Node& node, int threads) {
  return threads * SsmBlock::floats(node.in(at::diagonal_ssm::in::Ab).dim(1)) * static_cast<int64_t>(sizeof(float));
}

static const char* w_diagonal_ssm(const Node& node) {
  namespace in = at::diagonal_ssm::in;
  namespace out = at::diagonal_ssm::out;
  if (const char* why = w_all_f32(node)) return why;
  const bool tight = node.in(in::Ab).contiguous() && node.in(in::Bb).contiguous() && node.in(in::C).contiguous() &&
                     node.in(in::state).contiguous() && node.out(out::state_out).contiguous() &&
                     node.out(out::kept).contiguous();
  return tight ? nullptr : "diagonal_ssm: expected the parameters and states to lie without gaps";
}

static void k_diagonal_ssm(const Node& node, const Team& team) {
  namespace in = at::diagonal_ssm::in;
  namespace out = at::diagonal_ssm::out;
  const Tensor &u = node.in(in::u), &y = node.out(out::y);
  const float *Ab = node.in(in::Ab).ptr<float>(), *Bb = node.in(in::Bb).ptr<float>();
  const float *C = node.in(in::C).ptr<float>(), *D = node.in(in::D).ptr<float>();
  const float* state = node.in(in::state).ptr<float>();
  float *state_out = node.out(out::state_out).ptr<float>(), *kept = node.out(out::kept).ptr<float>();
  const int64_t batch = u.dim(0), T = u.dim(1), E = u.dim(2), M = node.in(in::Ab).dim(1), N = 2 * M;
  const int64_t blocks = (E + W - 1) / W, stride = kept ? 1 : kSsmSteps;
  const SsmBlock s = SsmBlock::at(reinterpret_cast<float*>(team.scratch) + team.index * SsmBlock::floats(M), M);
  const Team::Range tasks = team.share(blocks * batch);
  int64_t held = -1;  // the channels whose parameters are in s
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t e = task / batch * W, b = task % batch, own = (b * E + e) * N;
    const int lanes = E - e < W ? static_cast<int>(E - e) : W;
    if (held != e) {
      to_lanes(s.Ab, Ab + e * N, N, lanes, 1.0f);
      to_lanes(s.Bb, Bb + e * N, N, lanes, 1.0f);
      to_lanes(s.C, C + e * N, N, lanes, 1.0f);
      held = e;
    }
    if (state) {
      to_lanes(s.h, state + own, N, lanes, 1.0f);
    } else {
      memset(s.h, 0, sizeof(float) * static_cast<size_t>(N) * W);
    }
    const V skip = D ? load_part(D + e, lanes) : zero();
    for (int64_t t = 0; t < T; t += stride) {
      const int count = static_cast<int>(T - t < stride ? T - t : stride);
      V inputs[kSsmSteps], sums[kSsmSteps];
      for (int i = 0; i < count; i++) {
        inputs[i] = load_part(u.row<float>(b * T + t + i) + e, lanes);
        sums[i] = zero();
      }
      int64_t m = 0;
      for (; m + 2 <= M; m += 2) ssm_states<2>(s, m, count, inputs, sums);
      if (m < M) ssm_states<1>(s, m, count, inputs, sums);
      for (int i = 0; i < count; i++) {
        store_part(y.row<float>(b * T + t + i) + e, fma(skip, inputs[i], sums[i] + sums[i]), lanes);
      }
      if (kept) from_lanes(kept + t * batch * E * N + own, s.h, N, lanes);
    }
    if (state_out) from_lanes(state_out + own, s.h, N, lanes);
  }
}

}  // namespace mb::cpu::MB_TARGET
