// One Mamba residual block (Gu & Dao 2023, section 3.4) of any shape, part by part:
//   y = x + out_proj(scan(conv(in_proj(norm(x))))), x (B,T,D); rows R = B * T are few, so each product reads its
// weights once per eight rows. Decode plans of common shapes run as one persistent kernel instead (decode/), large
// batches as in mamba_block_batch.cu.
#include <algorithm>

#include "check.h"
#include "dtype.cuh"
#include "kernel.h"
#include "mamba_block_batch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

namespace in = at::mamba_block::in;
namespace to = at::mamba_block::out;

constexpr int kThreads = 256;
constexpr int kRowTile = 8;     // activation rows that share one reading of the weights
constexpr int kMaxTaps = 16;    // of the convolution
constexpr int kScanLanes = 16;  // threads that share the states of a channel

struct Sizes {
  int64_t batch, steps, rows, d, e, n, rank, taps, selected;
  explicit Sizes(const Node& node)
      : batch(node.in(in::ssm_state).dim(0)),
        rows(node.in(in::x).rows()),
        d(node.in(in::x).cols()),
        e(node.in(in::A).dim(0)),
        n(node.in(in::A).dim(1)),
        rank(node.in(in::dt_proj).cols()),
        taps(node.in(in::conv_weight).cols()) {
    steps = rows / batch;
    selected = rank + 2 * n;
  }
};

// Scratch, in floats: normed (R,D), projected (R,2E), u (R,E), selected (R,rank+2N), delta (R,E), scanned (R,E).
struct Parts {
  float *normed, *projected, *u, *selected, *delta, *scanned;
  int64_t floats;
  Parts(const Sizes& s, char* scratch) {
    auto* base = reinterpret_cast<float*>(scratch);
    int64_t at = 0;
    const auto take = [&](int64_t count) {
      float* p = base + at;
      at += (count + 63) / 64 * 64;
      return p;
    };
    normed = take(s.rows * s.d);
    projected = take(s.rows * 2 * s.e);
    u = take(s.rows * s.e);
    selected = take(s.rows * s.selected);
    delta = take(s.rows * s.e);
    scanned = take(s.rows * s.e);
    floats = at;
  }
};

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }
__device__ __forceinline__ float softplus(float v) { return v > 20.0f ? v : log1pf(expf(v)); }

// y(R,D): LayerNorm where there is a bias, else RMSNorm. One block a row.
__global__ void __launch_bounds__(kThreads)
    norm(const float* x, int64_t x_stride, const float* weight, const float* bias, int64_t d, float eps, float* y) {
  __shared__ float sums[kThreads / 32], squares[kThreads / 32];
  x += blockIdx.x * x_stride;
  y += blockIdx.x * d;
  float mean = 0.0f;
  if (bias) {
    float sum = 0.0f;
    for (int64_t j = threadIdx.x; j < d; j += kThreads) sum += x[j];
    mean = block_sum<kThreads>(sum, sums) / static_cast<float>(d);
  }
  float square = 0.0f;
  for (int64_t j = threadIdx.x; j < d; j += kThreads) square += (x[j] - mean) * (x[j] - mean);
  const float rstd = 1.0f / sqrtf(block_sum<kThreads>(square, squares) / static_cast<float>(d) + eps);
  for (int64_t j = threadIdx.x; j < d; j += kThreads) {
    y[j] = (x[j] - mean) * rstd * weight[j] + (bias ? bias[j] : 0.0f);
  }
}

struct Product {
  const void* weight;  // (M,K)
  const float* scale;  // (M) or null
  const float* x;      // (R,K)
  const float* add;    // (R,M) or null
  float* y;            // (R,M)
  int64_t weight_stride, x_stride, add_stride, y_stride, rows, m, k;
};

