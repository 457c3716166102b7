// Gradient of the selective scan (selective_scan-inl.h), backwards in time. With g = dL/dh[t], carried:
//   ds = dy silu(z);  dz = dy s silu'(z);  dC[t] = sum_E ds h[t];  dD = sum ds u;  g += ds C[t]
//   ddt = sum_n g (A a h[t-1] + B u);  dA = sum g dt a h[t-1];  dB[t] = sum_E g dt u;  du = ds D + dt sum_n g B
//   ddelta = ddt softplus'(delta + delta_bias);  ddelta_bias = sum ddelta;  then g <- a g
// States are computed again from the start of each chunk. Sums over channels are kept apart for a fixed number of
// groups of channels, and sums over time for each sequence; both are then added in order, so no bit depends on the
// threads.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int64_t kScanGroups = 8;

struct ScanGrad {
  Scan forward;  // of the sequence at hand; chunks are read, y and the states are not used
  const float *dy = nullptr, *dstate_out = nullptr;
  int64_t dy_stride = 0, du_stride = 0, ddelta_stride = 0, dz_stride = 0;
  float *du = nullptr, *ddelta = nullptr, *dz = nullptr, *dstate = nullptr;
  float *dA = nullptr, *dD = nullptr, *ddelta_bias = nullptr;  // of this sequence alone: (E,N), (E), (E)
  float *dB = nullptr, *dC = nullptr;                          // of this group of channels: (T,N) each
  float* scratch = nullptr;                                    // scan_grad_floats()
};

// Room for one chunk of W channels: the decays, the states with the one before, and dt.
MB_INLINE int64_t scan_grad_floats(int64_t chunk, int64_t states) { return W * (2 * chunk * states + states + chunk); }

// a, h: [step][n][W], h from one step before.
template <int kN>
MB_INLINE void scan_again(const Scan& s, int64_t e, int lanes, int64_t t0, int64_t t1, const float* A, float* a,
                          float* h, float* dts) {
  const int64_t n = kN ? kN : s.states;
  const V bias = s.delta_bias ? load_part(s.delta_bias + e, lanes) : zero();
  to_lanes(h, s.chunks + t0 / s.chunk * s.chunks_stride + e * n, n, lanes, 1.0f);
  for (int64_t t = t0; t < t1; t++, a += n * W, h += n * W) {
    prefetch_far(s.delta + (t + kAhead) * s.delta_stride + e);
    prefetch_far(s.u + (t + kAhead) * s.u_stride + e);
    V dt = load_part(s.delta + t * s.delta_stride + e, lanes) + bias;
    if (s.softplus) dt = softplus(dt);
    store(dts + (t - t0) * W, dt);
    const V x = dt * load_part(s.u + t * s.u_stride + e, lanes);
    const float* b = s.B + t * s.B_stride;
    MB_UNROLL
    for (int64_t i = 0; i < n; i++) {
      const V grow = exp2_fast(dt * load(A + i * W));
      store(a + i * W, grow);
      store(h + (n + i) * W, fma(grow, load(h + i * W), x * set1(b[i])));
    }
  }
}

