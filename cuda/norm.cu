// RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba, Kiros & Hinton 2016) over the last axis of x(R,D); equations in
// native/ref/norm.h. rms_norm is layer_norm with mean 0 and no bias. A row stays in registers, so memory is read once.
#include "check.h"
#include "dtype.cuh"
#include "early.cuh"
#include "kernel.h"
#include "norm.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = kNormThreads, kWarps = kThreads / 32;

struct NormArgs {
  const void* x;
  void* y;
  const float *weight, *bias;  // bias may be null
  float *mean, *rstd;          // may be null
  int64_t R, D, x_stride, y_stride;
  float eps;
};

template <class T>
constexpr int kVector = 16 / sizeof(T);

// Rows of at most Group * Units vectors, D a multiple of the vector.
template <bool kLayer, int Group, int Units, class X, class Y>
__global__ void __launch_bounds__(kThreads) norm_rows_kernel(NormArgs a) {
  constexpr int N = kVector<X>;
  __shared__ float room[2][kWarps];
  GroupSum<Group> group_sum{room};
  let_next_start();
  wait_for_previous();
  const int64_t r = int64_t{blockIdx.x} * (kThreads / Group) + threadIdx.x / Group;
  if (r >= a.R) return;  // a whole warp, or no thread of the block
  const int lane = threadIdx.x % Group;
  const X* x_row = static_cast<const X*>(a.x) + r * a.x_stride;
  Y* y_row = static_cast<Y*>(a.y) + r * a.y_stride;
  float x[Units][N];
#pragma unroll
  for (int u = 0; u < Units; u++) {
    const int64_t c = (int64_t{u} * Group + lane) * N;
    if (c < a.D) {
      load_vector<N>(x_row + c, x[u]);
    } else {
#pragma unroll
      for (int j = 0; j < N; j++) x[u][j] = 0;
    }
  }
  const float share = 1.0f / static_cast<float>(a.D);
  float mean = 0;
  if constexpr (kLayer) {
    float sum = 0;
#pragma unroll
    for (int u = 0; u < Units; u++) {
#pragma unroll
      for (int j = 0; j < N; j++) sum += x[u][j];
    }
    mean = group_sum(sum) * share;
  }
  float squares = 0;
#pragma unroll
  for (int u = 0; u < Units; u++) {
    if ((int64_t{u} * Group + lane) * N >= a.D) continue;
#pragma unroll
    for (int j = 0; j < N; j++) {
      x[u][j] -= mean;
      squares += x[u][j] * x[u][j];
    }
  }
  const float rstd = __frsqrt_rn(group_sum(squares) * share + a.eps);
  if (lane == 0) {
    if (a.mean) a.mean[r] = mean;
    if (a.rstd) a.rstd[r] = rstd;
  }
#pragma unroll
  for (int u = 0; u < Units; u++) {
    const int64_t c = (int64_t{u} * Group + lane) * N;
    if (c >= a.D) continue;
    float weight[N], bias[N] = {};
    load_vector<N>(a.weight + c, weight);
    if (kLayer && a.bias) load_vector<N>(a.bias + c, bias);
#pragma unroll
    for (int j = 0; j < N; j++) x[u][j] = x[u][j] * rstd * weight[j] + bias[j];
    store_vector<N>(y_row + c, x[u]);
  }
}

// Any width and alignment: a block a row, which reads it again from the cache for each step.
template <bool kLayer, class X, class Y>
__global__ void __launch_bounds__(kThreads) norm_any_kernel(NormArgs a) {
  __shared__ float room[2][kWarps];
  GroupSum<kThreads> group_sum{room};
  const int64_t r = blockIdx.x;
  const X* x = static_cast<const X*>(a.x) + r * a.x_stride;
  Y* y = static_cast<Y*>(a.y) + r * a.y_stride;
  const float share = 1.0f / static_cast<float>(a.D);
  float mean = 0;
  if constexpr (kLayer) {
    float sum = 0;
    for (int64_t c = threadIdx.x; c < a.D; c += kThreads) sum += to_float(x[c]);
    mean = group_sum(sum) * share;
  }
  float squares = 0;
  for (int64_t c = threadIdx.x; c < a.D; c += kThreads) {
    const float d = to_float(x[c]) - mean;
    squares += d * d;
  }
  const float rstd = __frsqrt_rn(group_sum(squares) * share + a.eps);
  if (threadIdx.x == 0) {
    if (a.mean) a.mean[r] = mean;
    if (a.rstd) a.rstd[r] = rstd;
  }
  for (int64_t c = threadIdx.x; c < a.D; c += kThreads) {
    const float bias = kLayer && a.bias ? a.bias[c] : 0.0f;
    y[c] = from_float<Y>((to_float(x[c]) - mean) * rstd * a.weight[c] + bias);
  }
}

