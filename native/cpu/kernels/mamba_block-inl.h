// One Mamba residual block (Gu & Dao 2023, section 3.4) for few rows, every part fused:
//   y = x + out_proj(scan(conv(in_proj(norm(x))))), x (B,T,D), B * T <= 32.
//
// A thread owns blocks of kBlockChannels channels from in_proj to the gate; it computes the norm, and x_proj's few
// rows, on its own rather than wait for others. So two barriers are left: all channels meet before x_proj and before
// out_proj.
#pragma once
#include "causal_conv-inl.h"
#include "few_rows-inl.h"
#include "selective_scan-inl.h"

namespace mb::cpu::MB_TARGET {

constexpr int64_t kBlockChannels = 64;
constexpr int64_t kBlockRowsMax = 32;

// Sizes and scratch of one block. Offsets are in bytes from the start of the scratch; `own` parts are per thread.
struct MambaBlock {
  int64_t batch, steps, rows, d, e, n, rank, width;
  int64_t projected, conv_out, delta, scanned, own;  // f32: (R,2E), three of (R,E); then the threads' own parts
  int64_t own_normed, own_input, own_selected, own_bytes;

  explicit MambaBlock(const Node& node) {
    namespace in = at::mamba_block::in;
    const Tensor &x = node.in(in::x), &A = node.in(in::A), &in_proj = node.in(in::in_proj);
    const Tensor &x_proj = node.in(in::x_proj), &dt_proj = node.in(in::dt_proj), &out_proj = node.in(in::out_proj);
    rows = x.rows();
    batch = node.in(in::ssm_state).dim(0);
    steps = rows / batch;
    d = x.cols();
    e = A.dim(0);
    n = A.dim(1);
    rank = dt_proj.cols();
    width = node.in(in::conv_weight).cols();
    const int64_t wide = round_up(rows * e * 4, 64);
    projected = 0;
    conv_out = 2 * wide;
    delta = 3 * wide;
    scanned = 4 * wide;
    own = 5 * wide;
    own_normed = 0;
    own_selected = round_up(rows * d * 4, 64);
    own_input = own_selected + round_up(rows * (rank + 2 * n) * 4, 64);
    const int64_t input =
        max64(max64(dot_input_bytes(in_proj.dtype, rows, d), dot_input_bytes(x_proj.dtype, rows, e)),
              max64(dot_input_bytes(dt_proj.dtype, rows, rank), dot_input_bytes(out_proj.dtype, rows, e)));
    own_bytes = own_input + input;
  }
};

static int64_t s_mamba_block(const Node& node, int threads) {
  const MambaBlock s(node);
  return s.own + threads * s.own_bytes;
}

static const char* w_mamba_block(const Node& node) {
  namespace in = at::mamba_block::in;
  if (node.in(in::x).rows() > kBlockRowsMax) return "mamba_block: expected at most 32 rows";
  if (node.in(in::conv_weight).cols() > kMaxTaps)
    return "mamba_block: expected the convolution to have at most 16 taps";
  if (node.in(in::A).cols() > kMaxStates) return "mamba_block: expected at most 256 states";
  const int weights[] = {in::in_proj, in::x_proj, in::dt_proj, in::out_proj};
  const int scales[] = {in::in_scale, in::x_scale, in::dt_scale, in::out_scale};
  for (int i = 0; i < 4; i++) {
    const Tensor& w = node.in(weights[i]);
    if (w.dtype == DType::i8) {
      if (!node.in(scales[i])) return "mamba_block: expected an i8 weight to come with a scale per row";
      if (w.cols() > 65536) return "mamba_block: expected an i8 weight to have at most 65536 columns";
    } else if (w.dtype != DType::f32 && w.dtype != DType::bf16) {
      return "mamba_block: expected the weights to be f32, bf16 or i8";
    }
  }
  return nullptr;
}

// LayerNorm where there is a bias, else RMSNorm.
MB_INLINE void block_norm(const float* x, const float* weight, const float* bias, int64_t d, float eps, float* y) {
  float mean = 0.0f;
  if (bias) {
    V sum = zero();
    for (int64_t j = 0; j < d; j += W) sum = sum + load_n(x + j, static_cast<int>(min64(W, d - j)));
    mean = reduce_add(sum) / static_cast<float>(d);
  }
  V squares = zero();
  for (int64_t j = 0; j < d; j += W) {
    const int c = static_cast<int>(min64(W, d - j));
    store_n(y + j, load_n(x + j, c) - set1(mean), c);
    const V v = load_n(y + j, c);
    squares = fma(v, v, squares);
  }
  const float variance = reduce_add(squares) / static_cast<float>(d);
  const V rstd = set1(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t j = 0; j < d; j += W) {
    const int c = static_cast<int>(min64(W, d - j));
    const V v = load_n(y + j, c) * rstd, w = load_n(weight + j, c);
    store_n(y + j, bias ? fma(v, w, load_n(bias + j, c)) : v * w, c);
  }
}

// conv_out(R,E) = silu(conv(projected(R,2E) channels)), and the conv state moves on.
static void block_conv(const Node& node, const MambaBlock& s, const float* projected, float* conv_out, int64_t c0,
                       int64_t c1) {
  namespace in = at::mamba_block::in;
  namespace to = at::mamba_block::out;
  const Tensor &state = node.in(in::conv_state), &state_out = node.out(to::conv_state_out);
  const Tensor& kept = node.out(to::kept_conv);
  for (int64_t b = 0; b < s.batch; b++) {
    Conv c;
    c.steps = s.steps;
    c.taps = s.width;
    c.x = projected + b * s.steps * 2 * s.e;
    c.x_stride = 2 * s.e;
    c.weight = node.in(in::conv_weight).ptr<float>();
    c.bias = node.in(in::conv_bias).ptr<float>();
    c.y = conv_out + b * s.steps * s.e;
    c.y_stride = s.e;
    c.state = state.row<float>(b * (s.width - 1));
    c.state_stride = state.row_stride;
    c.state_out = state_out.row<float>(b * (s.width - 1));
    c.state_out_stride = state_out.row_stride;
    if (kept) {
      c.kept = kept.row<float>(b);
      c.kept_stride = s.batch * kept.row_stride;
      c.channels = s.e;
    }
    conv_channels(c, c0, c1);
  }
}

// Operands of the scan inside a block: u, delta and y (R,E), selected (R, rank + 2N) = [dt | B | C], gate in (R,2E).
struct BlockScan {
  const float *u, *delta, *selected, *gate;
  float* y;
};

static void block_scan(const Node& node, const MambaBlock& s, const BlockScan& p, int64_t c0, int64_t c1) {
  namespace in = at::mamba_block::in;
  namespace to = at::mamba_block::out;
  const Tensor& kept = node.out(to::kept_ssm);
  const int64_t selected_cols = s.rank + 2 * s.n;
  for (int64_t b = 0; b < s.batch; b++) {
    const int64_t row = b * s.steps;
    Scan c;
    c.steps = s.steps;
    c.states = s.n;
    c.u = p.u + row * s.e;
    c.delta = p.delta + row * s.e;
    c.y = p.y + row * s.e;
    c.u_stride = c.delta_stride = c.y_stride = s.e;
    c.B = p.selected + row * selected_cols + s.rank;
    c.C = c.B + s.n;
    c.B_stride = c.C_stride = selected_cols;
    c.z = p.gate + row * 2 * s.e;
    c.z_stride = 2 * s.e;
    c.A = node.in(in::A).ptr<float>();
    c.D = node.in(in::D).ptr<float>();
    c.delta_bias = node.in(in::dt_bias).ptr<float>();
    c.state = node.in(in::ssm_state).ptr<float>() + b * s.e * s.n;
    c.state_out = node.out(to::ssm_state_out).ptr<float>() + b * s.e * s.n;
    if (kept) {
      c.kept = kept.row<float>(b);
      c.kept_stride = s.batch * kept.row_stride;
    }
    scan_channels(c, c0, c1);
  }
}

static void k_mamba_block(const Node& node, const Team& team) {
  namespace in = at::mamba_block::in;
  namespace to = at::mamba_block::out;
  const MambaBlock s(node);
  const auto shared = [&](int64_t at) { return reinterpret_cast<float*>(team.scratch + at); };
  float *projected = shared(s.projected), *conv_out = shared(s.conv_out);
  float *delta = shared(s.delta), *scanned = shared(s.scanned);
  char* own = team.scratch + s.own + team.index * s.own_bytes;
  float* normed = reinterpret_cast<float*>(own + s.own_normed);
  float* selected = reinterpret_cast<float*>(own + s.own_selected);
  char* input = own + s.own_input;

  const Tensor &x = node.in(in::x), &y = node.out(to::y);
  const Team::Range blocks = team.share((s.e + kBlockChannels - 1) / kBlockChannels);
  const int64_t c0 = min64(s.e, blocks.begin * kBlockChannels), c1 = min64(s.e, blocks.end * kBlockChannels);
  const auto scale_of = [&](int i) { return node.in(i).ptr<float>(); };

  const Tensor& in_proj = node.in(in::in_proj);
  dot_fetch(in_proj, c0, c1);
  const float eps = static_cast<float>(node.attr(at::mamba_block::attr::eps));
  for (int64_t r = 0; r < s.rows; r++) {
    block_norm(x.row<float>(r), node.in(in::norm_weight).ptr<float>(), node.in(in::norm_bias).ptr<float>(), s.d, eps,
               normed + r * s.d);
  }
  const DotInput norm_input = dot_prepare(in_proj, normed, s.d, s.rows, input);
  const DotOutput in_output{projected, 2 * s.e, nullptr, scale_of(in::in_scale), nullptr, 0};
  // Row e + c of in_proj is the gate of channel c.
  dot_fetch(in_proj, s.e + c0, s.e + c1);
  dot_run(in_proj, norm_input, c0, c1, in_output);
  dot_run(in_proj, norm_input, s.e + c0, s.e + c1, in_output);
  const Tensor& x_proj = node.in(in::x_proj);
  const int64_t selected_cols = s.rank + 2 * s.n;
  dot_fetch(x_proj, 0, selected_cols);
  block_conv(node, s, projected, conv_out, c0, c1);
  team.barrier();

  const DotInput conv_input = dot_prepare(x_proj, conv_out, s.e, s.rows, input);
  dot_run(x_proj, conv_input, 0, selected_cols, {selected, selected_cols, nullptr, scale_of(in::x_scale), nullptr, 0});
  const Tensor& dt_proj = node.in(in::dt_proj);
  const Tensor& out_proj = node.in(in::out_proj);
  const Team::Range tiles = team.share((s.d + kTileRows - 1) / kTileRows);
  dot_fetch(out_proj, tiles.begin * kTileRows, min64(s.d, tiles.end * kTileRows));
  const DotInput dt_input = dot_prepare(dt_proj, selected, selected_cols, s.rows, input);
  dot_run(dt_proj, dt_input, c0, c1, {delta, s.e, nullptr, scale_of(in::dt_scale), nullptr, 0});
  block_scan(node, s, {conv_out, delta, selected, projected + s.e, scanned}, c0, c1);
  team.barrier();

  if (tiles.begin == tiles.end) return;
  const DotInput out_input = dot_prepare(out_proj, scanned, s.e, s.rows, input);
  dot_run(out_proj, out_input, tiles.begin * kTileRows, min64(s.d, tiles.end * kTileRows),
          {y.ptr<float>(), y.row_stride, nullptr, scale_of(in::out_scale), x.ptr<float>(), x.row_stride});
}

}  // namespace mb::cpu::MB_TARGET
