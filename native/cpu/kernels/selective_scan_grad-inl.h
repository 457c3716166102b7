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

// One group of channels of one sequence.
struct ScanGrad {
  Scan forward;  // chunks are read, y and the states are not used
  const float *dy = nullptr, *dstate_out = nullptr;
  int64_t dy_stride = 0, du_stride = 0, ddelta_stride = 0, dz_stride = 0;
  float *du = nullptr, *ddelta = nullptr, *dz = nullptr, *dstate = nullptr;
  float *dA = nullptr, *dD = nullptr, *ddelta_bias = nullptr;  // of this sequence alone: (E,N), (E), (E)
  float *dB = nullptr, *dC = nullptr;                          // of this group of channels: (T,N) each
  // Scratch of the thread. For all channels of the group, in blocks of [n][W]: A in units of log 2, g, and dA.
  float *A = nullptr, *carried = nullptr, *sum_A = nullptr;
  // For one chunk of one block: decays, and states from one step before, [step][n][W].
  float *decay = nullptr, *states = nullptr;
  // For one chunk of all blocks, [step][width]. The last three become du, ddelta and dz.
  float *dt = nullptr, *ds = nullptr, *u = nullptr, *delta_slope = nullptr, *gate_slope = nullptr;
  int64_t width = 0;

  // Lays the scratch out and returns its length in floats.
  int64_t place(float* scratch, int64_t channels, int64_t chunk, int64_t n) {
    width = channels;
    int64_t used = 0;
    const auto take = [&](float** to, int64_t floats) {
      if (scratch) *to = scratch + used;
      used += floats;
    };
    take(&A, width * n), take(&carried, width * n), take(&sum_A, width * n);
    take(&decay, chunk * n * W);
    take(&states, (chunk + 1) * n * W);
    take(&dt, chunk * width), take(&ds, chunk * width), take(&u, chunk * width);
    take(&delta_slope, chunk * width), take(&gate_slope, chunk * width);
    return used;
  }
};

// What one step of one block needs besides the states, to place i of the staging rows.
MB_INLINE void scan_grad_ahead(const ScanGrad& g, int64_t t, int64_t e, int lanes, int64_t i) {
  const Scan& s = g.forward;
  const V one = set1(1.0f);
  V w = load_part(s.delta + t * s.delta_stride + e, lanes);
  if (s.delta_bias) w = w + load_part(s.delta_bias + e, lanes);
  store(g.dt + i, s.softplus ? softplus(w) : w);
  store(g.delta_slope + i, s.softplus ? sigmoid(w) : one);
  store(g.u + i, load_part(s.u + t * s.u_stride + e, lanes));
  V ds = load_part(g.dy + t * g.dy_stride + e, lanes);
  if (s.z) {
    const V z = load_part(s.z + t * s.z_stride + e, lanes), gate = sigmoid(z);
    store(g.gate_slope + i, ds * gate * fma(z, one - gate, one));
    ds = ds * z * gate;
  }
  store(g.ds + i, ds);
}

// after <- decay before + input B for K states, keeping the decays.
template <int K>
MB_INLINE void scan_states_again(const float* a, const float* b, V dt, V input, float* decay, const float* before,
                                 float* after) {
  V grow[K];
  MB_UNROLL
  for (int i = 0; i < K; i++) grow[i] = dt * load(a + i * W);
  exp2_each<K>(grow);
  MB_UNROLL
  for (int i = 0; i < K; i++) {
    store(decay + i * W, grow[i]);
    store(after + i * W, fma(grow[i], load(before + i * W), input * set1(b[i])));
  }
}

// Steps [t0, t1) of one block, forwards, from the chunk's first state. a: the block's part of A.
template <int kN>
MB_INLINE void scan_again(const ScanGrad& g, int64_t e, int lanes, int64_t t0, int64_t t1, int64_t column,
                          const float* a) {
  const Scan& s = g.forward;
  const int64_t n = kN ? kN : s.states;
  to_lanes(g.states, s.chunks + t0 / s.chunk * s.chunks_stride + e * n, n, lanes, 1.0f);
  for (int64_t t = t0; t < t1; t++) {
    const int64_t at = (t - t0) * g.width + column;
    const V dt = load(g.dt + at), input = dt * load(g.u + at);
    float *decay = g.decay + (t - t0) * n * W, *before = g.states + (t - t0) * n * W, *after = before + n * W;
    const float* b = s.B + t * s.B_stride;
    int64_t i = 0;
    MB_UNROLL
    for (; i + 4 <= n; i += 4) {
      scan_states_again<4>(a + i * W, b + i, dt, input, decay + i * W, before + i * W, after + i * W);
    }
    for (; i < n; i++) {
      scan_states_again<1>(a + i * W, b + i, dt, input, decay + i * W, before + i * W, after + i * W);
    }
  }
}

