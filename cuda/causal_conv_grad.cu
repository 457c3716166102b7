// Gradient of the depthwise causal convolution with SiLU; equations: native/ref/causal_conv.h.
//
// dy, x, dx(B,T,E), weight, dweight(E,K), bias, dbias(E)?, state, dstate, dstate_out(B,K-1,E)?
// A thread walks a run of steps of its channels: with the last K - 1 inputs and slopes in registers, each step reads x
// and dy once and writes dx once, K - 1 steps late. Weights narrower than the kernel are padded by zeros on the old
// side. Runs overlap by K - 1 steps, whose slopes are computed twice.
#include "check.h"
#include "kernel.h"
#include "scan.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

namespace in = at::causal_conv1d_grad::in;
namespace out = at::causal_conv1d_grad::out;
namespace attr = at::causal_conv1d_grad::attr;

constexpr int kLanes = 32, kRuns = 8;        // of a block: along the channels, along time
constexpr int kWide = 4, kWideChannels = 4;  // the fast kernel
constexpr int kWidest = 8;

template <class T>
struct ConvGradArgs {
  int64_t B, T_, E;
  int K;
  bool silu;
  int run;                         // steps
  int64_t runs_per_batch, groups;  // groups of kRuns runs
  const T *dy, *x;
  T* dx;
  int64_t dy_stride, x_stride, dx_stride;
  const float *weight, *bias, *state, *dstate_out;
  float* dstate;
  int64_t weight_stride, state_stride, dstate_out_stride, dstate_stride;
  float* sums;  // (B * groups, K + 1, E): dweight, then dbias
};

// Wide: kernel width, at least K. V: channels a thread.
template <class T, int Wide, int V>
struct ConvGradThread {
  const ConvGradArgs<T>& p;
  int64_t b, e;
  float weight[Wide][V], bias[V], dweight[Wide][V], dbias[V];
  float x[2 * Wide - 1][V], ds[2 * Wide - 1][V];  // the last Wide - 1 steps, then Wide new ones

  __device__ __forceinline__ ConvGradThread(const ConvGradArgs<T>& args, int64_t batch, int64_t channel)
      : p(args), b(batch), e(channel) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      bias[v] = p.bias ? p.bias[e + v] : 0.0f;
      dbias[v] = 0.0f;
#pragma unroll
      for (int k = 0; k < Wide; k++) {
        const int from = k - (Wide - p.K);
        weight[k][v] = from >= 0 ? p.weight[(e + v) * p.weight_stride + from] : 0.0f;
        dweight[k][v] = 0.0f;
      }
    }
  }

  // x at step t, which may lie before the first.
  __device__ __forceinline__ void load_x(int64_t t, float (&to)[V]) const {
    if (t >= 0 && t < p.T_) {
      load_vector<V>(p.x + (b * p.T_ + t) * p.x_stride + e, to);
      return;
    }
    const int64_t i = t + p.K - 1;
    const bool stored = t < 0 && i >= 0 && p.state;
#pragma unroll
    for (int v = 0; v < V; v++) to[v] = stored ? p.state[(b * (p.K - 1) + i) * p.state_stride + e + v] : 0.0f;
  }

  __device__ __forceinline__ void load_dy(int64_t t, float (&to)[V]) const {
    if (t < p.T_) {
      load_vector<V>(p.dy + (b * p.T_ + t) * p.dy_stride + e, to);
      return;
    }
#pragma unroll
    for (int v = 0; v < V; v++) to[v] = 0.0f;
  }

  __device__ __forceinline__ void start(int64_t first) {
#pragma unroll
    for (int i = 0; i < Wide - 1; i++) {
      load_x(first - (Wide - 1) + i, x[i]);
#pragma unroll
      for (int v = 0; v < V; v++) ds[i][v] = 0.0f;
    }
  }

  // ds of new step i, from dy, which lies in ds[Wide - 1 + i].
  __device__ __forceinline__ void differentiate(int i, bool counted) {
    if (p.silu) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        float s = bias[v];
#pragma unroll
        for (int k = 0; k < Wide; k++) s = fmaf(weight[k][v], x[i + k][v], s);
        const float sg = sigmoid_fast(s);
        ds[Wide - 1 + i][v] *= sg * fmaf(s, 1.0f - sg, 1.0f);
      }
    }
    if (!counted) return;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float d = ds[Wide - 1 + i][v];
      dbias[v] += d;
