// RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba, Kiros & Hinton 2016) over the last axis of x(R,D).
//
//   rms_norm:   rstd = 1 / sqrt(mean(x^2) + eps);                        y = x rstd weight
//   layer_norm: mean(x), rstd = 1 / sqrt(mean((x - mean)^2) + eps);      y = (x - mean) rstd weight + bias
// With xhat the normalised x and g = dy weight:
//   rms_norm:   dx = rstd (g - xhat mean(g xhat)) + add                  dweight = sum_r dy xhat
//   layer_norm: dx = rstd (g - mean(g) - xhat mean(g xhat)) + add        dbias = sum_r dy
#pragma once
#include "operand.h"

namespace mb::ref {

struct Normalised {
  Vec y, mean, rstd;
};

// centre: LayerNorm, whose bias (D) may be empty; else RMSNorm, whose mean is 0.
inline Normalised norm_of(const Vec& x, const Vec& weight, const Vec& bias, bool centre, double eps, int64_t R) {
  const int64_t D = static_cast<int64_t>(weight.size());
  Normalised n{Vec(R * D), Vec(R), Vec(R)};
  for (int64_t r = 0; r < R; r++) {
    const double* row = &x[r * D];
    double mean = 0, square = 0;
    if (centre) {
      for (int64_t d = 0; d < D; d++) mean += row[d] / static_cast<double>(D);
    }
    for (int64_t d = 0; d < D; d++) square += (row[d] - mean) * (row[d] - mean) / static_cast<double>(D);
    const double rstd = 1 / std::sqrt(square + eps);
    for (int64_t d = 0; d < D; d++) {
      n.y[r * D + d] = (row[d] - mean) * rstd * weight[d] + (bias.empty() ? 0 : bias[d]);
    }
    n.mean[r] = mean;
    n.rstd[r] = rstd;
  }
  return n;
}

struct NormGradient {
  Vec dx, dweight, dbias;
};

// mean is empty for RMSNorm, add may be.
inline NormGradient norm_gradient(const Vec& dy, const Vec& x, const Vec& weight, const Vec& mean, const Vec& rstd,
                                  const Vec& add) {
  const int64_t D = static_cast<int64_t>(weight.size()), R = static_cast<int64_t>(rstd.size());
  NormGradient n{Vec(R * D), Vec(D), Vec(D)};
  for (int64_t r = 0; r < R; r++) {
    const double centre = mean.empty() ? 0 : mean[r];
    double g_mean = 0, g_xhat_mean = 0;
    for (int64_t d = 0; d < D; d++) {
      const double xhat = (x[r * D + d] - centre) * rstd[r], g = dy[r * D + d] * weight[d];
      g_mean += g / static_cast<double>(D);
      g_xhat_mean += g * xhat / static_cast<double>(D);
      n.dweight[d] += dy[r * D + d] * xhat;
      n.dbias[d] += dy[r * D + d];
    }
    if (mean.empty()) g_mean = 0;
    for (int64_t d = 0; d < D; d++) {
      const double xhat = (x[r * D + d] - centre) * rstd[r], g = dy[r * D + d] * weight[d];
      n.dx[r * D + d] = rstd[r] * (g - g_mean - xhat * g_xhat_mean) + (add.empty() ? 0 : add[r * D + d]);
    }
  }
  return n;
}

inline void rms_norm(const Node& node) {
  const Tensor& x = node.in(at::rms_norm::in::x);
  const Normalised n = norm_of(load(x), load(node.in(at::rms_norm::in::weight)), {}, false,
                               node.attr(at::rms_norm::attr::eps), x.rows());
  store(node.out(at::rms_norm::out::y), n.y);
  store(node.out(at::rms_norm::out::rstd), n.rstd);
}

inline void rms_norm_grad(const Node& node) {
  namespace in = at::rms_norm_grad::in;
  const NormGradient n = norm_gradient(load(node.in(in::dy)), load(node.in(in::x)), load(node.in(in::weight)), {},
                                       load(node.in(in::rstd)), load(node.in(in::add)));
  store(node.out(at::rms_norm_grad::out::dx), n.dx);
  store_gradient(node.out(at::rms_norm_grad::out::dweight), n.dweight,
                 node.attr(at::rms_norm_grad::attr::accumulate) != 0);
}

inline void layer_norm(const Node& node) {
  namespace in = at::layer_norm::in;
  const Tensor& x = node.in(in::x);
  const Normalised n = norm_of(load(x), load(node.in(in::weight)), load(node.in(in::bias)), true,
                               node.attr(at::layer_norm::attr::eps), x.rows());
  store(node.out(at::layer_norm::out::y), n.y);
  store(node.out(at::layer_norm::out::mean), n.mean);
  store(node.out(at::layer_norm::out::rstd), n.rstd);
}

inline void layer_norm_grad(const Node& node) {
  namespace in = at::layer_norm_grad::in;
  namespace out = at::layer_norm_grad::out;
  const NormGradient n = norm_gradient(load(node.in(in::dy)), load(node.in(in::x)), load(node.in(in::weight)),
                                       load(node.in(in::mean)), load(node.in(in::rstd)), load(node.in(in::add)));
  const bool accumulate = node.attr(at::layer_norm_grad::attr::accumulate) != 0;
  store(node.out(out::dx), n.dx);
  store_gradient(node.out(out::dweight), n.dweight, accumulate);
  store_gradient(node.out(out::dbias), n.dbias, accumulate);
}

}  // namespace mb::ref
