// Causal convolution as long as the sequence, by FFT: y[t] = sum_(l<=t) k[l] u[t-l] + D u[t]. u, y (B,T,E), k (E,T), D
// (E).
//
// D is part of k[0]. A task is W channels of all sequences, so the kernel is transformed once. Two sequences are the
// real and the imaginary part of one signal: convolution with a real kernel keeps them apart. Signals are padded with
// zeros to at least 2 T - 1, so that the circular convolution of the FFT wraps nothing around. With ^ for the
// transform, * its conjugate:
//   y^ = k^ u^;  du^ = k^* dy^;  dk = Re of the inverse of the sum over pairs of u^* dy^;  dD = dk[0]
#pragma once

namespace mb::cpu::MB_TARGET {

struct LongConv {
  int64_t B, T, E, n;
  explicit LongConv(const Tensor& u) : B(u.dim(0)), T(u.dim(1)), E(u.dim(2)), n(fft_size(2 * u.dim(1) - 1)) {}
  int64_t tasks() const { return (E + W - 1) / W; }
  int lanes(int64_t e) const { return E - e < W ? static_cast<int>(E - e) : W; }
  int64_t turn_floats() const { return round_up(fft_turn_floats(n), 16); }
  int64_t bytes(int signals, int threads) const {
    return (turn_floats() + threads * signals * Signal::floats(n)) * static_cast<int64_t>(sizeof(float));
  }
  // The i-th signal of a thread that has `signals` of them.
  Signal signal(const Team& team, int signals, int i) const {
    float* first = reinterpret_cast<float*>(team.scratch) + turn_floats();
    return Signal::at(first + (team.index * signals + i) * Signal::floats(n), n);
  }
  // The table of turns, written by all threads together.
  const float* turns(const Team& team) const {
    float* to = reinterpret_cast<float*>(team.scratch);
    fft_turns(to, n, team);
    team.barrier();
    return to;
  }

