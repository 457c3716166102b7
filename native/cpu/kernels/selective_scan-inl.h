// Selective scan (Gu & Dao 2023, algorithm 2) with softplus, the D skip and the SiLU gate in the same loop:
//   dt = softplus?(delta + delta_bias);  h = exp(dt A) h + dt u B[t];  y = (C[t] . h + D u) silu(z)?
// u, delta, z, y (B,T,E); A (E,N); B, C (B,T,N); D, delta_bias (E); state (B,E,N).
//
// One loop for few steps and one for many; both give the same bits, so a sequence may be cut anywhere.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr float kLog2e = 1.44269504088896341f;
constexpr int64_t kMaxStates = 256;
// Up to here the short form is faster: without states to keep, or with.
constexpr int64_t kShortSteps = 4, kShortKeptSteps = 1;

// One sequence's operands. Every pointer is at channel 0 and step 0; strides are in floats, between steps. Absent
// optional operands are null. state and state_out may be one buffer.
struct Scan {
  int64_t steps = 0, states = 0;
  int64_t length = INT64_MAX;  // from this step on dt is 0
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

// What the states need of a step, computed for several steps (or channels) ahead of them: the chain from delta to dt is
// long, and would otherwise stand between one step and the next.
constexpr int kAheadVectors = 16;
struct ScanAhead {
  alignas(64) float dt[kAheadVectors * W], input[kAheadVectors * W];   // dt log2(e); dt u
  alignas(64) float skip[kAheadVectors * W], gate[kAheadVectors * W];  // D u; silu(z)
};

// Entry i of `ahead` for step t and channels e on.
MB_INLINE void scan_look_ahead(const Scan& s, int64_t t, int64_t e, int lanes, int i, ScanAhead* ahead) {
  V dt = load_part(s.delta + t * s.delta_stride + e, lanes);
  if (s.delta_bias) dt = dt + load_part(s.delta_bias + e, lanes);
  if (s.softplus) dt = softplus(dt);
  if (t >= s.length) dt = zero();
  const V u = load_part(s.u + t * s.u_stride + e, lanes);
  store(ahead->dt + i * W, dt * set1(kLog2e));
  store(ahead->input + i * W, dt * u);
  store(ahead->skip + i * W, s.D ? load_part(s.D + e, lanes) * u : zero());
  if (s.z) store(ahead->gate + i * W, silu(load_part(s.z + t * s.z_stride + e, lanes)));
}

MB_INLINE V scan_gate(const Scan& s, V y, int i, const ScanAhead& ahead) {
  return s.z ? y * load(ahead.gate + i * W) : y;
}

// h[i] <- exp(dt A[i]) h[i] + input B[i] for K states; sums[i] += C[i] h[i], or = it.
template <int K, bool kFirst>
MB_INLINE void scan_states(V* h, const float* a, const float* b, const float* c, V dt, V input, V* sums) {
  V grow[K];
  MB_UNROLL
  for (int i = 0; i < K; i++) grow[i] = dt * load(a + i * W);
  exp2_each<K>(grow);
  MB_UNROLL
  for (int i = 0; i < K; i++) {
    h[i] = fma(grow[i], h[i], input * set1(b[i]));
    sums[i] = kFirst ? h[i] * set1(c[i]) : fma(h[i], set1(c[i]), sums[i]);
  }
}

// One step of n states; returns C . h, added in the order of the short form: states W apart in a chain, then the W
// chains as the lanes of a register. kN is n, or 0.
template <int kN>
MB_INLINE V scan_step(V* h, int64_t n, const float* a, const float* b, const float* c, V dt, V input) {
  V folds[W / kFold];
  MB_UNROLL
  for (int g = 0; g < W / kFold; g++) {
    V sums[kFold];
    const auto states = [&](int64_t i, auto first) __attribute__((always_inline)) {
      if (kN || i + kFold <= n) return scan_states<kFold, first>(h + i, a + i * W, b + i, c + i, dt, input, sums);
      for (int64_t j = 0; i + j < n; j++) {
        scan_states<1, first>(h + i + j, a + (i + j) * W, b + i + j, c + i + j, dt, input, sums + j);
      }
    };
    if (!kN) {
      for (int j = 0; j < kFold; j++) sums[j] = zero();
    }
    if (g * kFold < n) states(g * kFold, std::true_type{});
    MB_UNROLL
    for (int64_t i = g * kFold + W; i < n; i += W) states(i, std::false_type{});
    folds[g] = fold_lanes(sums);
  }
  return join_lanes(folds);
}

// Floats of A, and of states, that the long form holds in transposed form: channels times states of one group.
constexpr int64_t kHeld = 4096;

// `count` steps of one block of W channels. a, held: [n][W], the states being read at the start and left at the end.
template <int kN>
MB_INLINE void scan_block_long(const Scan& s, int64_t e, int lanes, int64_t t0, int count, const float* a,
                               float* held) {
  const int64_t n = kN ? kN : s.states;
  V h[kN ? kN : kMaxStates];
  ScanAhead ahead;
  for (int j = 0; j < count; j++) scan_look_ahead(s, t0 + j, e, lanes, j, &ahead);
  MB_UNROLL
  for (int64_t i = 0; i < n; i++) h[i] = load(held + i * W);
  const auto leave = [&] {
    MB_UNROLL
    for (int64_t i = 0; i < n; i++) store(held + i * W, h[i]);
  };
  for (int j = 0; j < count; j++) {
    const int64_t t = t0 + j;
    if (s.chunks && t % s.chunk == 0) {
      leave();
      from_lanes(s.chunks + t / s.chunk * s.chunks_stride + e * n, held, n, lanes);
    }
    const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
    const V dt = load(ahead.dt + j * W), input = load(ahead.input + j * W);
    const V y = load(ahead.skip + j * W) + scan_step<kN>(h, n, a, b, c, dt, input);
    store_part(s.y + t * s.y_stride + e, scan_gate(s, y, j, ahead), lanes);
    if (s.kept) keep_lanes(s.kept + t * s.kept_stride + e * n, h, n, lanes);
  }
  leave();
}

// Long form: a register holds one state of W channels, so a step needs no sum across lanes. All blocks of the group
// take a few steps in turn: the rows of one step lie together, those of the next a page away or more. kN is the number
// of states, or 0 for any number.
template <int kN>
static void scan_group_long(const Scan& s, int64_t e0, int64_t e1) {
  const int64_t n = kN ? kN : s.states;
  alignas(64) float a[kHeld], held[kHeld];
  const auto each_block = [&](auto f) {
    for (int64_t e = e0; e < e1; e += W) f(e, e1 - e >= W ? W : static_cast<int>(e1 - e), (e - e0) * n);
  };
  each_block([&](int64_t e, int lanes, int64_t at) {
    to_lanes(a + at, s.A + e * n, n, lanes, 1.0f);
    if (s.state) {
      to_lanes(held + at, s.state + e * n, n, lanes, 1.0f);
    } else {
      memset(held + at, 0, sizeof(float) * static_cast<size_t>(n) * W);
    }
  });
  for (int64_t t = 0; t < s.steps; t += kAheadVectors) {
    const int count = s.steps - t < kAheadVectors ? static_cast<int>(s.steps - t) : kAheadVectors;
    each_block(
        [&](int64_t e, int lanes, int64_t at) { scan_block_long<kN>(s, e, lanes, t, count, a + at, held + at); });
  }
  if (!s.state_out) return;
  each_block([&](int64_t e, int lanes, int64_t at) { from_lanes(s.state_out + e * n, held + at, n, lanes); });
}

// Short form: a register holds W states of one channel, so states and A are read and written as they lie; W channels'
// outputs are summed across lanes together. Covers at most kAheadVectors * W channels. kN is the number of states (a
// multiple of W), or 0 for any number.
template <int kN>
static void scan_block_short(const Scan& s, int64_t e0, int64_t e1) {
  const int64_t n = kN ? kN : s.states;
  const size_t bytes = sizeof(float) * static_cast<size_t>(n * (e1 - e0));
  constexpr int kTogether = W < 4 ? W : 4;
  ScanAhead ahead;
  const float* from = s.state;
  for (int64_t t = 0; t < s.steps; t++) {
    for (int64_t e = e0; e < e1; e += W) {
      const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
      scan_look_ahead(s, t, e, lanes, static_cast<int>((e - e0) / W), &ahead);
    }
    const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
    if (s.chunks && t % s.chunk == 0) {
      float* to = s.chunks + t / s.chunk * s.chunks_stride + e0 * n;
      if (from) {
        memcpy(to, from + e0 * n, bytes);
      } else {
        memset(to, 0, bytes);
      }
    }
    float* kept = s.kept ? s.kept + t * s.kept_stride : nullptr;
    float* to = s.state_out ? s.state_out : kept;
    for (int64_t e = e0; e < e1; e += W) {
      const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e), block = static_cast<int>((e - e0) / W);
      const float *decay = ahead.dt + block * W, *input = ahead.input + block * W;
      V rows[W];
      MB_UNROLL
      for (int l = 0; l < W; l++) rows[l] = zero();
      for (int64_t i = 0; i < n; i += W) {
        const int part = kN || n - i >= W ? W : static_cast<int>(n - i);
        const V bv = load_part(b + i, part), cv = load_part(c + i, part);
        MB_UNROLL
        for (int l0 = 0; l0 < W; l0 += kTogether) {
          if (l0 >= lanes) break;
          // Lanes past the end repeat the last one: they read what is there and store nothing of their own.
          V grow[kTogether];
          int64_t at[kTogether];
          MB_UNROLL
          for (int j = 0; j < kTogether; j++) {
            const int lane = l0 + j < lanes ? l0 + j : lanes - 1;
            at[j] = (e + lane) * n + i;
            grow[j] = set1(decay[lane]) * load_part(s.A + at[j], part);
          }
          exp2_each<kTogether>(grow);
          MB_UNROLL
          for (int j = 0; j < kTogether; j++) {
            if (l0 + j >= lanes) break;
            const V old = from ? load_part(from + at[j], part) : zero();
            const V h = fma(grow[j], old, set1(input[l0 + j]) * bv);
            store_part(to + at[j], h, part);
            if (kept && kept != to) store_part(kept + at[j], h, part);
            rows[l0 + j] = i == 0 ? h * cv : fma(h, cv, rows[l0 + j]);
          }
        }
      }
      const V y = load(ahead.skip + block * W) + sum_each(rows);
      store_part(s.y + t * s.y_stride + e, scan_gate(s, y, block, ahead), lanes);
    }
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
  const bool brief = W > 1 && s.steps <= (s.kept ? kShortKeptSteps : kShortSteps) && (s.state_out || s.kept);
  const int64_t stride = brief ? kAheadVectors * W : kHeld / s.states / W * W;
  for (int64_t e = e0; e < e1; e += stride) {
    const int64_t end = e1 - e < stride ? e1 : e + stride;
    if (brief && s.states == 16) {
      scan_block_short<16>(s, e, end);
    } else if (brief) {
      scan_block_short<0>(s, e, end);
    } else if (s.states == 16) {
      scan_group_long<16>(s, e, end);
    } else {
      scan_group_long<0>(s, e, end);
    }
  }
  if (s.kept) kept_end();
}

static const char* w_selective_scan(const Node& node) {
  namespace in = at::selective_scan::in;
  namespace out = at::selective_scan::out;
  if (const char* why = w_f32_and_lengths(node, in::lengths)) return why;
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
  const int32_t* lengths = node.in(in::lengths).ptr<int32_t>();
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
    if (lengths) s.length = lengths[b];
    scan_channels(s, e0, e1);
  });
}

}  // namespace mb::cpu::MB_TARGET
