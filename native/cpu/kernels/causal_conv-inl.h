// Causal depthwise convolution over time, with SiLU in the same pass, and its gradient.
//   y[t] = silu?(bias + sum_k weight[k] x[t - (K-1) + k]),  x before 0 from state (oldest first) or 0
// x, y (B,T,E); weight (E,K); bias (E); state (B,K-1,E).
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int64_t kMaxTaps = 16;

// One sequence's operands. Every pointer is at channel 0 and step 0; strides are in floats, between steps (between rows
// of the state for state_stride). Absent optional operands are null. state and state_out may be one buffer.
struct Conv {
  int64_t steps = 0, taps = 0;
  int64_t length = INT64_MAX;  // state_out is the state after so many steps, or after all
  const float *x = nullptr, *weight = nullptr, *bias = nullptr;  // weight: (E,K) without gaps
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  const float* state = nullptr;
  float* state_out = nullptr;
  int64_t state_stride = 0, state_out_stride = 0;
  float* kept = nullptr;                  // the state after each step, (K-1, E) without gaps, kept_stride apart
  int64_t kept_stride = 0, channels = 0;  // channels: E, needed with kept
  bool silu = true;
};

// The input `back` rows before step 0 (1: the newest state row).
MB_INLINE V conv_past(const Conv& c, int64_t back, int64_t e, int lanes) {
  return c.state ? load_part(c.state + (c.taps - 1 - back) * c.state_stride + e, lanes) : zero();
}

// weight[k] <- tap k of channels e on.
template <int kK>
MB_INLINE void conv_weights(const Conv& c, int64_t e, int lanes, V* weight) {
  const int64_t taps = kK ? kK : c.taps;
  if constexpr (kK == 4) {
    if (lanes == W) return load_fours(c.weight + e * 4, weight);
  }
  alignas(64) float spread[(kK ? kK : kMaxTaps) * W];
  to_lanes(spread, c.weight + e * taps, taps, lanes, 1.0f);
  MB_UNROLL
  for (int64_t k = 0; k < taps; k++) weight[k] = load(spread + k * W);
}

template <int kK>
static void conv_block(const Conv& c, int64_t e, int lanes) {
  const int64_t taps = kK ? kK : c.taps;
  V weight[kK ? kK : kMaxTaps] = {}, window[kK ? kK : kMaxTaps] = {};
  conv_weights<kK>(c, e, lanes, weight);
  MB_UNROLL
  for (int64_t k = 0; k + 1 < taps; k++) window[k + 1] = conv_past(c, taps - 1 - k, e, lanes);
  const V bias = c.bias ? load_part(c.bias + e, lanes) : zero();
  for (int64_t t = 0; t < c.steps; t++) {
    prefetch_far(c.x + (t + kAhead) * c.x_stride + e);
    MB_UNROLL
    for (int64_t k = 0; k + 1 < taps; k++) window[k] = window[k + 1];
    window[taps - 1] = load_part(c.x + t * c.x_stride + e, lanes);
    V y = bias;
    MB_UNROLL
    for (int64_t k = 0; k < taps; k++) y = fma(weight[k], window[k], y);
    if (c.silu) y = silu(y);
    store_part(c.y + t * c.y_stride + e, y, lanes);
    if (c.kept) {
      float* kept = c.kept + t * c.kept_stride + e;
      MB_UNROLL
      for (int64_t k = 0; k + 1 < taps; k++) store_kept(kept + k * c.channels, window[k + 1], lanes);
    }
  }
  if (!c.state_out) return;
  if (c.length < c.steps) {
    for (int64_t k = 0; k + 1 < taps; k++) {
      const int64_t t = c.length - (taps - 1) + k;
      window[k + 1] = t >= 0 ? load_part(c.x + t * c.x_stride + e, lanes) : conv_past(c, -t, e, lanes);
    }
  }
  MB_UNROLL
  for (int64_t k = 0; k + 1 < taps; k++) store_part(c.state_out + k * c.state_out_stride + e, window[k + 1], lanes);
}

// Channels [e0, e1) of one sequence, all its steps. y may be x, unless a length is given.
static void conv_channels(const Conv& c, int64_t e0, int64_t e1) {
  for (int64_t e = e0; e < e1; e += W) {
    const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
    if (c.taps == 4) {
      conv_block<4>(c, e, lanes);
    } else {
      conv_block<0>(c, e, lanes);
    }
  }
  if (c.kept) kept_end();
}