// y = scale * (x weight^T) + add. A warp makes one column of y for kRowTile rows; blockIdx.y walks the rows. kWide: 4
// neighbouring elements a load.
template <class W, bool kWide>
__global__ void __launch_bounds__(kThreads) few_rows(Product p) {
  constexpr int kVector = kWide ? 4 : 1;
  const int lane = threadIdx.x % 32;
  const int64_t m = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int64_t r0 = int64_t{blockIdx.y} * kRowTile;
  if (m >= p.m) return;
  const int rows = static_cast<int>(min(p.rows - r0, int64_t{kRowTile}));
  const W* weight = static_cast<const W*>(p.weight) + m * p.weight_stride;
  const float* x = p.x + r0 * p.x_stride;
  float sum[kRowTile] = {};
  for (int64_t k = lane * kVector; k < p.k; k += 32 * kVector) {
    float w[kVector];
    load_vector<kVector>(weight + k, w);
#pragma unroll
    for (int r = 0; r < kRowTile; r++) {
      if (r >= rows) break;
      float v[kVector];
      load_vector<kVector>(x + r * p.x_stride + k, v);
#pragma unroll
      for (int i = 0; i < kVector; i++) sum[r] = fmaf(w[i], v[i], sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTile; r++) {
    const float total = warp_sum(sum[r]);
    if (lane != r || r >= rows) continue;
    float v = p.scale ? total * p.scale[m] : total;
    if (p.add) v += p.add[(r0 + r) * p.add_stride + m];
    p.y[(r0 + r) * p.y_stride + m] = v;
  }
}

template <class W>
Status multiply_as(const Product& p, bool wide, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.m, kThreads / 32)),
                  static_cast<unsigned>(ceil_div(p.rows, kRowTile)));
  if (wide) {
    few_rows<W, true><<<grid, kThreads, 0, stream>>>(p);
  } else {
    few_rows<W, false><<<grid, kThreads, 0, stream>>>(p);
  }
  MB_CUDA_LAUNCHED("mamba_block: product");
  return {};
}

Status multiply(const Tensor& weight, const Tensor& scale, Product p, cudaStream_t stream) {
  p.weight = weight.data;
  p.scale = weight.dtype == DType::i8 ? scale.ptr<float>() : nullptr;
  p.weight_stride = weight.row_stride;
  p.m = weight.dim(0);
  p.k = weight.cols();
  const bool wide =
      p.k % 4 == 0 && vectors_fit(weight, 4) && p.x_stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  if (weight.dtype == DType::f32) return multiply_as<float>(p, wide, stream);
  if (weight.dtype == DType::bf16) return multiply_as<bf16>(p, wide, stream);
  return multiply_as<int8_t>(p, wide, stream);
}

struct Conv {
  const float *x, *weight, *bias, *state;  // (R,2E) the first half, (E,K), (E) or null, (B,K-1,E)
  float *u, *state_out, *kept;             // (R,E), (B,K-1,E), (T,B,(K-1)E) or null
  int64_t x_stride, weight_stride, state_stride, state_out_stride, kept_stride, batch, steps, e;
  int taps;
};

// u = silu(conv(x)), and the state moves on. A thread walks one channel of one sequence.
__global__ void __launch_bounds__(kThreads) convolve(Conv c) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= c.batch * c.e) return;
  const int64_t b = i / c.e, e = i % c.e;
  const int before = c.taps - 1;
  const float* state = c.state + b * before * c.state_stride + e;
  const float* x = c.x + b * c.steps * c.x_stride + e;
  const float* weight = c.weight + e * c.weight_stride;
  // The carried inputs are read before any is written: state_out may be state.
  float old[kMaxTaps];
  for (int j = 0; j < before; j++) old[j] = state[j * c.state_stride];
  const auto input = [&](int64_t t) { return t < before ? old[t] : x[(t - before) * c.x_stride]; };
  for (int64_t t = 0; t < c.steps; t++) {
    float sum = c.bias ? c.bias[e] : 0.0f;
    for (int k = 0; k < c.taps; k++) sum = fmaf(weight[k], input(t + k), sum);
    c.u[(b * c.steps + t) * c.e + e] = silu(sum);
    if (!c.kept) continue;
    for (int j = 0; j < before; j++) c.kept[(t * c.batch + b) * c.kept_stride + j * c.e + e] = input(t + 1 + j);
  }
  for (int j = 0; j < before; j++) {
    c.state_out[(b * before + j) * c.state_out_stride + e] = input(c.steps + j);
  }
}