#pragma unroll
      for (int k = 0; k < Wide; k++) dweight[k][v] = fmaf(d, x[i + k][v], dweight[k][v]);
    }
  }

  // The gradient of x at the step that lies Wide - 1 before new step i.
  __device__ __forceinline__ void gradient(int i, float (&d)[V]) const {
#pragma unroll
    for (int v = 0; v < V; v++) {
      d[v] = weight[Wide - 1][v] * ds[i][v];
#pragma unroll
      for (int k = 1; k < Wide; k++) d[v] = fmaf(weight[Wide - 1 - k][v], ds[i + k][v], d[v]);
    }
  }

  // The same at a step that may belong to the state, or pass a gradient on to it.
  __device__ __forceinline__ void emit_edge(int i, int64_t t) const {
    float d[V];
    gradient(i, d);
    const int64_t to_state = t + p.K - 1 - p.T_;
    if (p.dstate_out && to_state >= 0) {
#pragma unroll
      for (int v = 0; v < V; v++) d[v] += p.dstate_out[(b * (p.K - 1) + to_state) * p.dstate_out_stride + e + v];
    }
    if (t >= 0) {
      store_vector<V>(p.dx + (b * p.T_ + t) * p.dx_stride + e, d);
      return;
    }
#pragma unroll
    for (int v = 0; v < V; v++) p.dstate[(b * (p.K - 1) + t + p.K - 1) * p.dstate_stride + e + v] = d[v];
  }

  __device__ __forceinline__ void shift() {
#pragma unroll
    for (int i = 0; i < Wide - 1; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        x[i][v] = x[Wide + i][v];
        ds[i][v] = ds[Wide + i][v];
      }
    }
  }

  // Wide steps from t on, some of which may lie outside the run [first, end).
  __device__ __forceinline__ void walk_edge(int64_t t, int64_t first, int64_t end) {
    const int64_t first_out = first > 0 ? first : p.dstate ? 1 - p.K : 0;
#pragma unroll
    for (int i = 0; i < Wide; i++) {
      load_x(t + i, x[Wide - 1 + i]);
      load_dy(t + i, ds[Wide - 1 + i]);
    }
#pragma unroll
    for (int i = 0; i < Wide; i++) {
      differentiate(i, t + i < end);
      const int64_t to = t + i - (Wide - 1);
      if (to >= first_out && to < end) emit_edge(i, to);
    }
    shift();
  }

  // As they lie in memory, so that the next ones fit beside the current.
  struct Ahead {
    alignas(16) T x[Wide][V], dy[Wide][V];
  };
  __device__ __forceinline__ void fetch(int64_t t, Ahead& ahead) const {
    const T* x_from = p.x + (b * p.T_ + t) * p.x_stride + e;
    const T* dy_from = p.dy + (b * p.T_ + t) * p.dy_stride + e;
#pragma unroll
    for (int i = 0; i < Wide; i++) load_raw<V>(x_from + i * p.x_stride, ahead.x[i]);
#pragma unroll
    for (int i = 0; i < Wide; i++) load_raw<V>(dy_from + i * p.dy_stride, ahead.dy[i]);
  }

  __device__ __forceinline__ void take(const Ahead& ahead) {
#pragma unroll
    for (int i = 0; i < Wide; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        x[Wide - 1 + i][v] = to_float(ahead.x[i][v]);
        ds[Wide - 1 + i][v] = to_float(ahead.dy[i][v]);
      }
    }
  }

  // Steps [t, t + Wide), already taken, and the Wide - 1 before them all lie in the run.
  __device__ __forceinline__ void walk_inner(int64_t t) {
    T* to = p.dx + (b * p.T_ + t - (Wide - 1)) * p.dx_stride + e;
#pragma unroll
    for (int i = 0; i < Wide; i++) {
      differentiate(i, true);
      float d[V];
      gradient(i, d);
      store_vector<V>(to + i * p.dx_stride, d);
    }
    shift();
  }

  __device__ __forceinline__ void walk(int64_t first, int64_t end) {
    start(first);
    int64_t t = first;
    if (t + 2 * Wide <= end) {
      Ahead ahead;
      fetch(t + Wide, ahead);
      walk_edge(t, first, end);
      t += Wide;
#pragma unroll 1
      while (t + Wide <= end) {
        take(ahead);
        if (t + 2 * Wide <= end) fetch(t + Wide, ahead);
        walk_inner(t);
        t += Wide;
      }
    }
#pragma unroll 1
    for (; t < end + Wide - 1; t += Wide) walk_edge(t, first, end);
  }
};