template <bool kLayer, int Group, int Units, class X, class Y>
Status launch_norm_rows(const NormArgs& a, const Launch& l) {
  const int64_t blocks = ceil_div(a.R, kThreads / Group);
  return start_early(norm_rows_kernel<kLayer, Group, Units, X, Y>, static_cast<unsigned>(blocks), kThreads, 0, *l.props,
                     l.stream, a);
}

template <bool kLayer, class X, class Y>
Status launch_norm(const NormArgs& a, bool vectors, const Launch& l) {
  const int64_t units = vectors ? a.D / kVector<X> : INT64_MAX;
  if (units <= 32 * 4) return launch_norm_rows<kLayer, 32, 4, X, Y>(a, l);
  if (units <= 32 * 8) return launch_norm_rows<kLayer, 32, 8, X, Y>(a, l);
  if (units <= kThreads * 4) return launch_norm_rows<kLayer, kThreads, 4, X, Y>(a, l);
  if (units <= kThreads * 8) return launch_norm_rows<kLayer, kThreads, 8, X, Y>(a, l);
  norm_any_kernel<kLayer, X, Y><<<static_cast<unsigned>(a.R), kThreads, 0, l.stream>>>(a);
  MB_CUDA_LAUNCHED("norm");
  return {};
}

// rms_norm and layer_norm keep x, weight, y and eps at the same places.
template <bool kLayer>
Status run_norm(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(at::layer_norm::in::x), &y = node.out(at::layer_norm::out::y);
  const Tensor& weight = node.in(at::layer_norm::in::weight);
  const Tensor& rstd = kLayer ? node.out(at::layer_norm::out::rstd) : node.out(at::rms_norm::out::rstd);
  const Tensor none;
  const Tensor& mean = kLayer ? node.out(at::layer_norm::out::mean) : none;
  const Tensor& bias = kLayer ? node.in(at::layer_norm::in::bias) : none;
  if (x.elems() == 0) return {};
  const NormArgs a{x.data,
                   y.data,
                   weight.ptr<float>(),
                   bias.ptr<float>(),
                   mean.ptr<float>(),
                   rstd.ptr<float>(),
                   x.rows(),
                   x.cols(),
                   x.row_stride,
                   y.row_stride,
                   static_cast<float>(node.attr(at::layer_norm::attr::eps))};
  return with_activation(x.dtype, [&](auto tx) {
    return with_activation(y.dtype, [&](auto ty) {
      using X = decltype(tx);
      constexpr int N = kVector<X>;
      const bool vectors =
          a.D % N == 0 && vectors_fit(x, N) && vectors_fit(y, N) && vectors_fit(weight, N) && vectors_fit(bias, N);
      return launch_norm<kLayer, X, decltype(ty)>(a, vectors, launch);
    });
  });
}

const char* norm_why_not(const Node& node, const Props&) {
  if (!is_activation(node.in(0)) || !is_activation(node.out(0))) return "x or y is neither f32 nor bf16";
  for (int i = 1; i < node.n_in; i++) {
    if (node.in(i) && node.in(i).dtype != DType::f32) return "the weight or the bias is not f32";
  }
  for (int i = 1; i < node.n_out; i++) {
    if (!node.out(i)) continue;
    if (node.out(i).dtype != DType::f32) return "the saved mean or rstd is not f32";
    if (!node.out(i).contiguous()) return "the saved mean or rstd has gaps between rows";
  }
  return nullptr;
}

}  // namespace

const Kernel rms_norm_kernel = {run_norm<false>, nullptr, norm_why_not};
const Kernel layer_norm_kernel = {run_norm<true>, nullptr, norm_why_not};

}  // namespace mb::cuda