static const char* w_causal_conv1d(const Node& node) {
  namespace in = at::causal_conv1d::in;
  if (const char* why = w_f32_and_lengths(node, in::lengths)) return why;
  const Tensor& weight = node.in(in::weight);
  if (weight.cols() > kMaxTaps) return "causal_conv1d: expected at most 16 taps";
  return weight.contiguous() ? nullptr : "causal_conv1d: expected the weight to lie without gaps";
}

static void k_causal_conv1d(const Node& node, const Team& team) {
  namespace in = at::causal_conv1d::in;
  namespace out = at::causal_conv1d::out;
  const Tensor &x = node.in(in::x), &y = node.out(out::y), &state = node.in(in::state);
  const Tensor& state_out = node.out(out::state_out);
  const int32_t* lengths = node.in(in::lengths).ptr<int32_t>();
  const int64_t T = x.dim(1), E = x.dim(2), K = node.in(in::weight).cols();
  Conv c;
  c.steps = T, c.taps = K;
  c.weight = node.in(in::weight).ptr<float>(), c.bias = node.in(in::bias).ptr<float>();
  c.x_stride = x.row_stride, c.y_stride = y.row_stride;
  c.state_stride = state.row_stride, c.state_out_stride = state_out.row_stride;
  c.silu = node.attr(at::causal_conv1d::attr::silu) != 0;
  each_channel_range(team, x.dim(0), E, [&](int64_t b, int64_t e0, int64_t e1) {
    c.x = x.row<float>(b * T), c.y = y.row<float>(b * T);
    if (state) c.state = state.row<float>(b * (K - 1));
    if (state_out) c.state_out = state_out.row<float>(b * (K - 1));
    if (lengths) c.length = lengths[b] > 0 ? lengths[b] : 0;
    conv_channels(c, e0, e1);
  });
}

struct ConvGrad {
  Conv forward;  // of the sequence at hand; y is not used
  const float *dy = nullptr, *dstate_out = nullptr;
  float *dx = nullptr, *dstate = nullptr;
  int64_t dy_stride = 0, dx_stride = 0, dstate_stride = 0, dstate_out_stride = 0;
};

// Adds one sequence to dweight[K] and dbias of W channels. `late` holds the gradients of inputs t-(K-1) .. t, which are
// complete once step t has been added, so one pass forward in time is enough.
template <int kK>
static void conv_grad_block(const ConvGrad& g, int64_t e, int lanes, V* dweight, V* dbias) {
  const Conv& c = g.forward;
  const int64_t taps = kK ? kK : c.taps;
  V weight[kK ? kK : kMaxTaps] = {}, window[kK ? kK : kMaxTaps] = {}, late[kK ? kK : kMaxTaps] = {};
  conv_weights<kK>(c, e, lanes, weight);
  MB_UNROLL
  for (int64_t k = 0; k < taps; k++) late[k] = zero();
  MB_UNROLL
  for (int64_t k = 0; k + 1 < taps; k++) window[k + 1] = conv_past(c, taps - 1 - k, e, lanes);
  const V bias = c.bias ? load_part(c.bias + e, lanes) : zero();
  // Input i of state and x joined: state row i, then x from i = K - 1 on.
  const auto put = [&](int64_t i, V value) {
    if (i >= taps - 1) {
      store_part(g.dx + (i - (taps - 1)) * g.dx_stride + e, value, lanes);
    } else if (g.dstate) {
      store_part(g.dstate + i * g.dstate_stride + e, value, lanes);
    }
  };
  for (int64_t t = 0; t < c.steps; t++) {
    prefetch_far(c.x + (t + kAhead) * c.x_stride + e);
    prefetch_far(g.dy + (t + kAhead) * g.dy_stride + e);
    MB_UNROLL
    for (int64_t k = 0; k + 1 < taps; k++) window[k] = window[k + 1];
    window[taps - 1] = load_part(c.x + t * c.x_stride + e, lanes);
    V ds = load_part(g.dy + t * g.dy_stride + e, lanes);
    if (c.silu) {
      V s = bias;
      MB_UNROLL
      for (int64_t k = 0; k < taps; k++) s = fma(weight[k], window[k], s);
      ds = ds * silu_slope(s);
    }
    *dbias = *dbias + ds;
    MB_UNROLL
    for (int64_t k = 0; k < taps; k++) {
      dweight[k] = fma(ds, window[k], dweight[k]);
      late[k] = fma(ds, weight[k], late[k]);
    }
    put(t, late[0]);
    MB_UNROLL
    for (int64_t k = 0; k + 1 < taps; k++) late[k] = late[k + 1];
    late[taps - 1] = zero();
  }
  for (int64_t j = 0; j + 1 < taps; j++) {
    V value = late[j];
    if (g.dstate_out) value = value + load_part(g.dstate_out + j * g.dstate_out_stride + e, lanes);
    put(c.steps + j, value);
  }
}