template <class T, int Wide, int V>
__global__ void __launch_bounds__(kLanes* kRuns, Wide == kWide ? 2 : 1)
    conv_grad_kernel(const __grid_constant__ ConvGradArgs<T> p) {
  __shared__ float partial[kRuns][(Wide + 1) * V][kLanes];
  const int lane = threadIdx.x, part = threadIdx.y;
  const int64_t channel_blocks = (p.E + kLanes * V - 1) / (kLanes * V);
  const int64_t e0 = blockIdx.x % channel_blocks * (kLanes * V), group = blockIdx.x / channel_blocks;
  const int64_t b = group / p.groups, first = (group % p.groups * kRuns + part) * p.run;
  const int64_t e = e0 + lane * V;
  if (e < p.E) {
    ConvGradThread<T, Wide, V> thread(p, b, e);
    if (first < p.T_) thread.walk(first, min(first + p.run, p.T_));
#pragma unroll
    for (int v = 0; v < V; v++) {
#pragma unroll
      for (int k = 0; k < Wide; k++) partial[part][k * V + v][lane] = thread.dweight[k][v];
      partial[part][Wide * V + v][lane] = thread.dbias[v];
    }
  }
  __syncthreads();
  for (int i = part; i < (Wide + 1) * V; i += kRuns) {
    const int k = i / V - (Wide - p.K);
    if (k < 0 || e >= p.E) continue;
    float sum = partial[0][i][lane];
#pragma unroll
    for (int r = 1; r < kRuns; r++) sum += partial[r][i][lane];
    p.sums[(group * (p.K + 1) + k) * p.E + e + i % V] = sum;
  }
}

__global__ void conv_grad_sums(const float* sums, int64_t parts, int64_t E, int K, float* dweight, int64_t stride,
                               float* dbias, bool accumulate) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= E * (K + 1)) return;
  const int64_t e = i % E, k = i / E;
  float* to = k < K ? dweight + e * stride + k : dbias + e;
  if (k < K ? !dweight : !dbias) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t part = 0; part < parts; part++) sum += sums[part * E * (K + 1) + i];
  *to = accumulate ? *to + sum : sum;
}

bool fast(const Node& node) {
  return node.in(in::weight).cols() <= kWide && node.in(in::x).cols() % kWideChannels == 0 &&
         vectors_fit(node.in(in::x), kWideChannels) && vectors_fit(node.in(in::dy), kWideChannels) &&
         vectors_fit(node.out(out::dx), kWideChannels);
}

struct Walks {
  int run;
  int64_t channel_blocks, runs_per_batch, groups;
  Walks(const Node& node, const Props& props) {
    const Tensor& x = node.in(in::x);
    const int64_t T = x.dim(1);
    channel_blocks = ceil_div(x.dim(2), kLanes * (fast(node) ? kWideChannels : 1));
    // Long runs repeat less; short ones fill the chip.
    run = 128;
    while (run > 16 && channel_blocks * x.dim(0) * ceil_div(ceil_div(T, run), kRuns) < 6 * props.sm_count) run /= 2;
    runs_per_batch = ceil_div(T, run);
    groups = ceil_div(runs_per_batch, kRuns);
  }
};