// Sums over the states of one step.
struct ScanGradSums {
  V out, decay, input;  // C . h; sum g a h[t-1] A; sum g B
};

// One state of one step: g and dA in place; what it adds to dB and dC goes to to_B and to_C.
MB_INLINE void scan_grad_state(const float* a, const float* decay, const float* before, const float* after, float* g,
                               float* dA, V b, V c, V dt, V ds, V input, ScanGradSums* sums, V* to_B, V* to_C) {
  const V h = load(after), grow = load(decay);
  sums->out = fma(h, c, sums->out);
  *to_C = ds * h;
  const V grad = fma(ds, c, load(g)), kept = grad * (grow * load(before));
  sums->decay = fma(kept, load(a), sums->decay);
  sums->input = fma(grad, b, sums->input);
  store(dA, fma(kept, dt, load(dA)));
  *to_B = grad * input;
  store(g, grad * grow);
}

// Step t of the block at `column` of the group, the i-th of its chunk. Adds to rows dB and dC, or starts them where it
// is the group's first block.
template <int kN>
MB_INLINE void scan_grad_step(const ScanGrad& g, int64_t t, int64_t i, int64_t column, bool first, V skip, V* dD,
                              V* dbias) {
  const Scan& s = g.forward;
  const int64_t n = kN ? kN : s.states;
  const float *b = s.B + t * s.B_stride, *c = s.C + t * s.C_stride;
  const float *decay = g.decay + i * n * W, *before = g.states + i * n * W, *after = before + n * W;
  const int64_t place = i * g.width + column, at = column * n;
  const V dt = load(g.dt + place), u = load(g.u + place), ds = load(g.ds + place), input = dt * u;
  ScanGradSums sums{skip * u, zero(), zero()};
  for (int64_t n0 = 0; n0 < n; n0 += W) {
    const int part = kN || n - n0 >= W ? W : static_cast<int>(n - n0);
    V folds_B[W / kFold], folds_C[W / kFold];
    MB_UNROLL
    for (int f = 0; f < W / kFold; f++) {
      V to_B[kFold], to_C[kFold];
      MB_UNROLL
      for (int j = 0; j < kFold; j++) {
        to_B[j] = to_C[j] = zero();
        if (f * kFold + j >= part) continue;
        const int64_t k = n0 + f * kFold + j;
        scan_grad_state(g.A + at + k * W, decay + k * W, before + k * W, after + k * W, g.carried + at + k * W,
                        g.sum_A + at + k * W, set1(b[k]), set1(c[k]), dt, ds, input, &sums, to_B + j, to_C + j);
      }
      folds_B[f] = fold(to_B);
      folds_C[f] = fold(to_C);
    }
    V sum_B = join(folds_B), sum_C = join(folds_C);
    float *dB = g.dB + t * n + n0, *dC = g.dC + t * n + n0;
    if (!first) sum_B = sum_B + load_part(dB, part), sum_C = sum_C + load_part(dC, part);
    store_part(dB, sum_B, part);
    store_part(dC, sum_C, part);
  }
  // A is held in units of log 2, so that a = 2^(dt A).
  const V ddelta = fma(sums.decay, set1(1.0f / kLog2e), u * sums.input) * load(g.delta_slope + place);
  store(g.u + place, fma(ds, skip, dt * sums.input));
  store(g.delta_slope + place, ddelta);
  if (s.z) store(g.gate_slope + place, sums.out * load(g.gate_slope + place));
  *dD = fma(ds, u, *dD);
  *dbias = *dbias + ddelta;
}

