// Rotary positions: pairs (i, i + P/2) of each head of x(B,T,H*P) turn by (position[b] + first + t) base^(-2i/P);
// `inverse` turns them back, which is the gradient.
#pragma once
#include "operand.h"

namespace mb::ref {

inline void rope(const Node& node) {
  const Tensor& x = node.in(at::rope::in::x);
  const std::vector<int64_t> position = load_ids(node.in(at::rope::in::position));
  const int64_t B = x.dim(0), T = x.dim(1), H = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  const int64_t P = x.dim(2) / H, half = P / 2;
  const double base = node.attr(at::rope::attr::base), start = node.attr(at::rope::attr::first);
  const double sign = node.attr(at::rope::attr::inverse) != 0 ? -1 : 1;
  Vec v = load(x);
  for (int64_t b = 0; b < B; b++) {
    for (int64_t t = 0; t < T; t++) {
      for (int64_t h = 0; h < H; h++) {
        double* head = &v[(b * T + t) * H * P + h * P];
        for (int64_t i = 0; i < half; i++) {
          const double at = static_cast<double>((position.empty() ? 0 : position[b]) + t) + start;
          const double angle = at * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(P));
          const double c = std::cos(angle), s = sign * std::sin(angle);
          const double first = head[i], second = head[i + half];
          head[i] = first * c - second * s;
          head[i + half] = second * c + first * s;
        }
      }
    }
  }
  store(node.out(at::rope::out::y), v);
}

}  // namespace mb::ref
