// Depthwise causal convolution over time, with SiLU. x, y(B,T,E), weight(E,K), bias(E), state, state_out(B,K-1,E);
// equations of native/ref/causal_conv.h. A thread keeps the last K - 1 inputs of its channels in registers and walks a
// run of steps, so x is read once; the limit is memory bandwidth.
#include <algorithm>

#include "check.h"
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda {
namespace {

namespace in = at::causal_conv1d::in;
namespace out = at::causal_conv1d::out;

constexpr int kThreads = 128;
constexpr int kMaxWidth = 16;  // K
constexpr int kAhead = 8;      // steps loaded together

struct Args {
  ScanRows x, y, weight, state, state_out;
  const float* bias;
  const int32_t* lengths;  // state_out is the state after the first lengths[b] steps; null: after all
  int64_t T, E;
  int K;
  int64_t run, runs;  // steps of a thread, and how many threads a channel has
  bool silu;
};

// ext[t + i]: the state's rows (or zeros) followed by x.
__device__ __forceinline__ float earlier(const Args& p, int64_t b, int64_t t, int64_t e) {
  if (t >= 0) return p.x.load(b * p.T + t, e);
  return p.state.data ? p.state.load((b + 1) * (p.K - 1) + t, e) : 0.0f;
}

// state_out may be state: this thread alone reads and writes it for its channel, and never behind its own writes.
__device__ __forceinline__ void keep_state(const Args& p, int64_t b, int64_t e) {
  const int64_t length = p.lengths ? min(max(int64_t{p.lengths[b]}, int64_t{0}), p.T) : p.T;
  for (int64_t i = 0; i < p.K - 1; i++) {
    p.state_out.store(b * (p.K - 1) + i, e, earlier(p, b, length - (p.K - 1) + i, e));
  }
}

// The rows of V neighbouring channels; 16 bytes an instruction where they lie so.
template <int K, int V>
__device__ __forceinline__ void load_weight(const ScanRows& from, int64_t e, float (&weight)[V][K]) {
  const float* rows = static_cast<const float*>(from.data) + e * from.stride;
  if (K == 4 && from.stride % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0) {
#pragma unroll
    for (int v = 0; v < V; v++) load_vector<K>(rows + v * from.stride, weight[v]);
  } else {
#pragma unroll
    for (int v = 0; v < V; v++) {
#pragma unroll
      for (int k = 0; k < K; k++) weight[v][k] = rows[v * from.stride + k];
    }
  }
}

// V neighbouring channels a thread, all rows aligned for vectors of V.
template <class T, int K, int V>
__global__ void __launch_bounds__(kThreads) convolve(const Args p) {
  const int64_t e = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (e >= p.E) return;
  const int64_t b = blockIdx.y / p.runs, first = blockIdx.y % p.runs * p.run;
  const int64_t last = min(first + p.run, p.T);
  const T* x = static_cast<const T*>(p.x.data) + b * p.T * p.x.stride + e;
  T* y = static_cast<T*>(const_cast<void*>(p.y.data)) + b * p.T * p.y.stride + e;

  float weight[V][K], bias[V], window[K][V];
  load_weight<K>(p.weight, e, weight);
#pragma unroll
  for (int v = 0; v < V; v++) bias[v] = p.bias ? p.bias[e + v] : 0.0f;
#pragma unroll
  for (int k = 0; k < K - 1; k++) {
    if (first > 0) {
      load_vector<V>(x + (first - (K - 1) + k) * p.x.stride, window[k]);
    } else {
#pragma unroll
      for (int v = 0; v < V; v++) window[k][v] = earlier(p, b, k - (K - 1), e + v);
    }
  }
  for (int64_t t0 = first; t0 < last; t0 += kAhead) {
    alignas(16) T raw[kAhead][V];
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      if (t0 + j < last) load_raw<V>(x + (t0 + j) * p.x.stride, raw[j]);
    }
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      if (t0 + j >= last) break;
      float s[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        window[K - 1][v] = to_float(raw[j][v]);
        s[v] = bias[v];
#pragma unroll
        for (int k = 0; k < K; k++) s[v] = fmaf(weight[v][k], window[k][v], s[v]);
#pragma unroll
        for (int k = 0; k < K - 1; k++) window[k][v] = window[k + 1][v];
        if (p.silu) s[v] *= sigmoid_fast(s[v]);
      }
      store_vector<V>(y + (t0 + j) * p.y.stride, s);
    }
  }
  if (first == 0 && p.state_out.data) {
#pragma unroll
    for (int v = 0; v < V; v++) keep_state(p, b, e + v);
  }
}

// Any width, alignment and mix of dtypes: one channel a thread. Every run is at least K - 1 steps long, so only the
// first one reads the state.
__global__ void __launch_bounds__(kThreads) convolve_any(const Args p) {
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= p.E) return;
  const int64_t b = blockIdx.y / p.runs, first = blockIdx.y % p.runs * p.run;
  const int64_t last = min(first + p.run, p.T);
  const float bias = p.bias ? p.bias[e] : 0.0f;
  float weight[kMaxWidth], window[kMaxWidth];  // right-aligned: entries before kMaxWidth - K are 0