struct Scan {
  const float *u, *delta, *selected, *gate;  // (R,E), (R,E), (R,rank+2N), (R,2E) the second half
  const float *A, *D, *bias, *state;         // (E,N), (E), (E), (B,E,N)
  float *y, *state_out, *kept;               // (R,E), (B,E,N), (T,B,E*N) or null
  int64_t A_stride, state_stride, state_out_stride, kept_stride, gate_stride, batch, steps, e, n, rank;
};

// Lanes of a group of kScanLanes share a channel of a sequence; state_out carries the states from step to step.
__global__ void __launch_bounds__(kThreads) scan(Scan s) {
  const int64_t i = int64_t{blockIdx.x} * (kThreads / kScanLanes) + threadIdx.x / kScanLanes;
  const int lane = threadIdx.x % kScanLanes;
  const bool active = i < s.batch * s.e;
  const int64_t b = active ? i / s.e : 0, e = active ? i % s.e : 0;
  const int64_t selected_cols = s.rank + 2 * s.n;
  for (int64_t t = 0; t < s.steps; t++) {
    const int64_t row = b * s.steps + t;
    const float u = s.u[row * s.e + e];
    const float dt = softplus(s.delta[row * s.e + e] + s.bias[e]);
    const float* B = s.selected + row * selected_cols + s.rank;
    const float* from = t ? s.state_out + i * s.state_out_stride : s.state + i * s.state_stride;
    float sum = 0.0f;
    for (int64_t n = lane; active && n < s.n; n += kScanLanes) {
      const float h = fmaf(expf(dt * s.A[e * s.A_stride + n]), from[n], dt * B[n] * u);
      s.state_out[i * s.state_out_stride + n] = h;
      if (s.kept) s.kept[(t * s.batch + b) * s.kept_stride + e * s.n + n] = h;
      sum = fmaf(B[s.n + n], h, sum);
    }
#pragma unroll
    for (int step = kScanLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (active && lane == 0) {
      s.y[row * s.e + e] = fmaf(s.D[e], u, sum) * silu(s.gate[row * s.gate_stride + e]);
    }
  }
}

Status convolve_block(const Node& node, const Sizes& s, const Parts& p, cudaStream_t stream) {
  const Tensor &state = node.in(in::conv_state), &state_out = node.out(to::conv_state_out);
  const Tensor &kept = node.out(to::kept_conv), &weight = node.in(in::conv_weight);
  Conv c{};
  c.x = p.projected;
  c.x_stride = 2 * s.e;
  c.weight = weight.ptr<float>();
  c.weight_stride = weight.row_stride;
  c.bias = node.in(in::conv_bias).ptr<float>();
  c.state = state.ptr<float>();
  c.state_stride = state.row_stride;
  c.u = p.u;
  c.state_out = state_out.ptr<float>();
  c.state_out_stride = state_out.row_stride;
  c.kept = kept.ptr<float>();
  c.kept_stride = kept.row_stride;
  c.batch = s.batch;
  c.steps = s.steps;
  c.e = s.e;
  c.taps = static_cast<int>(s.taps);
  convolve<<<static_cast<unsigned>(ceil_div(s.batch * s.e, kThreads)), kThreads, 0, stream>>>(c);
  MB_CUDA_LAUNCHED("mamba_block: convolution");
  return {};
}

Status scan_block(const Node& node, const Sizes& s, const Parts& p, cudaStream_t stream) {
  const Tensor &state = node.in(in::ssm_state), &state_out = node.out(to::ssm_state_out);
  const Tensor &kept = node.out(to::kept_ssm), &A = node.in(in::A);
  Scan c{};
  c.u = p.u;
  c.delta = p.delta;
  c.selected = p.selected;
  c.gate = p.projected + s.e;
  c.gate_stride = 2 * s.e;
  c.A = A.ptr<float>();
  c.A_stride = A.row_stride;
  c.D = node.in(in::D).ptr<float>();
  c.bias = node.in(in::dt_bias).ptr<float>();
  c.state = state.ptr<float>();
  c.state_stride = state.row_stride;
  c.y = p.scanned;
  c.state_out = state_out.ptr<float>();
  c.state_out_stride = state_out.row_stride;
  c.kept = kept.ptr<float>();
  c.kept_stride = kept.row_stride;
  c.batch = s.batch;
  c.steps = s.steps;
  c.e = s.e;
  c.n = s.n;
  c.rank = s.rank;
  scan<<<static_cast<unsigned>(ceil_div(s.batch * s.e, kThreads / kScanLanes)), kThreads, 0, stream>>>(c);
  MB_CUDA_LAUNCHED("mamba_block: scan");
  return {};
}

Product product(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t rows) {
  Product p{};
  p.x = x;
  p.x_stride = x_stride;
  p.y = y;
  p.y_stride = y_stride;
  p.rows = rows;
  return p;
}

Status launch(const Node& node, const Launch& l) {
  const Sizes s(node);
  if (s.rows == 0) return {};
  if (takes_batch(node, *l.props)) return launch_batch(node, l);
  const Parts p(s, l.scratch);
  const Tensor &x = node.in(in::x), &y = node.out(to::y);
  norm<<<static_cast<unsigned>(s.rows), kThreads, 0, l.stream>>>(
      x.ptr<float>(), x.row_stride, node.in(in::norm_weight).ptr<float>(), node.in(in::norm_bias).ptr<float>(), s.d,
      static_cast<float>(node.attr(at::mamba_block::attr::eps)), p.normed);
  MB_CUDA_LAUNCHED("mamba_block: norm");
  MB_TRY(multiply(node.in(in::in_proj), node.in(in::in_scale), product(p.normed, s.d, p.projected, 2 * s.e, s.rows),
                  l.stream));
  MB_TRY(convolve_block(node, s, p, l.stream));
  MB_TRY(
      multiply(node.in(in::x_proj), node.in(in::x_scale), product(p.u, s.e, p.selected, s.selected, s.rows), l.stream));
  MB_TRY(multiply(node.in(in::dt_proj), node.in(in::dt_scale), product(p.selected, s.selected, p.delta, s.e, s.rows),
                  l.stream));
  MB_TRY(scan_block(node, s, p, l.stream));
  Product out = product(p.scanned, s.e, y.ptr<float>(), y.row_stride, s.rows);
  out.add = x.ptr<float>();
  out.add_stride = x.row_stride;
  return multiply(node.in(in::out_proj), node.in(in::out_scale), out, l.stream);
}

int64_t scratch(const Node& node, const Props& props) {
  return takes_batch(node, props) ? batch_scratch(node) : Parts(Sizes(node), nullptr).floats * 4;
}

const char* why_not(const Node& node, const Props&) {
  const auto f32 = [](const Tensor& t) { return !t || t.dtype == DType::f32; };
  for (const int i : {in::x, in::norm_weight, in::norm_bias, in::conv_weight, in::conv_bias, in::dt_bias, in::A, in::D,
                      in::conv_state, in::ssm_state}) {
    if (!f32(node.in(i))) return "mamba_block: expected everything but the projections to be f32";
  }
  for (int i = 0; i < node.n_out; i++) {
    if (!f32(node.out(i))) return "mamba_block: expected the outputs to be f32";
  }
  const int pairs[4][2] = {{in::in_proj, in::in_scale},
                           {in::x_proj, in::x_scale},
                           {in::dt_proj, in::dt_scale},
                           {in::out_proj, in::out_scale}};
  for (const auto& [matrix, scale] : pairs) {
    const Tensor& w = node.in(matrix);
    if (w.dtype == DType::i8) {
      if (!node.in(scale)) return "mamba_block: expected an i8 weight to come with a scale per row";
    } else if (w.dtype != DType::f32 && w.dtype != DType::bf16) {
      return "mamba_block: expected the weights to be f32, bf16 or i8";
    }
  }
  if (node.in(in::conv_weight).cols() > kMaxTaps)
    return "mamba_block: expected the convolution to have at most 16 taps";
  if (node.in(in::ssm_state).dim(0) < 1) return "mamba_block: expected at least one sequence";
  return nullptr;
}

}  // namespace

const Kernel mamba_block_kernel = {launch, scratch, why_not};

}  // namespace mb::cuda
