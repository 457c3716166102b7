// Rotary positions: pairs (i, i + P/2) of each head of x(B,T,H*P) turn by (first + t) base^(-2i/P); `inverse` turns
// them back, which is the gradient. And of steps that go on from a cache, equations in ops.def.
#pragma once
#include "operand.h"

namespace mb::ref {

// Heads of P columns of one row, turned by `at` base^(-2i/P).
inline void turn_heads(double* row, int64_t heads, int64_t P, double at, double base) {
  const int64_t half = P / 2;
  for (int64_t h = 0; h < heads; h++) {
    double* head = row + h * P;
    for (int64_t i = 0; i < half; i++) {
      const double angle = at * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(P));
      const double c = std::cos(angle), s = std::sin(angle);
      const double first = head[i], second = head[i + half];
      head[i] = first * c - second * s;
      head[i + half] = second * c + first * s;
    }
  }
}

inline void rope(const Node& node) {
  const Tensor& x = node.in(at::rope::in::x);
  const int64_t B = x.dim(0), T = x.dim(1), D = x.dim(2), H = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  const double base = node.attr(at::rope::attr::base), first = node.attr(at::rope::attr::first);
  const double sign = node.attr(at::rope::attr::inverse) != 0 ? -1 : 1;
  Vec v = load(x);
  for (int64_t r = 0; r < B * T; r++)
    turn_heads(&v[r * D], H, D / H, sign * (static_cast<double>(r % T) + first), base);
  store(node.out(at::rope::out::y), v);
}

inline void rope_cache_write(const Node& node) {
  namespace in = at::rope_cache_write::in;
  namespace out = at::rope_cache_write::out;
  namespace attr = at::rope_cache_write::attr;
  Vec q = load(node.in(in::q)), k = load(node.in(in::k)), v = load(node.in(in::v));
  Vec keys = load(node.out(out::keys)), values = load(node.out(out::values));
  const std::vector<int64_t> length = load_ids(node.in(in::length)), position = load_ids(node.in(in::position));
  const int64_t B = node.in(in::q).dim(0), T = node.in(in::q).dim(1), D = node.in(in::q).dim(2);
  const int64_t C = node.in(in::k).dim(2), S = node.out(out::keys).dim(1);
  const int64_t H = static_cast<int64_t>(node.attr(attr::heads)), P = D / H, J = C / P;
  for (int64_t b = 0; b < B; b++) {
    for (int64_t t = 0; t < T; t++) {
      const int64_t r = b * T + t, s = length[b] + t;
      const double at = static_cast<double>((position.empty() ? length[b] : position[b]) + t) + node.attr(attr::first);
      turn_heads(&q[r * D], H, P, at, node.attr(attr::base));
      turn_heads(&k[r * C], J, P, at, node.attr(attr::base));
      if (s < 0 || s >= S) continue;
      std::copy_n(&k[r * C], C, &keys[(b * S + s) * C]);
      std::copy_n(&v[r * C], C, &values[(b * S + s) * C]);
    }
  }
  store(node.out(out::y), q);
  store(node.out(out::keys), keys);
  store(node.out(out::values), values);
}

}  // namespace mb::ref
