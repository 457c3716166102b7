// Elementwise ops over equal shapes; row strides may differ.
//   add, mul, scale, silu: x s(x), softplus: log(1 + e^x), neg_exp: -e^x; s(x) = 1 / (1 + e^-x)
//   silu_grad: dy s(x) (1 + x (1 - s(x))); softplus_grad: dy s(x)
//   swiglu: silu(gate) up; swiglu_grad: dgate = dy up silu'(gate), dup = dy silu(gate)
#pragma once

namespace mb::cpu::MB_TARGET {

// Null when every operand present is f32, but for input `other`.
static const char* w_f32_but(const Node& node, int other) {
  for (int i = 0; i < node.n_out; i++) {
    if (node.outs[i] && node.outs[i].dtype != DType::f32) return "expected every operand to be f32";
  }
  for (int i = 0; i < node.n_in; i++) {
    if (node.ins[i] && i != other && node.ins[i].dtype != DType::f32) return "expected every operand to be f32";
  }
  return nullptr;
}
static const char* w_all_f32(const Node& node) { return w_f32_but(node, -1); }
static const char* w_f32_and_lengths(const Node& node, int lengths) {
  return are_lengths(node.in(lengths)) ? w_f32_but(node, lengths) : "expected lengths to be i32, without gaps";
}

MB_INLINE V silu_slope(V x) {
  const V s = sigmoid(x);
  return s * fma(x, set1(1.0f) - s, set1(1.0f));
}

constexpr int64_t kElementBlock = 1024;

// Calls fn(row, c0, c1) for this thread's share of the columns of tensors like y: where all are contiguous (`flat`), of
// one long row.
template <class F>
MB_INLINE void each_span(const Team& team, const Tensor& y, bool flat, F fn) {
  if (flat) {
    const int64_t n = y.elems();
    const Team::Range blocks = team.share((n + kElementBlock - 1) / kElementBlock);
    const int64_t end = blocks.end * kElementBlock;
    fn(0, blocks.begin * kElementBlock, end < n ? end : n);
  } else {
    const Team::Range rows = team.share(y.rows());
    for (int64_t r = rows.begin; r < rows.end; r++) fn(r, 0, y.cols());
  }
}

// y = f(a, b)
template <class F>
MB_INLINE void map(const Team& team, const Tensor& y, const Tensor& a, const Tensor& b, F f) {
  const bool flat = y.contiguous() && a.contiguous() && b.contiguous();
  each_span(team, y, flat, [&](int64_t r, int64_t c0, int64_t c1) {
    float* to = y.row<float>(r);
    const float *from = a.row<float>(r), *other = b.row<float>(r);
    int64_t c = c0;
    for (; c + W <= c1; c += W) store(to + c, f(load(from + c), load(other + c)));
    if (c < c1) {
      const int n = static_cast<int>(c1 - c);
      store_n(to + c, f(load_n(from + c, n), load_n(other + c, n)), n);
    }
  });
}

// These ops keep y at output 0 and their operands at inputs 0 and 1.
template <class F>
MB_INLINE void map1(const Node& node, const Team& team, F f) {
  map(team, node.out(0), node.in(0), node.in(0), [f](V x, V) { return f(x); });
}
template <class F>
MB_INLINE void map2(const Node& node, const Team& team, F f) {
  map(team, node.out(0), node.in(0), node.in(1), f);
}

static void k_add(const Node& node, const Team& team) {
  map2(node, team, [](V a, V b) { return a + b; });
}
static void k_mul(const Node& node, const Team& team) {
  map2(node, team, [](V a, V b) { return a * b; });
}
static void k_scale(const Node& node, const Team& team) {
  const V factor = set1(static_cast<float>(node.attr(at::scale::attr::factor)));
  map1(node, team, [factor](V x) { return x * factor; });
}
static void k_silu(const Node& node, const Team& team) {
  map1(node, team, [](V x) { return silu(x); });
}
static void k_silu_grad(const Node& node, const Team& team) {
  map2(node, team, [](V dy, V x) { return dy * silu_slope(x); });
}
static void k_swiglu(const Node& node, const Team& team) {
  map2(node, team, [](V gate, V up) { return silu(gate) * up; });
}
static void k_swiglu_grad(const Node& node, const Team& team) {
  namespace in = at::swiglu_grad::in;
  namespace out = at::swiglu_grad::out;
  const Tensor &dy = node.in(in::dy), &gate = node.in(in::gate), &up = node.in(in::up);
  const Tensor &dgate = node.out(out::dgate), &dup = node.out(out::dup);
  bool flat = true;
  for (const Tensor* t : {&dy, &gate, &up, &dgate, &dup}) flat = flat && t->contiguous();
  each_span(team, dy, flat, [&](int64_t r, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c += W) {
      const int n = c1 - c < W ? static_cast<int>(c1 - c) : W;
      const V d = load_part(dy.row<float>(r) + c, n), x = load_part(gate.row<float>(r) + c, n);
      const V u = load_part(up.row<float>(r) + c, n);
      store_part(dgate.row<float>(r) + c, d * u * silu_slope(x), n);
      store_part(dup.row<float>(r) + c, d * silu(x), n);
    }
  });
}
static void k_softplus(const Node& node, const Team& team) {
  map1(node, team, [](V x) { return softplus(x); });
}
static void k_softplus_grad(const Node& node, const Team& team) {
  map2(node, team, [](V dy, V x) { return dy * sigmoid(x); });
}
static void k_neg_exp(const Node& node, const Team& team) {
  map1(node, team, [](V x) { return neg(exp(x)); });
}

}  // namespace mb::cpu::MB_TARGET
