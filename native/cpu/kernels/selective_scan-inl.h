// Selective scan (Gu & Dao 2023, algorithm 2) with softplus, the D skip and the SiLU gate in the same loop:
//   dt = softplus?(delta + delta_bias);  h = exp(dt A) h + dt u B[t];  y = (C[t] . h + D u) silu(z)?
// u, delta, z, y (B,T,E); A (E,N); B, C (B,T,N); D, delta_bias (E); state (B,E,N).
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr float kLog2e = 1.44269504088896341f;
constexpr int64_t kMaxStates = 256;

// One sequence's operands. Every pointer is at channel 0 and step 0; strides are in floats, between steps. Absent
// optional operands are null. state and state_out may be one buffer.
struct Scan {
  int64_t steps = 0, states = 0;
  const float *u = nullptr, *delta = nullptr, *B = nullptr, *C = nullptr, *z = nullptr;
  int64_t u_stride = 0, delta_stride = 0, B_stride = 0, C_stride = 0, z_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  const float *A = nullptr, *D = nullptr, *delta_bias = nullptr;  // A: (E,N) without gaps
  const float* state = nullptr;                                   // (E,N) before the first step; null: zero
  float* state_out = nullptr;                                     // (E,N) after the last step; null: not wanted
  float* kept = nullptr;                                          // (E,N) after each step, kept_stride apart
  int64_t kept_stride = 0;
  float* chunks = nullptr;  // (E,N) before every chunk-th step, chunks_stride apart
  int64_t chunk = 0, chunks_stride = 0;
  bool softplus = true;
};

// Long form: a register holds one state of W channels, so a step needs no sum across lanes and the states stay put.
// kN is the number of states, or 0 for any number.
template <int kN>
static void scan_block_long(const Scan& s, int64_t e, int lanes) {
  const int64_t n = kN ? kN : s.states;
  alignas(64) float a[(kN ? kN : kMaxStates) * W], spill[(kN ? kN : kMaxStates) * W];
  to_lanes(a, s.A + e * n, n, lanes, kLog2e);
  if (s.state) {
    to_lanes(spill, s.state + e * n, n, lanes, 1.0f);
  } else {
    memset(spill, 0, sizeof(float) * static_cast<size_t>(n) * W);
  }
  V h[kN ? kN : kMaxStates];
  MB_UNROLL
  for (int64_t i = 0; i < n; i++) h[i] = load(spill + i * W);
  const V bias = s.delta_bias ? load_part(s.delta_bias + e, lanes) : zero();
  const V skip = s.D ? load_part(s.D + e, lanes) : zero();
  const int64_t every = s.chunks ? s.chunk : s.steps;
  for (int64_t t0 = 0; t0 < s.steps; t0 += every) {
    if (s.chunks) {
      MB_UNROLL
      for (int64_t i = 0; i < n; i++) store(spill + i * W, h[i]);
      from_lanes(s.chunks + t0 / every * s.chunks_stride + e * n, spill, n, lanes);
    }
    const int64_t t1 = t0 + every < s.steps ? t0 + every : s.steps;
    for (int64_t t = t0; t < t1; t++) {
      prefetch_far(s.delta + (t + kAhead) * s.delta_stride + e);
      prefetch_far(s.u + (t + kAhead) * s.u_stride + e);
      if (s.z) prefetch_far(s.z + (t + kAhead) * s.z_stride + e);
      V dt = load_part(s.delta + t * s.delta_stride + e, lanes) + bias;
      if (s.softplus) dt = softplus(dt);
      const V u = load_part(s.u + t * s.u_stride + e, lanes), x = dt * u;
      const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
      V y0 = skip * u, y1 = zero();
      MB_UNROLL
      for (int64_t i = 0; i + 1 < n; i += 2) {
        h[i] = fma(exp2_fast(dt * load(a + i * W)), h[i], x * set1(b[i]));
        y0 = fma(h[i], set1(c[i]), y0);
        h[i + 1] = fma(exp2_fast(dt * load(a + (i + 1) * W)), h[i + 1], x * set1(b[i + 1]));
        y1 = fma(h[i + 1], set1(c[i + 1]), y1);
      }
      if (n & 1) {
        const int64_t i = n - 1;
        h[i] = fma(exp2_fast(dt * load(a + i * W)), h[i], x * set1(b[i]));
        y0 = fma(h[i], set1(c[i]), y0);
      }
      V y = y0 + y1;
      if (s.z) y = y * silu(load_part(s.z + t * s.z_stride + e, lanes));
      store_part(s.y + t * s.y_stride + e, y, lanes);
      if (s.kept) {
        MB_UNROLL
        for (int64_t i = 0; i < n; i++) store(spill + i * W, h[i]);
        from_lanes(s.kept + t * s.kept_stride + e * n, spill, n, lanes);
      }
    }
  }
  if (s.state_out) {
    MB_UNROLL
    for (int64_t i = 0; i < n; i++) store(spill + i * W, h[i]);
    from_lanes(s.state_out + e * n, spill, n, lanes);
  }
}

