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

template <int kK>
static void conv_block(const Conv& c, int64_t e, int lanes) {
  const int64_t taps = kK ? kK : c.taps;
  V weight[kK ? kK : kMaxTaps], window[kK ? kK : kMaxTaps];
  alignas(64) float spread[(kK ? kK : kMaxTaps) * W];
  to_lanes(spread, c.weight + e * taps, taps, lanes, 1.0f);
  MB_UNROLL
  for (int64_t k = 0; k < taps; k++) weight[k] = load(spread + k * W);
  MB_UNROLL
  for (int64_t k = 0; k + 1 < taps; k++) window[k + 1] = conv_past(c, taps - 1 - k, e, lanes);
  const V bias = c.bias ? load_part(c.bias + e, lanes) : zero();
  for (int64_t t = 0; t < c.steps; t++) {
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
      for (int64_t k = 0; k + 1 < taps; k++) store_part(kept + k * c.channels, window[k + 1], lanes);
    }
  }
  if (c.state_out) {
    MB_UNROLL
    for (int64_t k = 0; k + 1 < taps; k++) store_part(c.state_out + k * c.state_out_stride + e, window[k + 1], lanes);
  }
}

// Channels [e0, e1) of one sequence, all its steps. y may be x.
static void conv_channels(const Conv& c, int64_t e0, int64_t e1) {
  for (int64_t e = e0; e < e1; e += W) {
    const int lanes = e1 - e >= W ? W : static_cast<int>(e1 - e);
    if (c.taps == 4) {
      conv_block<4>(c, e, lanes);
    } else {
      conv_block<0>(c, e, lanes);
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