#pragma unroll
  for (int k = 0; k < kMaxWidth; k++) {
    const int i = k - (kMaxWidth - p.K);
    weight[k] = i >= 0 ? p.weight.load(e, i) : 0.0f;
    if (k + 1 < kMaxWidth) window[k + 1] = i >= 0 && k + 1 < kMaxWidth ? earlier(p, b, first - (p.K - 1) + i, e) : 0.0f;
  }
  for (int64_t t = first; t < last; t++) {
#pragma unroll
    for (int k = 0; k + 1 < kMaxWidth; k++) window[k] = window[k + 1];
    window[kMaxWidth - 1] = p.x.load(b * p.T + t, e);
    float s = bias;
#pragma unroll
    for (int k = 0; k < kMaxWidth; k++) {
      if (k >= kMaxWidth - p.K) s = fmaf(weight[k], window[k], s);
    }
    p.y.store(b * p.T + t, e, p.silu ? s * sigmoid_fast(s) : s);
  }
  if (first == 0 && p.state_out.data) keep_state(p, b, e);
}

// Runs long enough that re-reading K - 1 steps is little, short enough to fill the device.
int64_t run_length(int64_t T, int64_t threads_per_step, const Props& props) {
  constexpr int64_t kShortest = 16, kLongest = 64;
  int64_t run = kLongest;
  while (run > kShortest && threads_per_step * ceil_div(T, run) < int64_t{props.sm_count} * 1024) run /= 2;
  return run;
}

template <class T, int V>
Status launch_vectors(const Args& p, dim3 grid, cudaStream_t stream) {
  switch (p.K) {
    case 2:
      convolve<T, 2, V><<<grid, kThreads, 0, stream>>>(p);
      break;
    case 3:
      convolve<T, 3, V><<<grid, kThreads, 0, stream>>>(p);
      break;
    default:
      convolve<T, 4, V><<<grid, kThreads, 0, stream>>>(p);
  }
  MB_CUDA_LAUNCHED("causal_conv1d");
  return {};
}

Status run_conv(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(in::x), &y = node.out(out::y), &weight = node.in(in::weight);
  const int64_t B = x.dim(0), T = x.dim(1), E = x.dim(2);
  const int K = static_cast<int>(weight.cols());
  if (B * T * E == 0) return {};
  const int V = x.dtype == DType::bf16 ? 8 : 4;
  const bool vectors = x.dtype == y.dtype && K >= 2 && K <= 4 && E % V == 0 && vectors_fit(x, V) && vectors_fit(y, V);
  const int64_t units = ceil_div(E, vectors ? V : 1);
  Args p{ScanRows(x),
         ScanRows(y),
         ScanRows(weight),
         ScanRows(node.in(in::state)),
         ScanRows(node.out(out::state_out)),
         node.in(in::bias).ptr<float>(),
         node.in(in::lengths).ptr<int32_t>(),
         T,
         E,
         K,
         run_length(T, B * units, *launch.props),
         0,
         node.attr(at::causal_conv1d::attr::silu) != 0};
  p.run = std::max(p.run, ceil_div(B * T, 32768));  // the y extent of a grid is limited
  p.runs = ceil_div(T, p.run);
  const dim3 grid(static_cast<unsigned>(ceil_div(units, kThreads)), static_cast<unsigned>(B * p.runs));
  if (!vectors) {
    convolve_any<<<grid, kThreads, 0, launch.stream>>>(p);
    MB_CUDA_LAUNCHED("causal_conv1d");
    return {};
  }
  if (x.dtype == DType::bf16) return launch_vectors<bf16, 8>(p, grid, launch.stream);
  return launch_vectors<float, 4>(p, grid, launch.stream);
}

const char* why_not_conv(const Node& node, const Props&) {
  if (!is_activation(node.in(in::x)) || !is_activation(node.out(out::y))) {
    return "cuda: causal_conv1d takes activations in f32 or bf16";
  }
  for (const Tensor* t : {&node.in(in::weight), &node.in(in::bias), &node.in(in::state), &node.out(out::state_out)}) {
    if (*t && t->dtype != DType::f32) return "cuda: causal_conv1d takes parameters and states in f32";
  }
  if (!are_lengths(node.in(in::lengths))) return "cuda: causal_conv1d takes lengths in i32, without gaps";
  if (node.in(in::x).dim(0) > 32768) return "cuda: causal_conv1d takes at most 32768 sequences";
  return node.in(in::weight).cols() > kMaxWidth ? "cuda: causal_conv1d takes a width of at most 16" : nullptr;
}

}  // namespace

const Kernel causal_conv1d_kernel = {run_conv, nullptr, why_not_conv};

}  // namespace mb::cuda