int64_t scratch(const Node& node, const Props& props) {
  const Tensor& x = node.in(in::x);
  return x.dim(0) * Walks(node, props).groups * (node.in(in::weight).cols() + 1) * x.dim(2) * 4;
}

template <class T>
ConvGradArgs<T> args_of(const Node& node, const Walks& walks, char* scratch) {
  const Tensor &x = node.in(in::x), &weight = node.in(in::weight), &dy = node.in(in::dy), &dx = node.out(out::dx);
  const Tensor &state = node.in(in::state), &dstate_out = node.in(in::dstate_out), &dstate = node.out(out::dstate);
  ConvGradArgs<T> a{};
  a.B = x.dim(0), a.T_ = x.dim(1), a.E = x.dim(2), a.K = static_cast<int>(weight.cols());
  a.silu = node.attr(attr::silu) != 0;
  a.run = walks.run, a.runs_per_batch = walks.runs_per_batch, a.groups = walks.groups;
  a.dy = dy.ptr<const T>(), a.x = x.ptr<const T>(), a.dx = dx.ptr<T>();
  a.dy_stride = dy.row_stride, a.x_stride = x.row_stride, a.dx_stride = dx.row_stride;
  a.weight = weight.ptr<const float>(), a.bias = node.in(in::bias).template ptr<const float>();
  a.state = state.ptr<const float>(), a.dstate_out = dstate_out.ptr<const float>(), a.dstate = dstate.ptr<float>();
  a.weight_stride = weight.row_stride, a.state_stride = state.row_stride;
  a.dstate_out_stride = dstate_out.row_stride, a.dstate_stride = dstate.row_stride;
  a.sums = reinterpret_cast<float*>(scratch);
  return a;
}

template <class T>
Status launch_typed(const Node& node, const Launch& launch) {
  const Walks walks(node, *launch.props);
  const ConvGradArgs<T> args = args_of<T>(node, walks, launch.scratch);
  const int64_t parts = args.B * walks.groups;
  const dim3 grid(static_cast<unsigned>(walks.channel_blocks * parts)), block(kLanes, kRuns);
  if (fast(node)) {
    conv_grad_kernel<T, kWide, kWideChannels><<<grid, block, 0, launch.stream>>>(args);
  } else {
    conv_grad_kernel<T, kWidest, 1><<<grid, block, 0, launch.stream>>>(args);
  }
  MB_CUDA_LAUNCHED("causal_conv1d_grad");
  const Tensor& dweight = node.out(out::dweight);
  conv_grad_sums<<<static_cast<unsigned>(ceil_div(args.E * (args.K + 1), 128)), 128, 0, launch.stream>>>(
      args.sums, parts, args.E, args.K, dweight.ptr<float>(), dweight.row_stride, node.out(out::dbias).ptr<float>(),
      node.attr(attr::accumulate) != 0);
  MB_CUDA_LAUNCHED("causal_conv1d_grad");
  return {};
}

Status launch(const Node& node, const Launch& launch) {
  if (node.in(in::x).elems() == 0) return {};
  return with_activation(node.in(in::x).dtype, [&](auto zero) { return launch_typed<decltype(zero)>(node, launch); });
}

const char* why_not(const Node& node, const Props&) {
  const Tensor& x = node.in(in::x);
  if (!is_activation(x)) return "x must be f32 or bf16";
  if (node.in(in::dy).dtype != x.dtype || node.out(out::dx).dtype != x.dtype) {
    return "dy and dx must have the dtype of x";
  }
  for (int i : {in::weight, in::bias, in::state, in::dstate_out}) {
    if (node.in(i) && node.in(i).dtype != DType::f32) return "weight, bias and states must be f32";
  }
  for (int i : {out::dweight, out::dbias, out::dstate}) {
    if (node.out(i) && node.out(i).dtype != DType::f32) return "dweight, dbias and dstate must be f32";
  }
  if (node.in(in::weight).cols() > kWidest) return "the kernel is wider than 8";
  return nullptr;
}

}  // namespace

const Kernel causal_conv1d_grad_kernel = {launch, scratch, why_not};

}  // namespace mb::cuda
