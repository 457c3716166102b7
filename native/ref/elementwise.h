// Elementwise ops over tensors of equal shape; row strides may differ.
//
//   add: y = a + b           mul: y = a b          scale: y = factor x       neg_exp: y = -exp(x)
//   silu: y = x s(x), dx = dy s(x) (1 + x (1 - s(x))), with s(x) = 1 / (1 + exp(-x))   (Hendrycks & Gimpel 2016)
//   swiglu: y = gate s(gate) up, dgate = dy up silu'(gate), dup = dy silu(gate)   (Shazeer 2020)
//   softplus: y = log(1 + exp(x)), dx = dy s(x); above 20 it is the identity, as in PyTorch (the difference is 2e-9)
#pragma once
#include "operand.h"

namespace mb::ref {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu_of(double x) { return x * sigmoid(x); }
inline double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }
inline double softplus_of(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
inline double softplus_slope(double x) { return x > 20 ? 1 : sigmoid(x); }

// All these ops keep y at output 0 and their operands at inputs 0 and 1.
template <class Function>
void map1(const Node& node, Function f) {
  Vec x = load(node.in(0));
  for (double& value : x) value = f(value);
  store(node.out(0), x);
}

template <class Function>
void map2(const Node& node, Function f) {
  Vec a = load(node.in(0));
  const Vec b = load(node.in(1));
  for (size_t i = 0; i < a.size(); i++) a[i] = f(a[i], b[i]);
  store(node.out(0), a);
}

inline void add(const Node& node) {
  map2(node, [](double a, double b) { return a + b; });
}

inline void mul(const Node& node) {
  map2(node, [](double a, double b) { return a * b; });
}

inline void scale(const Node& node) {
  const double factor = node.attr(at::scale::attr::factor);
  map1(node, [factor](double x) { return factor * x; });
}

inline void silu(const Node& node) { map1(node, silu_of); }

inline void silu_grad(const Node& node) {
  map2(node, [](double dy, double x) { return dy * silu_slope(x); });
}

inline void swiglu(const Node& node) {
  map2(node, [](double gate, double up) { return silu_of(gate) * up; });
}

inline void swiglu_grad(const Node& node) {
  namespace in = at::swiglu_grad::in;
  const Vec dy = load(node.in(in::dy)), gate = load(node.in(in::gate)), up = load(node.in(in::up));
  Vec dgate(dy.size()), dup(dy.size());
  for (size_t i = 0; i < dy.size(); i++) {
    dgate[i] = dy[i] * up[i] * silu_slope(gate[i]);
    dup[i] = dy[i] * silu_of(gate[i]);
  }
  store(node.out(at::swiglu_grad::out::dgate), dgate);
  store(node.out(at::swiglu_grad::out::dup), dup);
}

inline void softplus(const Node& node) { map1(node, softplus_of); }

inline void softplus_grad(const Node& node) {
  map2(node, [](double dy, double x) { return dy * softplus_slope(x); });
}

inline void neg_exp(const Node& node) {
  map1(node, [](double x) { return -std::exp(x); });
}

}  // namespace mb::ref
