// y = x weight^T + bias + add, its gradients, and the column sum that is the gradient of bias.
//
// x(R,K), weight(M,K), y(R,M). With `scale`, row m of the weight is scale[m] times what is stored (i8 needs it).
// quantize_rows makes such a weight: scale = max|row| / 127 and q = x / scale to nearest even, both in f32, so that
// every backend gives the same bytes. A row of zeros has scale 0; a row with a NaN or an infinity has scale NaN and q =
// 0.
//   dx = dy weight + add      dweight = dy^T x      dbias[m] = sum_r dy[r,m]
#pragma once
#include <limits>

#include "operand.h"

namespace mb::ref {

// bias (M) and add (R,M) may be empty.
inline Vec linear_of(const Vec& x, const Vec& weight, const Vec& bias, const Vec& add, int64_t R, int64_t K,
                     int64_t M) {
  Vec y(R * M);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t m = 0; m < M; m++) {
      double sum = 0;
      for (int64_t k = 0; k < K; k++) sum += x[r * K + k] * weight[m * K + k];
      if (!bias.empty()) sum += bias[m];
      if (!add.empty()) sum += add[r * M + m];
      y[r * M + m] = sum;
    }
  }
  return y;
}

inline void linear(const Node& node) {
  namespace in = at::linear::in;
  const Tensor& x = node.in(in::x);
  const Tensor& weight = node.in(in::weight);
  store(node.out(at::linear::out::y),
        linear_of(load(x), load_weight(weight, node.in(in::scale)), load(node.in(in::bias)), load(node.in(in::add)),
                  x.rows(), weight.cols(), weight.rows()));
}

inline const char* linear_why_not(const Node& node) {
  const bool whole = node.in(at::linear::in::weight).dtype == DType::i8;
  return whole && !node.in(at::linear::in::scale) ? "i8 weight without a scale per row" : nullptr;
}

inline void linear_grad_input(const Node& node) {
  const Tensor& weight_tensor = node.in(at::linear_grad_input::in::weight);
  const Vec dy = load(node.in(at::linear_grad_input::in::dy));
  const Vec weight = load(weight_tensor);
  const int64_t R = node.in(at::linear_grad_input::in::dy).rows(), M = weight_tensor.rows(), K = weight_tensor.cols();
  Vec dx = load(node.in(at::linear_grad_input::in::add));
  dx.resize(R * K);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t m = 0; m < M; m++) {
      for (int64_t k = 0; k < K; k++) dx[r * K + k] += dy[r * M + m] * weight[m * K + k];
    }
  }
  store(node.out(at::linear_grad_input::out::dx), dx);
}

inline void linear_grad_weight(const Node& node) {
  const Tensor& dy_tensor = node.in(at::linear_grad_weight::in::dy);
  const Tensor& x_tensor = node.in(at::linear_grad_weight::in::x);
  const Vec dy = load(dy_tensor);
  const Vec x = load(x_tensor);
  const int64_t R = dy_tensor.rows(), M = dy_tensor.cols(), K = x_tensor.cols();
  Vec dweight(M * K);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t m = 0; m < M; m++) {
      for (int64_t k = 0; k < K; k++) dweight[m * K + k] += dy[r * M + m] * x[r * K + k];
    }
  }
  store_gradient(node.out(at::linear_grad_weight::out::dweight), dweight,
                 node.attr(at::linear_grad_weight::attr::accumulate) != 0);
}

inline void column_sum(const Node& node) {
  const Tensor& x_tensor = node.in(at::column_sum::in::x);
  const Vec x = load(x_tensor);
  const int64_t R = x_tensor.rows(), M = x_tensor.cols();
  Vec sum(M);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t m = 0; m < M; m++) sum[m] += x[r * M + m];
  }
  store_gradient(node.out(at::column_sum::out::y), sum, node.attr(at::column_sum::attr::accumulate) != 0);
}

inline void quantize_rows(const Node& node) {
  const Tensor& q = node.out(at::quantize_rows::out::q);
  const Vec x = load(node.in(at::quantize_rows::in::x));
  const int64_t M = q.rows(), K = q.cols();
  Vec scale(M);
  for (int64_t m = 0; m < M; m++) {
    float max = 0;
    bool finite = true;
    for (int64_t k = 0; k < K; k++) {
      const float value = std::fabs(static_cast<float>(x[m * K + k]));
      finite = finite && std::isfinite(value);
      if (value > max) max = value;
    }
    const float row_scale = finite ? max / 127.0f : std::numeric_limits<float>::quiet_NaN();
    for (int64_t k = 0; k < K; k++) {
      const float ratio = row_scale > 0 ? static_cast<float>(x[m * K + k]) / row_scale : 0.0f;
      q.row<int8_t>(m)[k] = static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(ratio, -127.0f), 127.0f)));
    }
    scale[m] = row_scale;
  }
  store(node.out(at::quantize_rows::out::scale), scale);
}

}  // namespace mb::ref