// Channels [e0, e1), chunk by chunk. Rows lie a page apart or more, so operands are read, and results written, a whole
// row of the group at a time.
template <int kN>
static void scan_grad_group(const ScanGrad& g, int64_t e0, int64_t e1) {
  const Scan& s = g.forward;
  const int64_t n = kN ? kN : s.states;
  const auto each_block = [&](auto f) {
    for (int64_t e = e0; e < e1; e += W) f(e, e1 - e >= W ? W : static_cast<int>(e1 - e), (e - e0) * n);
  };
  each_block([&](int64_t e, int lanes, int64_t at) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(n) * W;
    to_lanes(g.A + at, s.A + e * n, n, lanes, kLog2e);
    memset(g.sum_A + at, 0, bytes);
    if (g.dstate_out) {
      to_lanes(g.carried + at, g.dstate_out + e * n, n, lanes, 1.0f);
    } else {
      memset(g.carried + at, 0, bytes);
    }
    store_part(g.dD + e, zero(), lanes);
    store_part(g.ddelta_bias + e, zero(), lanes);
  });
  for (int64_t t0 = (s.steps - 1) / s.chunk * s.chunk; t0 >= 0; t0 -= s.chunk) {
    const int64_t t1 = t0 + s.chunk < s.steps ? t0 + s.chunk : s.steps;
    for (int64_t t = t0; t < t1; t++) {
      each_block([&](int64_t e, int lanes, int64_t) { scan_grad_ahead(g, t, e, lanes, (t - t0) * g.width + e - e0); });
    }
    each_block([&](int64_t e, int lanes, int64_t at) {
      scan_again<kN>(g, e, lanes, t0, t1, e - e0, g.A + at);
      const V skip = s.D ? load_part(s.D + e, lanes) : zero();
      V dD = load_part(g.dD + e, lanes), dbias = load_part(g.ddelta_bias + e, lanes);
      for (int64_t t = t1 - 1; t >= t0; t--) {
        scan_grad_step<kN>(g, t, t - t0, e - e0, e == e0, skip, &dD, &dbias);
      }
      store_part(g.dD + e, dD, lanes);
      store_part(g.ddelta_bias + e, dbias, lanes);
    });
    for (int64_t t = t0; t < t1; t++) {
      const int64_t at = (t - t0) * g.width;
      const size_t bytes = sizeof(float) * static_cast<size_t>(e1 - e0);
      memcpy(g.du + t * g.du_stride + e0, g.u + at, bytes);
      memcpy(g.ddelta + t * g.ddelta_stride + e0, g.delta_slope + at, bytes);
      if (s.z && g.dz) memcpy(g.dz + t * g.dz_stride + e0, g.gate_slope + at, bytes);
    }
  }
  each_block([&](int64_t e, int lanes, int64_t at) {
    from_lanes(g.dA + e * n, g.sum_A + at, n, lanes);
    if (g.dstate) from_lanes(g.dstate + e * n, g.carried + at, n, lanes);
  });
}

struct ScanGradShape {
  int64_t batch, T, E, N, chunk, groups, width;                 // width: channels of the widest group, in whole blocks
  int64_t task_rows() const { return groups * batch * T * N; }  // floats in the partial dB, and in dC
  int64_t sequence() const { return E * N + 2 * E; }            // floats in one sequence's dA, dD, ddelta_bias
  int64_t shared() const { return 2 * task_rows() + batch * sequence(); }
};

static ScanGradShape scan_grad_shape(const Node& node) {
  namespace in = at::selective_scan_grad::in;
  const Tensor& u = node.in(in::u);
  const int64_t T = u.dim(1), E = u.dim(2), blocks = (E + kChannelBlock - 1) / kChannelBlock;
  const int64_t asked = chunk_steps(node.attr(at::selective_scan_grad::attr::chunk), T), chunk = asked < T ? asked : T;
  const int64_t groups = blocks < kScanGroups ? blocks : kScanGroups;
  return {u.dim(0), T, E, node.in(in::A).cols(), chunk, groups, (blocks + groups - 1) / groups * kChannelBlock};
}

// Each thread's part starts on a cache line of its own.
MB_INLINE int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

static int64_t s_selective_scan_grad(const Node& node, int threads) {
  const ScanGradShape d = scan_grad_shape(node);
  const int64_t own = ScanGrad{}.place(nullptr, d.width, d.chunk, d.N);
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
  ScanGrad g = scan_grad_of(node, d);
  const int64_t own = whole_lines(g.place(nullptr, d.width, d.chunk, d.N));
  g.place(parts + whole_lines(d.shared()) + team.index * own, d.width, d.chunk, d.N);
  const int64_t blocks = (d.E + kChannelBlock - 1) / kChannelBlock;
  const Team::Range tasks = team.share(d.groups * d.batch);
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t group = task / d.batch, b = task % d.batch;
    scan_grad_seek(node, d, b, &g);
    g.dA = sequences + b * d.sequence(), g.dD = g.dA + d.E * d.N, g.ddelta_bias = g.dD + d.E;
    g.dB = parts + task * d.T * d.N, g.dC = g.dB + d.task_rows();
    const int64_t e0 = blocks * group / d.groups * kChannelBlock, end = blocks * (group + 1) / d.groups * kChannelBlock;
    const int64_t e1 = end < d.E ? end : d.E;
    if (d.N == 16) {
      scan_grad_group<16>(g, e0, e1);
    } else {
      scan_grad_group<0>(g, e0, e1);
    }
  }
  team.barrier();
  scan_grad_reduce(node, team, d, parts, sequences);
}

}  // namespace mb::cpu::MB_TARGET
