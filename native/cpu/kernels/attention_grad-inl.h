// Gradient of attention (equations in ops.def), computed again by blocks from lse as in flash attention (Dao 2023).
//
// Two passes, so that every number is summed by one task in one order: dq with a block of queries in the lanes of
// vectors, which also leaves o = dy . y of every query behind; then dk and dv with a block of keys in lanes, over all
// query heads that read it. Scores are in units of log 2.
#pragma once
#include "attention-inl.h"

namespace mb::cpu::MB_TARGET {

struct AttentionGrad : Attention {
  const Tensor &dy, &q, &k, &v, &y, &lse;
  explicit AttentionGrad(const Node& node)
      : Attention(node.in(at::attention_grad::in::q), node.in(at::attention_grad::in::k),
                  node.attr(at::attention_grad::attr::heads), nullptr),
        dy(node.in(at::attention_grad::in::dy)),
        q(node.in(at::attention_grad::in::q)),
        k(node.in(at::attention_grad::in::k)),
        v(node.in(at::attention_grad::in::v)),
        y(node.in(at::attention_grad::in::y)),
        lse(node.in(at::attention_grad::in::lse)) {}
  // Head h of step t, and its key head's key s.
  const float* at_query(const Tensor& x, int64_t b, int64_t t, int64_t h) const {
    return x.row<float>(b * T + t) + h * P;
  }
  const float* at_key(const Tensor& x, int64_t b, int64_t s, int64_t j) const {
    return x.row<float>(b * S + s) + j * P;
  }
};

MB_INLINE float attention_dot(const float* a, const float* b, int64_t n) {
  V sum = zero();
  each_part(n, [&](int64_t i, int lanes) { sum = fma(load_part(a + i, lanes), load_part(b + i, lanes), sum); });
  return reduce_add(sum);
}

// Queries [t0, t0 + n) of head h: dq, and o of each to outputs[query].
static void attention_grad_queries(const AttentionGrad& a, const AttentionScratch& w, int64_t b, int64_t h, int64_t t0,
                                   int64_t n, float* outputs, const Tensor& dq) {
  const int64_t j = a.key_head(h), lanes = round_up(n, kPanelCols), first = a.S - a.T, end = first + t0 + n;
  attention_turned(a.at_query(a.q, b, t0, h), a.q.row_stride, n, a.P, a.scale() * kLog2e, lanes, kApart, w.across[0]);
  attention_turned(a.at_query(a.dy, b, t0, h), a.dy.row_stride, n, a.P, 1.0f, lanes, kApart, w.across[1]);
  memset(w.sums[0], 0, sizeof(float) * static_cast<size_t>(a.P * kApart));
  for (int64_t i = 0; i < kAcross; i++) {
    const int64_t t = t0 + min64(i, n - 1);
    w.top[i] = kLog2e * a.lse.row<float>(b * a.T + t)[h];
    w.sum[i] = attention_dot(a.at_query(a.dy, b, t, h), a.at_query(a.y, b, t, h), a.P);
    w.keep[i] = a.scale();
    if (i < n) outputs[i] = w.sum[i];
  }
  for (int64_t s0 = 0; s0 < end; s0 += kAlong) {
    const int64_t keys = min64(kAlong, end - s0);
    attention_turned(a.at_key(a.k, b, s0, j), a.k.row_stride, keys, a.P, 1.0f, keys, kAlong, w.turned[0]);
    attention_turned(a.at_key(a.v, b, s0, j), a.v.row_stride, keys, a.P, 1.0f, keys, kAlong, w.turned[1]);
    attention_product(keys, lanes, a.P, w.turned[0], kAlong, w.across[0], w.scores[0], nullptr);
    attention_product(keys, lanes, a.P, w.turned[1], kAlong, w.across[1], w.scores[1], nullptr);
    if (s0 + keys - 1 > first + t0) {
      attention_mask(keys, lanes, static_cast<float>(first + t0 - s0) + 0.5f, -1.0f, 1.0f, w.scores[0]);
    }
    for (int64_t i = 0; i < lanes; i += W) {
      const V log = load(w.top + i), o = load(w.sum + i);
      for (int64_t s = i; s < keys * kApart; s += kApart) {
        const V p = exp2_fast(load(w.scores[0] + s) - log);
        store(w.scores[0] + s, p * (load(w.scores[1] + s) - o));
      }
    }
    attention_copy(a.at_key(a.k, b, s0, j), a.k.row_stride, keys, a.P, w.straight[0]);
    attention_product(a.P, lanes, keys, w.straight[0], a.P, w.scores[0], w.sums[0], w.ones);
  }
  attention_rows_out(w.sums[0], w.keep, n, a.P, dq.row<float>(b * a.T + t0) + h * a.P, dq.row_stride);
}

// Adds what queries [t0, t0 + n) of head h give to dk and dv of the keys in lanes, from key s0 on.
static void attention_grad_round(const AttentionGrad& a, const AttentionScratch& w, int64_t b, int64_t h, int64_t t0,
                                 int64_t n, int64_t s0, int64_t keys, const float* outputs) {
  const int64_t lanes = round_up(keys, kPanelCols), first = a.S - a.T;
  attention_turned(a.at_query(a.q, b, t0, h), a.q.row_stride, n, a.P, 1.0f, n, kAlong, w.turned[0]);
  attention_turned(a.at_query(a.dy, b, t0, h), a.dy.row_stride, n, a.P, 1.0f, n, kAlong, w.turned[1]);
  attention_product(n, lanes, a.P, w.turned[0], kAlong, w.across[0], w.scores[0], nullptr);
  attention_product(n, lanes, a.P, w.turned[1], kAlong, w.across[1], w.scores[1], nullptr);
  if (s0 + keys - 1 > first + t0) {
    attention_mask(n, lanes, static_cast<float>(first + t0 - s0) + 0.5f, 1.0f, -1.0f, w.scores[0]);
  }
  for (int64_t i = 0; i < n; i++) {
    const V log = set1(kLog2e * a.lse.row<float>(b * a.T + t0 + i)[h]), o = set1(outputs[i]);
    for (int64_t s = i * kApart; s < i * kApart + lanes; s += W) {
      const V p = exp2_fast(load(w.scores[0] + s) - log);
      store(w.scores[0] + s, p);
      store(w.scores[1] + s, p * (load(w.scores[1] + s) - o));
    }
  }
  attention_copy(a.at_query(a.q, b, t0, h), a.q.row_stride, n, a.P, w.straight[0]);
  attention_copy(a.at_query(a.dy, b, t0, h), a.dy.row_stride, n, a.P, w.straight[1]);
  attention_product(a.P, lanes, n, w.straight[0], a.P, w.scores[1], w.sums[0], w.ones);
  attention_product(a.P, lanes, n, w.straight[1], a.P, w.scores[0], w.sums[1], w.ones);
}

// Keys [s0, s0 + keys) of key head j: dk and dv. outputs(T) of head h lie at outputs + h * T.
static void attention_grad_keys(const AttentionGrad& a, const AttentionScratch& w, int64_t b, int64_t j, int64_t s0,
                                int64_t keys, const float* outputs, const Tensor& dk, const Tensor& dv) {
  const int64_t lanes = round_up(keys, kPanelCols), group = a.H / a.J, begin = max64(0, s0 - (a.S - a.T));
  attention_turned(a.at_key(a.k, b, s0, j), a.k.row_stride, keys, a.P, a.scale() * kLog2e, lanes, kApart, w.across[0]);
  attention_turned(a.at_key(a.v, b, s0, j), a.v.row_stride, keys, a.P, 1.0f, lanes, kApart, w.across[1]);
  for (float* sum : w.sums) memset(sum, 0, sizeof(float) * static_cast<size_t>(a.P * kApart));
  for (int64_t i = 0; i < kAcross; i++) w.keep[i] = a.scale();
  for (int64_t h = j * group; h < (j + 1) * group; h++) {
    for (int64_t t0 = begin; t0 < a.T; t0 += kAlong) {
      attention_grad_round(a, w, b, h, t0, min64(kAlong, a.T - t0), s0, keys, outputs + h * a.T + t0);
    }
  }
  attention_rows_out(w.sums[0], w.keep, keys, a.P, dk.row<float>(b * a.S + s0) + j * a.P, dk.row_stride);
  attention_rows_out(w.sums[1], w.ones, keys, a.P, dv.row<float>(b * a.S + s0) + j * a.P, dv.row_stride);
}

// o of every query, then each thread's own.
static int64_t s_attention_grad(const Node& node, int threads) {
  const AttentionGrad a(node);
  return (round_up(a.B * a.H * a.T, 16) + threads * AttentionScratch::floats(a.P)) * 4;
}

static void k_attention_grad(const Node& node, const Team& team) {
  namespace out = at::attention_grad::out;
  const AttentionGrad a(node);
  float* outputs = reinterpret_cast<float*>(team.scratch);  // (B,H,T)
  const AttentionScratch w(outputs + round_up(a.B * a.H * a.T, 16) + team.index * AttentionScratch::floats(a.P), a.P);
  const int64_t query_blocks = (a.T + kAcross - 1) / kAcross, key_blocks = (a.S + kAcross - 1) / kAcross;
  const Team::Range queries = team.share(a.B * a.H * query_blocks);
  for (int64_t task = queries.begin; task < queries.end; task++) {
    const int64_t b = task / query_blocks / a.H, h = task / query_blocks % a.H;
    const int64_t t0 = attention_turn(task % query_blocks, query_blocks) * kAcross;
    attention_grad_queries(a, w, b, h, t0, min64(kAcross, a.T - t0), outputs + (b * a.H + h) * a.T + t0,
                           node.out(out::dq));
  }
  team.barrier();
  const Team::Range keys = team.share(a.B * a.J * key_blocks);
  for (int64_t task = keys.begin; task < keys.end; task++) {
    const int64_t b = task / key_blocks / a.J, j = task / key_blocks % a.J;
    const int64_t s0 = attention_turn(task % key_blocks, key_blocks) * kAcross;
    attention_grad_keys(a, w, b, j, s0, min64(kAcross, a.S - s0), outputs + b * a.H * a.T, node.out(out::dk),
                        node.out(out::dv));
  }
}

}  // namespace mb::cpu::MB_TARGET
