// Causal convolution as long as the sequence, term by term. u, y(B,T,E), k(E,T), D(E):
//   y[t] = sum_(l<=t) k[l] u[t-l] + D u[t]                                        (D absent: 0)
//   du[t] = sum_l k[l] dy[t+l] + D dy[t],  dk[l] = sum_(b,t) u[t-l] dy[t],  dD = sum_(b,t) u[t] dy[t]
#pragma once
#include "operand.h"

namespace mb::ref {

inline void long_conv(const Node& node) {
  namespace in = at::long_conv::in;
  const Vec u = load(node.in(in::u)), k = load(node.in(in::k)), D = load(node.in(in::D));
  const int64_t B = node.in(in::u).dim(0), T = node.in(in::u).dim(1), E = node.in(in::u).dim(2);
  Vec y(u.size());
  for (int64_t b = 0; b < B; b++) {
    for (int64_t t = 0; t < T; t++) {
      double* to = &y[(b * T + t) * E];
      for (int64_t l = 0; l <= t; l++) {
        for (int64_t e = 0; e < E; e++) to[e] += k[e * T + l] * u[(b * T + t - l) * E + e];
      }
      for (int64_t e = 0; e < E && !D.empty(); e++) to[e] += D[e] * u[(b * T + t) * E + e];
    }
  }
  store(node.out(at::long_conv::out::y), y);
}

inline void long_conv_grad(const Node& node) {
  namespace in = at::long_conv_grad::in;
  namespace out = at::long_conv_grad::out;
  const Vec dy = load(node.in(in::dy)), u = load(node.in(in::u)), k = load(node.in(in::k)), D = load(node.in(in::D));
  const int64_t B = node.in(in::u).dim(0), T = node.in(in::u).dim(1), E = node.in(in::u).dim(2);
  Vec du(u.size()), dk(k.size()), dD(E);
  for (int64_t b = 0; b < B; b++) {
    for (int64_t t = 0; t < T; t++) {
      const double* d = &dy[(b * T + t) * E];
      for (int64_t l = 0; l <= t; l++) {
        const int64_t from = (b * T + t - l) * E;
        for (int64_t e = 0; e < E; e++) {
          du[from + e] += k[e * T + l] * d[e];
          dk[e * T + l] += u[from + e] * d[e];
        }
      }
      for (int64_t e = 0; e < E; e++) {
        dD[e] += u[(b * T + t) * E + e] * d[e];
        if (!D.empty()) du[(b * T + t) * E + e] += D[e] * d[e];
      }
    }
  }
  store(node.out(out::du), du);
  store(node.out(out::dk), dk);
  store_gradient(node.out(out::dD), dD, node.attr(at::long_conv_grad::attr::accumulate) != 0);
}

}  // namespace mb::ref
