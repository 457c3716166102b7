// RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba, Kiros & Hinton 2016) over the last axis of x(R,D).
//   rms_norm:   rstd = 1 / sqrt(mean(x^2) + eps);                    y = x rstd weight
//   layer_norm: rstd = 1 / sqrt(mean((x - mean(x))^2) + eps);        y = (x - mean) rstd weight + bias
// With xhat the normalised x and g = dy weight:
//   dx = rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) for RMSNorm; dweight = sum_r dy xhat; dbias = sum_r dy
#pragma once

namespace mb::cpu::MB_TARGET {

// Calls f(column, lanes) over D columns.
template <class F>
MB_INLINE void each_part(int64_t D, F f) {
  int64_t d = 0;
  for (; d + W <= D; d += W) f(d, W);
  if (d < D) f(d, static_cast<int>(D - d));
}

// The mean of (x - centre)^2.
MB_INLINE float mean_square(const float* x, int64_t D, float centre) {
  V sums[4] = {zero(), zero(), zero(), zero()};
  const V c = set1(centre);
  int64_t d = 0;
  for (; d + 4 * W <= D; d += 4 * W) {
    for (int i = 0; i < 4; i++) {
      const V v = load(x + d + i * W) - c;
      sums[i] = fma(v, v, sums[i]);
    }
  }
  for (; d < D; d += W) {
    // Lanes past the end read the centre itself, so that they add nothing.
    alignas(64) float part[W];
    const int n = D - d < W ? static_cast<int>(D - d) : W;
    store(part, c);
    for (int i = 0; i < n; i++) part[i] = x[d + i];
    const V v = load(part) - c;
    sums[0] = fma(v, v, sums[0]);
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(D);
}

MB_INLINE float mean_of(const float* x, int64_t D) {
  V sum = zero();
  each_part(D, [&](int64_t d, int n) { sum = sum + load_part(x + d, n); });
  return reduce_add(sum) / static_cast<float>(D);
}

// One row; weight and bias (D), bias may be null. mean and rstd receive what the gradient needs.
MB_INLINE void norm_row(float* y, const float* x, const float* weight, const float* bias, int64_t D, float eps,
                        bool centre, float* mean, float* rstd) {
  *mean = centre ? mean_of(x, D) : 0.0f;
  *rstd = 1.0f / __builtin_sqrtf(mean_square(x, D, *mean) + eps);
  const V m = set1(*mean), s = set1(*rstd);
  each_part(D, [&](int64_t d, int n) {
    V v = (load_part(x + d, n) - m) * s * load_part(weight + d, n);
    if (bias) v = v + load_part(bias + d, n);
    store_part(y + d, v, n);
  });
}

static void norm_rows(const Team& team, const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& mean, const Tensor& rstd, float eps, bool centre) {
  const Team::Range rows = team.share(x.rows());
  for (int64_t r = rows.begin; r < rows.end; r++) {
    float m, s;
    norm_row(y.row<float>(r), x.row<float>(r), weight.ptr<float>(), bias.ptr<float>(), x.cols(), eps, centre, &m, &s);
    if (mean) mean.ptr<float>()[r] = m;
    if (rstd) rstd.ptr<float>()[r] = s;
  }
}

static void k_rms_norm(const Node& node, const Team& team) {
  namespace in = at::rms_norm::in;
  norm_rows(team, node.out(at::rms_norm::out::y), node.in(in::x), node.in(in::weight), Tensor{}, Tensor{},
            node.out(at::rms_norm::out::rstd), static_cast<float>(node.attr(at::rms_norm::attr::eps)), false);
}

static void k_layer_norm(const Node& node, const Team& team) {
  namespace in = at::layer_norm::in;
  namespace out = at::layer_norm::out;
  norm_rows(team, node.out(out::y), node.in(in::x), node.in(in::weight), node.in(in::bias), node.out(out::mean),
            node.out(out::rstd), static_cast<float>(node.attr(at::layer_norm::attr::eps)), true);
}

// Rows are summed in this many fixed groups, whatever the number of threads, and the groups are then added in order.
constexpr int64_t kNormGroups = 16;

struct NormGrad {
  Tensor dx, dweight, dbias, dy, x, weight, mean, rstd, add;
  bool accumulate;
};

// dx of one row; adds the row's share to dweight and dbias.
static void norm_grad_row(const NormGrad& g, int64_t r, float* dweight, float* dbias) {
  const int64_t D = g.x.cols();
  const float *x = g.x.row<float>(r), *dy = g.dy.row<float>(r), *weight = g.weight.ptr<float>();
  const float* add = g.add ? g.add.row<float>(r) : nullptr;
  float* dx = g.dx.row<float>(r);
  const V rstd = set1(g.rstd.ptr<float>()[r]), mean = set1(g.mean ? g.mean.ptr<float>()[r] : 0.0f);
  V g_sum = zero(), gx_sum = zero();
  each_part(D, [&](int64_t d, int n) {
    const V v = load_part(dy + d, n) * load_part(weight + d, n);
    g_sum = g_sum + v;
    gx_sum = fma(v, (load_part(x + d, n) - mean) * rstd, gx_sum);
  });
  const V g_mean = set1(g.mean ? reduce_add(g_sum) / static_cast<float>(D) : 0.0f);
  const V gx_mean = set1(reduce_add(gx_sum) / static_cast<float>(D));
  each_part(D, [&](int64_t d, int n) {
    const V up = load_part(dy + d, n), xhat = (load_part(x + d, n) - mean) * rstd;
    const V own = rstd * (up * load_part(weight + d, n) - g_mean - xhat * gx_mean);
    store_part(dx + d, add ? own + load_part(add + d, n) : own, n);
    store_part(dweight + d, fma(up, xhat, load_part(dweight + d, n)), n);
    store_part(dbias + d, up + load_part(dbias + d, n), n);
  });
}

// to[d] (+)= the sum of `parts` rows of D floats, in order, for columns [first, last).
static void add_parts(float* to, const float* parts, int64_t count, int64_t stride, int64_t first, int64_t last,
                      bool accumulate) {
  for (int64_t d = first; d < last; d += W) {
    const int n = last - d < W ? static_cast<int>(last - d) : W;
    V sum = zero();
    for (int64_t i = 0; i < count; i++) sum = sum + load_part(parts + i * stride + d, n);
    if (accumulate) sum = sum + load_part(to + d, n);
    store_part(to + d, sum, n);
  }
}

static void norm_grad(const Team& team, const NormGrad& g) {
  const int64_t D = g.x.cols(), R = g.x.rows();
  float* parts = reinterpret_cast<float*>(team.scratch);
  const Team::Range groups = team.share(kNormGroups);
  for (int64_t group = groups.begin; group < groups.end; group++) {
    float *dweight = parts + group * 2 * D, *dbias = dweight + D;
    memset(dweight, 0, sizeof(float) * static_cast<size_t>(2 * D));
    for (int64_t r = R * group / kNormGroups; r < R * (group + 1) / kNormGroups; r++) {
      norm_grad_row(g, r, dweight, dbias);
    }
  }
  team.barrier();
  const Team::Range blocks = team.share((D + W - 1) / W);
  const int64_t first = blocks.begin * W, last = blocks.end * W < D ? blocks.end * W : D;
  add_parts(g.dweight.ptr<float>(), parts, kNormGroups, 2 * D, first, last, g.accumulate);
  if (g.dbias) add_parts(g.dbias.ptr<float>(), parts + D, kNormGroups, 2 * D, first, last, g.accumulate);
}

static int64_t s_norm_grad(const Node& node, int) {
  return kNormGroups * 2 * node.out(0).cols() * static_cast<int64_t>(sizeof(float));
}

static void k_rms_norm_grad(const Node& node, const Team& team) {
  namespace in = at::rms_norm_grad::in;
  namespace out = at::rms_norm_grad::out;
  norm_grad(team,
            {node.out(out::dx), node.out(out::dweight), Tensor{}, node.in(in::dy), node.in(in::x), node.in(in::weight),
             Tensor{}, node.in(in::rstd), node.in(in::add), node.attr(at::rms_norm_grad::attr::accumulate) != 0});
}

static void k_layer_norm_grad(const Node& node, const Team& team) {
  namespace in = at::layer_norm_grad::in;
  namespace out = at::layer_norm_grad::out;
  norm_grad(team, {node.out(out::dx), node.out(out::dweight), node.out(out::dbias), node.in(in::dy), node.in(in::x),
                   node.in(in::weight), node.in(in::mean), node.in(in::rstd), node.in(in::add),
                   node.attr(at::layer_norm_grad::attr::accumulate) != 0});
}

}  // namespace mb::cpu::MB_TARGET