  // The kernel's transform, D being part of k[0]; over n, so that an inverse transform needs no factor.
  void read_kernel(const Tensor& k, const Tensor& D, int64_t e, const float* turns, const Signal& to) const {
    const V over_n = set1(1.0f / static_cast<float>(n));
    to_lanes(to.re, k.ptr<float>() + e * T, T, lanes(e), 1.0f / static_cast<float>(n));
    if (D) store(to.re, fma(load_part(D.ptr<float>() + e, lanes(e)), over_n, load(to.re)));
    memset(to.re + T * W, 0, sizeof(float) * static_cast<size_t>((n - T) * W));
    memset(to.im, 0, sizeof(float) * static_cast<size_t>(n * W));
    fft(to, n, turns);
  }
  // The transform of sequences b and b + 1, of which the second may not exist.
  void read_pair(const Tensor& u, int64_t b, int64_t e, const float* turns, const Signal& to) const {
    const int part = lanes(e);
    const bool both = b + 1 < B;
    const float *first = u.row<float>(b * T) + e, *second = both ? u.row<float>((b + 1) * T) + e : nullptr;
    for (int64_t t = 0; t < T; t++) {
      const int64_t at = t * u.row_stride, ahead = (t + kAhead < T ? kAhead : 0) * u.row_stride;
      prefetch(first + at + ahead);
      if (both) prefetch(second + at + ahead);
      to.set(t, {load_part(first + at, part), both ? load_part(second + at, part) : zero()});
    }
    memset(to.re + T * W, 0, sizeof(float) * static_cast<size_t>((n - T) * W));
    memset(to.im + T * W, 0, sizeof(float) * static_cast<size_t>((n - T) * W));
    fft(to, n, turns);
  }
  // y of sequences b and b + 1 from their transform.
  void write_pair(const Signal& from, int64_t b, int64_t e, const float* turns, const Tensor& y) const {
    const int part = lanes(e);
    fft_inverse(from, n, turns);
    for (int64_t i = 0; i < 2 && b + i < B; i++) {
      const float* values = i ? from.im : from.re;
      for (int64_t t = 0; t < T; t++) store_part(y.row<float>((b + i) * T + t) + e, load(values + t * W), part);
    }
  }
};

static int64_t s_long_conv(const Node& node, int threads) {
  return LongConv(node.in(at::long_conv::in::u)).bytes(2, threads);
}

static const char* w_long_conv(const Node& node) {
  if (const char* why = w_all_f32(node)) return why;
  return node.in(at::long_conv::in::k).contiguous() ? nullptr : "long_conv: expected the kernel to lie without gaps";
}

static void k_long_conv(const Node& node, const Team& team) {
  namespace in = at::long_conv::in;
  const Tensor &u = node.in(in::u), &y = node.out(at::long_conv::out::y);
  const LongConv c(u);
  const float* turns = c.turns(team);
  const Signal kernel = c.signal(team, 2, 0), x = c.signal(team, 2, 1);
  const Team::Range mine = team.share(c.tasks());
  for (int64_t task = mine.begin; task < mine.end; task++) {
    const int64_t e = task * W;
    c.read_kernel(node.in(in::k), node.in(in::D), e, turns, kernel);
    for (int64_t b = 0; b < c.B; b += 2) {
      c.read_pair(u, b, e, turns, x);
      for (int64_t i = 0; i < c.n; i++) x.set(i, x.get(i) * kernel.get(i));
      c.write_pair(x, b, e, turns, y);
    }
  }
}

static int64_t s_long_conv_grad(const Node& node, int threads) {
  return LongConv(node.in(at::long_conv_grad::in::u)).bytes(4, threads);
}

static const char* w_long_conv_grad(const Node& node) {
  if (const char* why = w_all_f32(node)) return why;
  const bool tight =
      node.in(at::long_conv_grad::in::k).contiguous() && node.out(at::long_conv_grad::out::dk).contiguous();
  return tight ? nullptr : "long_conv_grad: expected the kernel and its gradient to lie without gaps";
}

// sum <- sum + conj(x) d or conj(x) d; d <- conj(kernel) d
MB_INLINE void long_conv_correlate(const Signal& sum, const Signal& x, const Signal& d, const Signal& kernel, int64_t n,
                                   bool first) {
  for (int64_t i = 0; i < n; i++) {
    const VC dy = d.get(i), own = times_conj(dy, x.get(i));
    sum.set(i, first ? own : sum.get(i) + own);
    d.set(i, times_conj(dy, kernel.get(i)));
  }
}

static void k_long_conv_grad(const Node& node, const Team& team) {
  namespace in = at::long_conv_grad::in;
  namespace out = at::long_conv_grad::out;
  const Tensor &u = node.in(in::u), &dy = node.in(in::dy), &dk = node.out(out::dk);
  float* dD = node.out(out::dD).ptr<float>();
  const bool accumulate = node.attr(at::long_conv_grad::attr::accumulate) != 0;
  const LongConv c(u);
  const float* turns = c.turns(team);
  const Signal kernel = c.signal(team, 4, 0), x = c.signal(team, 4, 1), d = c.signal(team, 4, 2);
  const Signal sum = c.signal(team, 4, 3);
  const V over_n = set1(1.0f / static_cast<float>(c.n));
  const Team::Range mine = team.share(c.tasks());
  for (int64_t task = mine.begin; task < mine.end; task++) {
    const int64_t e = task * W;
    const int lanes = c.lanes(e);
    c.read_kernel(node.in(in::k), node.in(in::D), e, turns, kernel);
    for (int64_t b = 0; b < c.B; b += 2) {
      c.read_pair(u, b, e, turns, x);
      c.read_pair(dy, b, e, turns, d);
      long_conv_correlate(sum, x, d, kernel, c.n, b == 0);
      c.write_pair(d, b, e, turns, node.out(out::du));
    }
    fft_inverse(sum, c.n, turns);
    for (int64_t t = 0; t < c.T; t++) store(sum.re + t * W, load(sum.re + t * W) * over_n);
    if (dk) from_lanes(dk.ptr<float>() + e * c.T, sum.re, c.T, lanes);
    if (dD) store_part(dD + e, accumulate ? load(sum.re) + load_part(dD + e, lanes) : load(sum.re), lanes);
  }
}

}  // namespace mb::cpu::MB_TARGET