// Short form: a register holds W states of one channel, so states and A are read and written as they lie; W channels'
// outputs are summed across lanes together. kN is the number of states (a multiple of W), or 0 for any number.
template <int kN>
static void scan_block_short(const Scan& s, int64_t e, int lanes) {
  const int64_t n = kN ? kN : s.states;
  const V bias = s.delta_bias ? load_part(s.delta_bias + e, lanes) : zero();
  const V skip = s.D ? load_part(s.D + e, lanes) : zero();
  alignas(64) float decay[W], input[W];
  const float* from = s.state ? s.state + e * n : nullptr;
  for (int64_t t = 0; t < s.steps; t++) {
    V dt = load_part(s.delta + t * s.delta_stride + e, lanes) + bias;
    if (s.softplus) dt = softplus(dt);
    const V u = load_part(s.u + t * s.u_stride + e, lanes);
    store(decay, dt * set1(kLog2e));
    store(input, dt * u);
    const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
    if (s.chunks && t % s.chunk == 0) {
      float* to = s.chunks + t / s.chunk * s.chunks_stride + e * n;
      if (from) {
        memcpy(to, from, sizeof(float) * static_cast<size_t>(n * lanes));
      } else {
        memset(to, 0, sizeof(float) * static_cast<size_t>(n * lanes));
      }
    }
    float* kept = s.kept ? s.kept + t * s.kept_stride + e * n : nullptr;
    float* to = s.state_out ? s.state_out + e * n : kept;
    V rows[W];
    MB_UNROLL
    for (int l = 0; l < W; l++) rows[l] = zero();
    for (int64_t i = 0; i < n; i += W) {
      const int part = kN || n - i >= W ? W : static_cast<int>(n - i);
      const V bv = load_part(b + i, part), cv = load_part(c + i, part);
      MB_UNROLL
      for (int l = 0; l < W; l++) {
        if (l >= lanes) break;
        const int64_t at = l * n + i;
        const V old = from ? load_part(from + at, part) : zero();
        const V grow = exp2_fast(set1(decay[l]) * load_part(s.A + e * n + at, part));
        const V h = fma(grow, old, set1(input[l]) * bv);
        store_part(to + at, h, part);
        if (kept && kept != to) store_part(kept + at, h, part);
        rows[l] = fma(h, cv, rows[l]);
      }
    }
    V y = fma(skip, u, sum_each(rows));
    if (s.z) y = y * silu(load_part(s.z + t * s.z_stride + e, lanes));
    store_part(s.y + t * s.y_stride + e, y, lanes);
    from = to;
  }
}

// No chunk length means one chunk.
MB_INLINE int64_t chunk_steps(double chunk, int64_t steps) {
  if (chunk >= 1) return static_cast<int64_t>(chunk);
  return steps > 1 ? steps : 1;
}

// Channels [e0, e1) of one sequence, all its steps. The result of a channel depends on e0 only through which channels
// share its register, which changes no bit. The short form needs somewhere to leave the state: state_out or kept.
static void scan_channels(const Scan& s, int64_t e0, int64_t e1) {
  const bool brief = W > 1 && s.steps <= 8 && (s.state_out || s.kept);
  for (int64_t e = e0; e < e1; e += W) {
    const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
    if (brief) {
      if (s.states == 16) {
        scan_block_short<16>(s, e, lanes);
      } else {
        scan_block_short<0>(s, e, lanes);
      }
    } else if (s.states == 16) {
      scan_block_long<16>(s, e, lanes);
    } else {
      scan_block_long<0>(s, e, lanes);
    }
  }
}

static const char* w_selective_scan(const Node& node) {
  namespace in = at::selective_scan::in;
  namespace out = at::selective_scan::out;
  if (const char* why = w_all_f32(node)) return why;
  if (node.in(in::A).cols() > kMaxStates) return "selective_scan: expected at most 256 states";
  const bool tight = node.in(in::A).contiguous() && node.in(in::state).contiguous() &&
                     node.out(out::state_out).contiguous() && node.out(out::chunks).contiguous() &&
                     node.out(out::kept).contiguous();
  return tight ? nullptr : "selective_scan: expected A and the states to lie without gaps";
}

static void k_selective_scan(const Node& node, const Team& team) {
  namespace in = at::selective_scan::in;
  namespace out = at::selective_scan::out;
  namespace attr = at::selective_scan::attr;
  const Tensor &u = node.in(in::u), &delta = node.in(in::delta), &B = node.in(in::B), &C = node.in(in::C);
  const Tensor &z = node.in(in::z), &y = node.out(out::y), &state = node.in(in::state);
  float *state_out = node.out(out::state_out).ptr<float>(), *chunks = node.out(out::chunks).ptr<float>();
  float* kept = node.out(out::kept).ptr<float>();
  const int64_t batch = u.dim(0), T = u.dim(1), E = u.dim(2), N = node.in(in::A).cols();
  Scan s;
  s.steps = T, s.states = N;
  s.u_stride = u.row_stride, s.delta_stride = delta.row_stride, s.B_stride = B.row_stride, s.C_stride = C.row_stride;
  s.z_stride = z.row_stride, s.y_stride = y.row_stride;
  s.A = node.in(in::A).ptr<float>(), s.D = node.in(in::D).ptr<float>();
  s.delta_bias = node.in(in::delta_bias).ptr<float>();
  s.softplus = node.attr(attr::softplus) != 0;
  s.chunk = chunk_steps(node.attr(attr::chunk), T);
  s.chunks_stride = E * N, s.kept_stride = batch * E * N;
  const int64_t per_sequence = (T + s.chunk - 1) / s.chunk * E * N;
  each_channel_range(team, batch, E, [&](int64_t b, int64_t e0, int64_t e1) {
    s.u = u.row<float>(b * T), s.delta = delta.row<float>(b * T), s.y = y.row<float>(b * T);
    s.B = B.row<float>(b * T), s.C = C.row<float>(b * T);
    if (z) s.z = z.row<float>(b * T);
    if (state) s.state = state.ptr<float>() + b * E * N;
    if (state_out) s.state_out = state_out + b * E * N;
    if (chunks) s.chunks = chunks + b * per_sequence;
    if (kept) s.kept = kept + b * E * N;
    scan_channels(s, e0, e1);
  });
}

}  // namespace mb::cpu::MB_TARGET