// One step for W channels. dh: g of this step's end, carried; dA: [n][W]. Adds to rows dB and dC, or starts them.
template <int kN>
MB_INLINE void scan_grad_step(const ScanGrad& g, int64_t t, int64_t e, int lanes, bool first, const float* A,
                              const float* a, const float* h, V dt, float* dh, float* dA, V* dD, V* dbias) {
  const Scan& s = g.forward;
  const int64_t n = kN ? kN : s.states;
  const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
  const V u = load_part(s.u + t * s.u_stride + e, lanes), x = dt * u;
  const V dy = load_part(g.dy + t * g.dy_stride + e, lanes);
  const V skip = s.D ? load_part(s.D + e, lanes) : zero();
  const V z = s.z ? load_part(s.z + t * s.z_stride + e, lanes) : zero();
  const V gate = s.z ? sigmoid(z) : set1(1.0f);
  const V ds = s.z ? dy * z * gate : dy;
  V out = skip * u, through_decay = zero(), through_input = zero();
  for (int64_t i0 = 0; i0 < n; i0 += W) {
    const int part = kN || n - i0 >= W ? W : static_cast<int>(n - i0);
    V to_B[W], to_C[W];
    MB_UNROLL
    for (int j = 0; j < W; j++) {
      to_B[j] = to_C[j] = zero();
      if (j >= part) continue;
      const int64_t i = i0 + j;
      const V after = load(h + (n + i) * W), decay = load(a + i * W), ci = set1(c[i]);
      out = fma(after, ci, out);
      to_C[j] = ds * after;
      const V grad = fma(ds, ci, load(dh + i * W));
      const V kept = grad * (decay * load(h + i * W));
      through_decay = fma(kept, load(A + i * W), through_decay);
      through_input = fma(grad, set1(b[i]), through_input);
      store(dA + i * W, fma(kept, dt, load(dA + i * W)));
      to_B[j] = grad * x;
      store(dh + i * W, grad * decay);
    }
    V sum_B = sum_each(to_B), sum_C = sum_each(to_C);
    float *dB = g.dB + t * n + i0, *dC = g.dC + t * n + i0;
    if (!first) sum_B = sum_B + load_part(dB, part), sum_C = sum_C + load_part(dC, part);
    store_part(dB, sum_B, part);
    store_part(dC, sum_C, part);
  }
  // A is held in units of log 2, so that a = 2^(dt A).
  V ddt = fma(through_decay, set1(1.0f / kLog2e), u * through_input);
  if (s.softplus) {
    V w = load_part(s.delta + t * s.delta_stride + e, lanes);
    if (s.delta_bias) w = w + load_part(s.delta_bias + e, lanes);
    ddt = ddt * sigmoid(w);
  }
  store_part(g.du + t * g.du_stride + e, fma(ds, skip, dt * through_input), lanes);
  store_part(g.ddelta + t * g.ddelta_stride + e, ddt, lanes);
  if (s.z && g.dz) {
    const V slope = gate * fma(z, set1(1.0f) - gate, set1(1.0f));
    store_part(g.dz + t * g.dz_stride + e, dy * out * slope, lanes);
  }
  *dD = fma(ds, u, *dD);
  // Lanes past the end see no delta, so they would add what belongs to no channel; they are never stored.
  *dbias = *dbias + ddt;
}

template <int kN>
static void scan_grad_block(const ScanGrad& g, int64_t e, int lanes, bool first) {
  const Scan& s = g.forward;
  const int64_t n = kN ? kN : s.states;
  alignas(64) float A[(kN ? kN : kMaxStates) * W], dh[(kN ? kN : kMaxStates) * W], dA[(kN ? kN : kMaxStates) * W];
  float *a = g.scratch, *h = a + s.chunk * n * W, *dts = h + (s.chunk + 1) * n * W;
  to_lanes(A, s.A + e * n, n, lanes, kLog2e);
  memset(dA, 0, sizeof(float) * static_cast<size_t>(n) * W);
  if (g.dstate_out) {
    to_lanes(dh, g.dstate_out + e * n, n, lanes, 1.0f);
  } else {
    memset(dh, 0, sizeof(float) * static_cast<size_t>(n) * W);
  }
  V dD = zero(), dbias = zero();
  for (int64_t t0 = (s.steps - 1) / s.chunk * s.chunk; t0 >= 0; t0 -= s.chunk) {
    const int64_t t1 = t0 + s.chunk < s.steps ? t0 + s.chunk : s.steps;
    scan_again<kN>(s, e, lanes, t0, t1, A, a, h, dts);
    for (int64_t t = t1 - 1; t >= t0; t--) {
      const int64_t at = t - t0, ahead = t - kAhead > 0 ? t - kAhead : 0;
      prefetch_far(g.dy + ahead * g.dy_stride + e);
      if (s.z) prefetch_far(s.z + ahead * s.z_stride + e);
      scan_grad_step<kN>(g, t, e, lanes, first, A, a + at * n * W, h + at * n * W, load(dts + at * W), dh, dA, &dD,
                         &dbias);
    }
  }
  from_lanes(g.dA + e * n, dA, n, lanes);
  if (g.dstate) from_lanes(g.dstate + e * n, dh, n, lanes);
  store_part(g.dD + e, dD, lanes);
  store_part(g.ddelta_bias + e, dbias, lanes);
}

