// Depthwise causal convolution over time with a carried state, and its gradient.
//
// x, y(B,T,E), weight(E,K), bias(E)?, state and state_out(B,K-1,E)?. Let ext(B,K-1+T,E) be state (or zeros), oldest
// first, followed by x. Then
//   s[t] = bias + sum_k weight[k] ext[t + k];     y = s, or s sigmoid(s) with `silu`;     state_out = ext[T ..],
//   or ext[lengths[b] ..] of sequence b, where there are lengths
// so for T < K-1 the new state still holds part of the old one. Backwards, with ds = dy (silu'(s)):
//   dext[t + k] += weight[k] ds[t];   dext[T + j] += dstate_out[j];   dweight[k] = sum ds[t] ext[t + k];   dbias = sum
//   ds
// and dstate, dx are the two parts of dext.
#pragma once
#include <algorithm>
#include <vector>

#include "elementwise.h"

namespace mb::ref {

struct ConvSizes {
  int64_t B, T, E, K;
  int64_t ext(int64_t b, int64_t i) const { return (b * (K - 1 + T) + i) * E; }
  int64_t x(int64_t b, int64_t t) const { return (b * T + t) * E; }
  int64_t state(int64_t b, int64_t i) const { return (b * (K - 1) + i) * E; }
};

inline Vec conv_join(const ConvSizes& s, const Vec& state, const Vec& x) {
  Vec ext(s.ext(s.B, 0));
  for (int64_t b = 0; b < s.B; b++) {
    for (int64_t e = 0; e < s.E; e++) {
      for (int64_t i = 0; i < s.K - 1 && !state.empty(); i++) ext[s.ext(b, i) + e] = state[s.state(b, i) + e];
      for (int64_t t = 0; t < s.T; t++) ext[s.ext(b, s.K - 1 + t) + e] = x[s.x(b, t) + e];
    }
  }
  return ext;
}

// The state after the first steps[b] inputs of each sequence.
inline Vec conv_state_after(const ConvSizes& s, const Vec& ext, const std::vector<int64_t>& steps) {
  Vec state(s.state(s.B, 0));
  for (int64_t b = 0; b < s.B; b++) {
    for (int64_t i = 0; i < s.K - 1; i++) {
      for (int64_t e = 0; e < s.E; e++) state[s.state(b, i) + e] = ext[s.ext(b, steps[b] + i) + e];
    }
  }
  return state;
}

inline Vec conv_state_after(const ConvSizes& s, const Vec& ext, int64_t steps) {
  return conv_state_after(s, ext, std::vector<int64_t>(s.B, steps));
}

// s, before SiLU. bias may be empty.
inline Vec conv_sum(const ConvSizes& s, const Vec& ext, const Vec& weight, const Vec& bias) {
  Vec sum(s.x(s.B, 0));
  for (int64_t b = 0; b < s.B; b++) {
    for (int64_t t = 0; t < s.T; t++) {
      for (int64_t e = 0; e < s.E; e++) {
        double value = bias.empty() ? 0 : bias[e];
        for (int64_t k = 0; k < s.K; k++) value += weight[e * s.K + k] * ext[s.ext(b, t + k) + e];
        sum[s.x(b, t) + e] = value;
      }
    }
  }
  return sum;
}

inline ConvSizes conv_sizes(const Tensor& x, const Tensor& weight) {
  return {x.dim(0), x.dim(1), x.dim(2), weight.cols()};
}

inline void causal_conv1d(const Node& node) {
  namespace in = at::causal_conv1d::in;
  const ConvSizes s = conv_sizes(node.in(in::x), node.in(in::weight));
  const Vec ext = conv_join(s, load(node.in(in::state)), load(node.in(in::x)));
  Vec y = conv_sum(s, ext, load(node.in(in::weight)), load(node.in(in::bias)));
  if (node.attr(at::causal_conv1d::attr::silu) != 0) {
    for (double& value : y) value = silu_of(value);
  }
  store(node.out(at::causal_conv1d::out::y), y);
  std::vector<int64_t> steps(s.B, s.T);
  const Vec lengths = load(node.in(in::lengths));
  for (size_t b = 0; b < lengths.size(); b++) steps[b] = std::clamp<int64_t>(int64_t(lengths[b]), 0, s.T);
  store(node.out(at::causal_conv1d::out::state_out), conv_state_after(s, ext, steps));
}

inline void causal_conv1d_grad(const Node& node) {
  namespace in = at::causal_conv1d_grad::in;
  namespace out = at::causal_conv1d_grad::out;
  const ConvSizes s = conv_sizes(node.in(in::x), node.in(in::weight));
  const Vec weight = load(node.in(in::weight));
  const Vec ext = conv_join(s, load(node.in(in::state)), load(node.in(in::x)));
  const Vec dstate_out = load(node.in(in::dstate_out));
  Vec ds = load(node.in(in::dy));
  if (node.attr(at::causal_conv1d_grad::attr::silu) != 0) {
    const Vec sum = conv_sum(s, ext, weight, load(node.in(in::bias)));
    for (size_t i = 0; i < ds.size(); i++) ds[i] *= silu_slope(sum[i]);
  }

  Vec dext(ext.size()), dweight(s.E * s.K), dbias(s.E);
  for (int64_t b = 0; b < s.B; b++) {
    for (int64_t e = 0; e < s.E; e++) {
      for (int64_t t = 0; t < s.T; t++) {
        const double d = ds[s.x(b, t) + e];
        dbias[e] += d;
        for (int64_t k = 0; k < s.K; k++) {
          dext[s.ext(b, t + k) + e] += weight[e * s.K + k] * d;
          dweight[e * s.K + k] += ext[s.ext(b, t + k) + e] * d;
        }
      }
      for (int64_t i = 0; i < s.K - 1 && !dstate_out.empty(); i++) {
        dext[s.ext(b, s.T + i) + e] += dstate_out[s.state(b, i) + e];
      }
    }
  }
  Vec dx(ds.size());
  for (int64_t b = 0; b < s.B; b++) {
    for (int64_t t = 0; t < s.T; t++) {
      for (int64_t e = 0; e < s.E; e++) dx[s.x(b, t) + e] = dext[s.ext(b, s.K - 1 + t) + e];
    }
  }
  const bool accumulate = node.attr(at::causal_conv1d_grad::attr::accumulate) != 0;
  store(node.out(out::dx), dx);
  store_gradient(node.out(out::dweight), dweight, accumulate);
  store_gradient(node.out(out::dbias), dbias, accumulate);
  store(node.out(out::dstate), conv_state_after(s, dext, 0));
}

}  // namespace mb::ref
