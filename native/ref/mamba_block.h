// One Mamba residual block (Gu & Dao 2023, figure 3), as the composition of the other reference functions.
//
//   n = norm(x);  (v, z) = in_proj n;  c = silu(conv(v));  (r, B, C) = x_proj c;  delta = dt_proj r
//   y = x + out_proj scan(c, softplus(delta + dt_bias), A, B, C, D, z)
// x, y(B,T,D), in_proj(2E,D), conv_weight(E,K), x_proj(R+2N,E), dt_proj(E,R), A(E,N), out_proj(D,E),
// conv_state(B,K-1,E), ssm_state(B,E,N); kept_conv(T,B,(K-1)E) and kept_ssm(T,B,E N) hold the states after every step.
#pragma once
#include "causal_conv.h"
#include "linear.h"
#include "norm.h"
#include "selective_scan.h"

namespace mb::ref {

// Columns first .. first + count of rows of `width`.
inline Vec columns(const Vec& v, int64_t width, int64_t first, int64_t count) {
  const int64_t rows = static_cast<int64_t>(v.size()) / width;
  Vec part(rows * count);
  for (int64_t r = 0; r < rows; r++) std::copy_n(&v[r * width + first], count, part.begin() + r * count);
  return part;
}

// (T,B,(K-1)E)
inline Vec kept_conv_states(const ConvSizes& s, const Vec& ext) {
  Vec kept;
  for (int64_t t = 0; t < s.T; t++) {
    const Vec state = conv_state_after(s, ext, t + 1);
    kept.insert(kept.end(), state.begin(), state.end());
  }
  return kept;
}

inline void mamba_block(const Node& node) {
  namespace in = at::mamba_block::in;
  namespace out = at::mamba_block::out;
  const auto operand = [&](int i) { return load(node.in(i)); };
  const auto weight = [&](int i, int scale) { return load_weight(node.in(i), node.in(scale)); };
  const Tensor& x_tensor = node.in(in::x);
  const int64_t B = x_tensor.dim(0), T = x_tensor.dim(1), D = x_tensor.dim(2), rows = B * T;
  const int64_t E = node.in(in::A).rows(), N = node.in(in::A).cols(), R = node.in(in::dt_proj).cols();

  const Vec x = operand(in::x);
  const bool centre = static_cast<bool>(node.in(in::norm_bias));
  const Vec normed =
      norm_of(x, operand(in::norm_weight), operand(in::norm_bias), centre, node.attr(at::mamba_block::attr::eps), rows)
          .y;
  const Vec vz = linear_of(normed, weight(in::in_proj, in::in_scale), {}, {}, rows, D, 2 * E);

  const ConvSizes conv{B, T, E, node.in(in::conv_weight).cols()};
  const Vec ext = conv_join(conv, operand(in::conv_state), columns(vz, 2 * E, 0, E));
  Vec c = conv_sum(conv, ext, operand(in::conv_weight), operand(in::conv_bias));
  for (double& value : c) value = silu_of(value);

  const Vec rBC = linear_of(c, weight(in::x_proj, in::x_scale), {}, {}, rows, E, R + 2 * N);
  const Vec delta = linear_of(columns(rBC, R + 2 * N, 0, R), weight(in::dt_proj, in::dt_scale), {}, {}, rows, R, E);
  const ScanInputs inputs{{B, T, E, N, T},
                          true,
                          c,
                          delta,
                          operand(in::A),
                          columns(rBC, R + 2 * N, R, N),
                          columns(rBC, R + 2 * N, R + N, N),
                          operand(in::D),
                          columns(vz, 2 * E, E, E),
                          operand(in::dt_bias),
                          operand(in::ssm_state)};
  const ScanOutputs scan = scan_of(inputs, static_cast<bool>(node.out(out::kept_ssm)));
  const Vec y = linear_of(scan.y, weight(in::out_proj, in::out_scale), {}, x, rows, E, D);

  store(node.out(out::y), y);
  store(node.out(out::conv_state_out), conv_state_after(conv, ext, T));
  store(node.out(out::ssm_state_out), scan.state);
  if (node.out(out::kept_conv)) store(node.out(out::kept_conv), kept_conv_states(conv, ext));
  store(node.out(out::kept_ssm), scan.kept);
}

inline const char* mamba_block_why_not(const Node& node) {
  namespace in = at::mamba_block::in;
  const int pairs[4][2] = {{in::in_proj, in::in_scale},
                           {in::x_proj, in::x_scale},
                           {in::dt_proj, in::dt_scale},
                           {in::out_proj, in::out_scale}};
  for (const auto& [matrix, scale] : pairs) {
    if (node.in(matrix).dtype == DType::i8 && !node.in(scale)) return "i8 weight without a scale per row";
  }
  return nullptr;
}

}  // namespace mb::ref