struct ScanGradShape {
  int64_t batch, T, E, N, chunk, groups;
  int64_t task_rows() const { return groups * batch * T * N; }  // floats in the partial dB, and in dC
  int64_t sequence() const { return E * N + 2 * E; }            // floats in one sequence's dA, dD, ddelta_bias
  int64_t shared() const { return 2 * task_rows() + batch * sequence(); }
};

static ScanGradShape scan_grad_shape(const Node& node) {
  namespace in = at::selective_scan_grad::in;
  const Tensor& u = node.in(in::u);
  const int64_t T = u.dim(1), E = u.dim(2), blocks = (E + kChannelBlock - 1) / kChannelBlock;
  const int64_t asked = chunk_steps(node.attr(at::selective_scan_grad::attr::chunk), T), chunk = asked < T ? asked : T;
  return {u.dim(0), T, E, node.in(in::A).cols(), chunk, blocks < kScanGroups ? blocks : kScanGroups};
}

// Each thread's part starts on a cache line of its own.
MB_INLINE int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

static int64_t s_selective_scan_grad(const Node& node, int threads) {
  const ScanGradShape d = scan_grad_shape(node);
  const int64_t own = scan_grad_floats(d.chunk, d.N);
  return (whole_lines(d.shared()) + threads * whole_lines(own)) * static_cast<int64_t>(sizeof(float));
}

static const char* w_selective_scan_grad(const Node& node) {
  namespace in = at::selective_scan_grad::in;
  namespace out = at::selective_scan_grad::out;
  if (const char* why = w_all_f32(node)) return why;
  if (node.in(in::A).cols() > kMaxStates) return "selective_scan_grad: expected at most 256 states";
  if (!node.in(in::chunks)) return "selective_scan_grad: expected the states that the scan left in chunks";
  const bool tight = node.in(in::A).contiguous() && node.in(in::chunks).contiguous() &&
                     node.in(in::dstate_out).contiguous() && node.out(out::dA).contiguous() &&
                     node.out(out::dstate).contiguous();
  return tight ? nullptr : "selective_scan_grad: expected A and the states to lie without gaps";
}

// Adds the groups' dB and dC, and the sequences' dA, dD and ddelta_bias.
static void scan_grad_reduce(const Node& node, const Team& team, const ScanGradShape& d, const float* parts,
                             const float* sequences) {
  namespace out = at::selective_scan_grad::out;
  const int64_t rows = d.batch * d.T, stride = rows * d.N;
  const Team::Range mine = team.share(rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    const float* from = parts + r * d.N;
    add_parts(node.out(out::dB).row<float>(r), from, d.groups, stride, 0, d.N, false);
    add_parts(node.out(out::dC).row<float>(r), from + d.task_rows(), d.groups, stride, 0, d.N, false);
  }
  const bool accumulate = node.attr(at::selective_scan_grad::attr::accumulate) != 0;
  const Team::Range blocks = team.share((d.E + kChannelBlock - 1) / kChannelBlock);
  const int64_t e0 = blocks.begin * kChannelBlock;
  const int64_t e1 = blocks.end * kChannelBlock < d.E ? blocks.end * kChannelBlock : d.E;
  const auto add = [&](const Tensor& to, int64_t offset, int64_t width) {
    if (to) add_parts(to.ptr<float>(), sequences + offset, d.batch, d.sequence(), e0 * width, e1 * width, accumulate);
  };
  add(node.out(out::dA), 0, d.N);
  add(node.out(out::dD), d.E * d.N, 1);
  add(node.out(out::ddelta_bias), d.E * d.N + d.E, 1);
}

