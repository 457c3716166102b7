// The global gradient norm, and AdamW (Loshchilov & Hutter 2019, algorithm 2).
//
//   norm = scale sqrt(sum over all gradients of g^2)
//   g' = g scale min(1, clip / (norm + 1e-6))           (clip <= 0, or no norm: g' = g scale)
//   m = beta1 m + (1 - beta1) g';   v = beta2 v + (1 - beta2) g'^2
//   param = param (1 - lr weight_decay) - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
// scalars: lr, step (from 1). param, m and v are updated in place.
#pragma once
#include <algorithm>

#include "operand.h"

namespace mb::ref {

inline void global_norm(const Node& node) {
  double sum = 0;
  for (int i = 0; i < node.n_in; i++) {
    for (const double g : load(node.in(i))) sum += g * g;
  }
  store(node.out(at::global_norm::out::norm), {node.attr(at::global_norm::attr::scale) * std::sqrt(sum)});
}

inline void adamw(const Node& node) {
  namespace in = at::adamw::in;
  namespace out = at::adamw::out;
  namespace attr = at::adamw::attr;
  Vec param = load(node.out(out::param)), m = load(node.out(out::m)), v = load(node.out(out::v));
  const Vec grad = load(node.in(in::grad)), scalars = load(node.in(in::scalars)), norm = load(node.in(in::norm));
  const double lr = scalars[0], step = scalars[1];
  const double beta1 = node.attr(attr::beta1), beta2 = node.attr(attr::beta2), clip = node.attr(attr::clip);
  double factor = node.attr(attr::scale);
  if (clip > 0 && !norm.empty()) factor *= std::min(1.0, clip / (norm[0] + 1e-6));
  for (size_t i = 0; i < param.size(); i++) {
    const double g = factor * grad[i];
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    const double m_hat = m[i] / (1 - std::pow(beta1, step)), v_hat = v[i] / (1 - std::pow(beta2, step));
    param[i] -= lr * node.attr(attr::weight_decay) * param[i];
    param[i] -= lr * m_hat / (std::sqrt(v_hat) + node.attr(attr::eps));
  }
  store(node.out(out::param), param);
  store(node.out(out::m), m);
  store(node.out(out::v), v);
}

}  // namespace mb::ref
