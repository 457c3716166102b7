// Causal attention with grouped key heads, its gradient, and the cache it reads in decoding; equations in ops.def.
//
// q, y(B,T,H*P), k, v(B,S,J*P), lse(B,T,H): query head h reads key head h / (H / J), and step t the keys up to first +
// t, where first is length[b], or S - T without it.
#pragma once
#include <algorithm>

#include "operand.h"

namespace mb::ref {

struct AttentionSizes {
  int64_t B, T, S, H, J, P;
  int64_t q(int64_t b, int64_t t, int64_t h) const { return ((b * T + t) * H + h) * P; }
  int64_t k(int64_t b, int64_t s, int64_t h) const { return ((b * S + s) * J + h / (H / J)) * P; }
  int64_t row(int64_t b, int64_t t, int64_t h) const { return (b * T + t) * H + h; }
  double scale() const { return 1 / std::sqrt(static_cast<double>(P)); }
};

inline AttentionSizes attention_sizes(const Tensor& q, const Tensor& k, double heads) {
  const int64_t H = static_cast<int64_t>(heads), P = q.dim(2) / H;
  return {q.dim(0), q.dim(1), k.dim(1), H, k.dim(2) / P, P};
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

inline void attention(const Node& node) {
  namespace in = at::attention::in;
  const AttentionSizes a = attention_sizes(node.in(in::q), node.in(in::k), node.attr(at::attention::attr::heads));
  const Vec q = load(node.in(in::q)), k = load(node.in(in::k)), v = load(node.in(in::v));
  const std::vector<int64_t> length = load_ids(node.in(in::length));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Vec y(q.size(), nan), lse(a.B * a.T * a.H, nan);
  for (int64_t b = 0; b < a.B; b++) {
    const int64_t first = length.empty() ? a.S - a.T : length[b];
    if (first < 0 || first + a.T > a.S) continue;
    for (int64_t t = 0; t < a.T; t++) {
      for (int64_t h = 0; h < a.H; h++) {
        Vec score(first + t + 1);
        for (size_t s = 0; s < score.size(); s++) score[s] = a.scale() * dot(&q[a.q(b, t, h)], &k[a.k(b, s, h)], a.P);
        const double top = *std::max_element(score.begin(), score.end());
        double sum = 0;
        for (const double x : score) sum += std::exp(x - top);
        lse[a.row(b, t, h)] = top + std::log(sum);
        double* to = &y[a.q(b, t, h)];
        std::fill(to, to + a.P, 0.0);
        for (size_t s = 0; s < score.size(); s++) {
          const double p = std::exp(score[s] - top) / sum;
          for (int64_t i = 0; i < a.P; i++) to[i] += p * v[a.k(b, s, h) + i];
        }
      }
    }
  }
  store(node.out(at::attention::out::y), y);
  store(node.out(at::attention::out::lse), lse);
}

inline void attention_grad(const Node& node) {
  namespace in = at::attention_grad::in;
  namespace out = at::attention_grad::out;
  const AttentionSizes a = attention_sizes(node.in(in::q), node.in(in::k), node.attr(at::attention_grad::attr::heads));
  const Vec dy = load(node.in(in::dy)), y = load(node.in(in::y)), lse = load(node.in(in::lse));
  const Vec q = load(node.in(in::q)), k = load(node.in(in::k)), v = load(node.in(in::v));
  Vec dq(q.size()), dk(k.size()), dv(v.size());
  for (int64_t b = 0; b < a.B; b++) {
    for (int64_t t = 0; t < a.T; t++) {
      for (int64_t h = 0; h < a.H; h++) {
        const int64_t at_q = a.q(b, t, h);
        const double o = dot(&dy[at_q], &y[at_q], a.P);
        for (int64_t s = 0; s <= a.S - a.T + t; s++) {
          const int64_t at_k = a.k(b, s, h);
          const double p = std::exp(a.scale() * dot(&q[at_q], &k[at_k], a.P) - lse[a.row(b, t, h)]);
          const double ds = p * (dot(&dy[at_q], &v[at_k], a.P) - o) * a.scale();
          for (int64_t i = 0; i < a.P; i++) {
            dq[at_q + i] += ds * k[at_k + i];
            dk[at_k + i] += ds * q[at_q + i];
            dv[at_k + i] += p * dy[at_q + i];
          }
        }
      }
    }
  }
  store(node.out(out::dq), dq);
  store(node.out(out::dk), dk);
  store(node.out(out::dv), dv);
}

inline void cache_write(const Node& node) {
  const Tensor &cache = node.out(at::cache_write::out::cache), &x = node.in(at::cache_write::in::x);
  const std::vector<int64_t> length = load_ids(node.in(at::cache_write::in::length));
  const int64_t B = x.dim(0), T = x.dim(1), D = x.dim(2), S = cache.dim(1);
  const Vec rows = load(x);
  Vec all = load(cache);
  for (int64_t b = 0; b < B; b++) {
    for (int64_t t = 0; t < T; t++) {
      const int64_t s = length[b] + t;
      if (s < 0 || s >= S) continue;
      for (int64_t d = 0; d < D; d++) all[(b * S + s) * D + d] = rows[(b * T + t) * D + d];
    }
  }
  store(cache, all);
}

inline void advance(const Node& node) {
  const Tensor& length = node.in(at::advance::in::length);
  for (int64_t b = 0; b < length.elems(); b++) {
    node.out(at::advance::out::length_out).ptr<int32_t>()[b] =
        length.ptr<int32_t>()[b] + static_cast<int32_t>(node.attr(at::advance::attr::steps));
  }
}

}  // namespace mb::ref