static const char* w_causal_conv1d_grad(const Node& node) {
  namespace in = at::causal_conv1d_grad::in;
  if (const char* why = w_all_f32(node)) return why;
  const Tensor &weight = node.in(in::weight), &dweight = node.out(at::causal_conv1d_grad::out::dweight);
  if (weight.cols() > kMaxTaps) return "causal_conv1d: expected at most 16 taps";
  return weight.contiguous() && dweight.contiguous() ? nullptr
                                                     : "causal_conv1d: expected the weight to lie without gaps";
}

// A thread owns its channels through all sequences, so their weight gradients need no sum across threads.
static void k_causal_conv1d_grad(const Node& node, const Team& team) {
  namespace in = at::causal_conv1d_grad::in;
  namespace out = at::causal_conv1d_grad::out;
  const Tensor &x = node.in(in::x), &dy = node.in(in::dy), &dx = node.out(out::dx), &state = node.in(in::state);
  const Tensor &dstate_out = node.in(in::dstate_out), &dstate = node.out(out::dstate);
  float *dweight = node.out(out::dweight).ptr<float>(), *dbias = node.out(out::dbias).ptr<float>();
  const int64_t B = x.dim(0), T = x.dim(1), E = x.dim(2), K = node.in(in::weight).cols();
  const bool accumulate = node.attr(at::causal_conv1d_grad::attr::accumulate) != 0;
  ConvGrad g;
  g.forward.steps = T, g.forward.taps = K;
  g.forward.weight = node.in(in::weight).ptr<float>(), g.forward.bias = node.in(in::bias).ptr<float>();
  g.forward.x_stride = x.row_stride, g.forward.state_stride = state.row_stride;
  g.forward.silu = node.attr(at::causal_conv1d_grad::attr::silu) != 0;
  g.dy_stride = dy.row_stride, g.dx_stride = dx.row_stride;
  g.dstate_stride = dstate.row_stride, g.dstate_out_stride = dstate_out.row_stride;
  each_channel_range(team, 1, E, [&](int64_t, int64_t e0, int64_t e1) {
    for (int64_t e = e0; e < e1; e += W) {
      const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
      V sums[kMaxTaps], bias_sum = zero();
      for (V& sum : sums) sum = zero();
      for (int64_t b = 0; b < B; b++) {
        g.forward.x = x.row<float>(b * T), g.dy = dy.row<float>(b * T), g.dx = dx.row<float>(b * T);
        if (state) g.forward.state = state.row<float>(b * (K - 1));
        if (dstate) g.dstate = dstate.row<float>(b * (K - 1));
        if (dstate_out) g.dstate_out = dstate_out.row<float>(b * (K - 1));
        if (K == 4) {
          conv_grad_block<4>(g, e, lanes, sums, &bias_sum);
        } else {
          conv_grad_block<0>(g, e, lanes, sums, &bias_sum);
        }
      }
      for (int64_t k = 0; k < K; k++) {
        alignas(64) float part[W];
        store(part, sums[k]);
        for (int l = 0; l < lanes; l++) {
          float* to = dweight + (e + l) * K + k;
          *to = accumulate ? *to + part[l] : part[l];
        }
      }
      if (!dbias) continue;
      if (accumulate) bias_sum = bias_sum + load_part(dbias + e, lanes);
      store_part(dbias + e, bias_sum, lanes);
    }
  });
}

}  // namespace mb::cpu::MB_TARGET