static ScanGrad scan_grad_of(const Node& node, const ScanGradShape& d) {
  namespace in = at::selective_scan_grad::in;
  namespace out = at::selective_scan_grad::out;
  ScanGrad g;
  Scan& s = g.forward;
  s.steps = d.T, s.states = d.N, s.chunk = d.chunk;
  s.chunks_stride = d.E * d.N;
  s.u_stride = node.in(in::u).row_stride, s.delta_stride = node.in(in::delta).row_stride;
  s.B_stride = node.in(in::B).row_stride, s.C_stride = node.in(in::C).row_stride;
  s.z_stride = node.in(in::z).row_stride;
  s.A = node.in(in::A).ptr<float>(), s.D = node.in(in::D).ptr<float>();
  s.delta_bias = node.in(in::delta_bias).ptr<float>();
  s.softplus = node.attr(at::selective_scan_grad::attr::softplus) != 0;
  g.dy_stride = node.in(in::dy).row_stride, g.dz_stride = node.out(out::dz).row_stride;
  g.du_stride = node.out(out::du).row_stride, g.ddelta_stride = node.out(out::ddelta).row_stride;
  return g;
}

// Points the operands at sequence b.
static void scan_grad_seek(const Node& node, const ScanGradShape& d, int64_t b, ScanGrad* g) {
  namespace in = at::selective_scan_grad::in;
  namespace out = at::selective_scan_grad::out;
  Scan& s = g->forward;
  const int64_t row = b * d.T, states = b * d.E * d.N;
  s.u = node.in(in::u).row<float>(row), s.delta = node.in(in::delta).row<float>(row);
  s.B = node.in(in::B).row<float>(row), s.C = node.in(in::C).row<float>(row);
  if (node.in(in::z)) s.z = node.in(in::z).row<float>(row);
  s.chunks = node.in(in::chunks).ptr<float>() + (d.T + d.chunk - 1) / d.chunk * states;
  g->dy = node.in(in::dy).row<float>(row);
  if (node.in(in::dstate_out)) g->dstate_out = node.in(in::dstate_out).ptr<float>() + states;
  g->du = node.out(out::du).row<float>(row), g->ddelta = node.out(out::ddelta).row<float>(row);
  if (node.out(out::dz)) g->dz = node.out(out::dz).row<float>(row);
  if (node.out(out::dstate)) g->dstate = node.out(out::dstate).ptr<float>() + states;
}

static void k_selective_scan_grad(const Node& node, const Team& team) {
  const ScanGradShape d = scan_grad_shape(node);
  float* parts = reinterpret_cast<float*>(team.scratch);
  float* sequences = parts + 2 * d.task_rows();
  const int64_t own = whole_lines(scan_grad_floats(d.chunk, d.N));
  ScanGrad g = scan_grad_of(node, d);
  g.scratch = parts + whole_lines(d.shared()) + team.index * own;
  const int64_t blocks = (d.E + kChannelBlock - 1) / kChannelBlock;
  const Team::Range tasks = team.share(d.groups * d.batch);
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t group = task / d.batch, b = task % d.batch;
    scan_grad_seek(node, d, b, &g);
    g.dA = sequences + b * d.sequence(), g.dD = g.dA + d.E * d.N, g.ddelta_bias = g.dD + d.E;
    g.dB = parts + task * d.T * d.N, g.dC = g.dB + d.task_rows();
    const int64_t e0 = blocks * group / d.groups * kChannelBlock, end = blocks * (group + 1) / d.groups * kChannelBlock;
    const int64_t e1 = end < d.E ? end : d.E;
    for (int64_t e = e0; e < e1; e += W) {
      const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
      if (d.N == 16) {
        scan_grad_block<16>(g, e, lanes, e == e0);
      } else {
        scan_grad_block<0>(g, e, lanes, e == e0);
      }
    }
  }
  team.barrier();
  scan_grad_reduce(node, team, d, parts, sequences);
}

}  // namespace mb::cpu::MB_TARGET
