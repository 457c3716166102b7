// Gradients of RMSNorm and LayerNorm over x(R,D); equations in native/ref/norm.h.
//
// A row stays in registers, so dy and x are read once. dweight and dbias are sums over rows: each block adds the rows
// it walks in registers, and a last kernel adds the blocks.
#include "check.h"
#include "column_sum.cuh"
#include "dtype.cuh"
#include "kernel.h"
#include "norm.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = kNormThreads, kWarps = kThreads / 32;

struct GradArgs {
  const void *dy, *x, *add;  // add: null, or added to dx
  void* dx;
  const float *weight, *mean, *rstd;  // mean: null for rms_norm
  float* partial;                     // (blocks, D of dweight, D of dbias); the second half for layer_norm only
  int64_t R, D, dy_stride, x_stride, add_stride, dx_stride;
};

// With xhat = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - xhat mean(g xhat)).
struct RowGradient {
  float mean, rstd, g_mean = 0, g_xhat_mean = 0;
  __device__ __forceinline__ float xhat(float x) const { return (x - mean) * rstd; }
  __device__ __forceinline__ float dx(float g, float xhat) const { return rstd * (g - g_mean - xhat * g_xhat_mean); }
};

template <bool kLayer, class Sum>
__device__ __forceinline__ void finish_means(RowGradient& row, Sum& group_sum, float g, float g_xhat, float share) {
  row.g_xhat_mean = group_sum(g_xhat) * share;
  if constexpr (kLayer) row.g_mean = group_sum(g) * share;
}

// Blocks per multiprocessor, and so the rows in flight: as many as the registers of a thread allow.
template <bool kLayer, int Units>
constexpr int kBlocksPerSm = Units <= 2   ? (kLayer ? 5 : 6)
                             : Units <= 4 ? 3
                                          : 2;

// Elements a thread takes at once, 16 bytes of the wider operand.
template <class X, class DY>
constexpr int kGradVector = sizeof(X) + sizeof(DY) == 4 ? 8 : 4;

// What a thread holds of a row; `add` stays 0 where there is none.
template <int Units, int N, class X, class DY>
struct HeldRow {
  alignas(16) DY dy[Units][N];
  alignas(16) X x[Units][N];
  alignas(16) X add[Units][N] = {};
};

// Groups walk the rows in turn; each keeps the sums of its rows in registers.
template <bool kLayer, int Group, int Units, class X, class DY>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kLayer, Units>) norm_grad_rows_kernel(GradArgs a) {
  constexpr int N = kGradVector<X, DY>, kGroups = kThreads / Group;
  __shared__ float room[2][kWarps];
  extern __shared__ float shared_sums[];  // kGroups > 1: (kGroups, D)
  GroupSum<Group> group_sum{room};
  const int lane = threadIdx.x % Group, group = threadIdx.x / Group;
  const float share = 1.0f / static_cast<float>(a.D);
  float dweight[Units][N] = {}, dbias[kLayer ? Units : 1][N] = {};
  for (int64_t r = int64_t{blockIdx.x} * kGroups + group; r < a.R; r += int64_t{gridDim.x} * kGroups) {
    HeldRow<Units, N, X, DY> held;
#pragma unroll
    for (int u = 0; u < Units; u++) {
      const int64_t c = (int64_t{u} * Group + lane) * N;
      if (c >= a.D) continue;
      load_raw<N>(static_cast<const DY*>(a.dy) + r * a.dy_stride + c, held.dy[u]);
      load_raw<N>(static_cast<const X*>(a.x) + r * a.x_stride + c, held.x[u]);
      if (a.add) load_raw<N>(static_cast<const X*>(a.add) + r * a.add_stride + c, held.add[u]);
    }
    RowGradient row{kLayer ? a.mean[r] : 0.0f, a.rstd[r]};
    float g_sum = 0, g_xhat_sum = 0;
#pragma unroll
    for (int u = 0; u < Units; u++) {
      const int64_t c = (int64_t{u} * Group + lane) * N;
      if (c >= a.D) continue;
      float weight[N];
      load_vector<N>(a.weight + c, weight);
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float d = to_float(held.dy[u][j]), xhat = row.xhat(to_float(held.x[u][j])), g = d * weight[j];
        g_sum += g;
        g_xhat_sum += g * xhat;
        dweight[u][j] += d * xhat;
        if constexpr (kLayer) dbias[u][j] += d;
      }
    }
    finish_means<kLayer>(row, group_sum, g_sum, g_xhat_sum, share);
    X* dx_row = static_cast<X*>(a.dx) + r * a.dx_stride;
#pragma unroll
    for (int u = 0; u < Units; u++) {
      const int64_t c = (int64_t{u} * Group + lane) * N;
      if (c >= a.D) continue;
      float weight[N], dx[N];
      load_vector<N>(a.weight + c, weight);
#pragma unroll
      for (int j = 0; j < N; j++) {
        dx[j] =
            row.dx(to_float(held.dy[u][j]) * weight[j], row.xhat(to_float(held.x[u][j]))) + to_float(held.add[u][j]);
      }
      store_vector<N>(dx_row + c, dx);
    }
  }
  float* out = a.partial + blockIdx.x * (kLayer ? 2 : 1) * a.D;
  const auto write = [&](const float(&sum)[N], float* to, int64_t c) {
    if constexpr (kGroups == 1) {
      store_vector<N>(to + c, sum);
    } else {
      store_vector<N>(shared_sums + group * a.D + c, sum);
    }
  };
  const auto join = [&](float* to) {
    if constexpr (kGroups > 1) {
      __syncthreads();
      for (int64_t c = threadIdx.x; c < a.D; c += kThreads) {
        float sum = 0;
#pragma unroll
        for (int g = 0; g < kGroups; g++) sum += shared_sums[g * a.D + c];
        to[c] = sum;
      }
      __syncthreads();
    }
  };
#pragma unroll
  for (int u = 0; u < Units; u++) {
    const int64_t c = (int64_t{u} * Group + lane) * N;
    if (c < a.D) write(dweight[u], out, c);
  }
  join(out);
  if constexpr (kLayer) {
#pragma unroll
    for (int u = 0; u < Units; u++) {
      const int64_t c = (int64_t{u} * Group + lane) * N;
      if (c < a.D) write(dbias[u], out + a.D, c);
    }
    join(out + a.D);
  }
}

// Any width and alignment: rows for dx, then columns for the sums.
template <bool kLayer, class X, class DY>
__global__ void __launch_bounds__(kThreads) norm_grad_any_kernel(GradArgs a) {
  __shared__ float room[2][kWarps];
  GroupSum<kThreads> group_sum{room};
  const int64_t r = blockIdx.x;
  const DY* dy = static_cast<const DY*>(a.dy) + r * a.dy_stride;
  const X* x = static_cast<const X*>(a.x) + r * a.x_stride;
  RowGradient row{kLayer ? a.mean[r] : 0.0f, a.rstd[r]};
  float g_sum = 0, g_xhat_sum = 0;
  for (int64_t c = threadIdx.x; c < a.D; c += kThreads) {
    const float g = to_float(dy[c]) * a.weight[c];
    g_sum += g;
    g_xhat_sum += g * row.xhat(to_float(x[c]));
  }
  finish_means<kLayer>(row, group_sum, g_sum, g_xhat_sum, 1.0f / static_cast<float>(a.D));
  const X* add = static_cast<const X*>(a.add) + r * a.add_stride;
  X* dx = static_cast<X*>(a.dx) + r * a.dx_stride;
  for (int64_t c = threadIdx.x; c < a.D; c += kThreads) {
    const float own = row.dx(to_float(dy[c]) * a.weight[c], row.xhat(to_float(x[c])));
    dx[c] = from_float<X>(a.add ? own + to_float(add[c]) : own);
  }
}

// Block (columns, slice of rows), a thread a column. Runs before dx is written, which may be dy.
template <bool kLayer, class X, class DY>
__global__ void __launch_bounds__(kThreads) norm_grad_columns_kernel(GradArgs a) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= a.D) return;
  float dweight = 0, dbias = 0;
  for (int64_t r = blockIdx.y; r < a.R; r += gridDim.y) {
    const float d = to_float(static_cast<const DY*>(a.dy)[r * a.dy_stride + c]);
    const float x = to_float(static_cast<const X*>(a.x)[r * a.x_stride + c]);
    dweight += d * (x - (kLayer ? a.mean[r] : 0.0f)) * a.rstd[r];
    dbias += d;
  }
  float* out = a.partial + blockIdx.y * (kLayer ? 2 : 1) * a.D + c;
  out[0] = dweight;
  if constexpr (kLayer) out[a.D] = dbias;
}

constexpr int kMaxBlocksPerSm = 6;
constexpr int64_t kRowsPerBlock = 16;  // at least, so that the partial sums stay small beside the rows

int64_t most_slices(int64_t R, const Props& props) {
  return std::clamp<int64_t>(R / kRowsPerBlock, 1, int64_t{kMaxBlocksPerSm} * props.sm_count);
}

template <bool kLayer, int Group, int Units, class X, class DY>
int64_t launch_grad_rows(const GradArgs& a, const Launch& launch) {
  const int64_t blocks =
      std::min(most_slices(a.R, *launch.props), int64_t{kBlocksPerSm<kLayer, Units>} * launch.props->sm_count);
  constexpr int kGroups = kThreads / Group;
  const auto shared = kGroups > 1 ? static_cast<unsigned>(kGroups * a.D * 4) : 0u;
  norm_grad_rows_kernel<kLayer, Group, Units, X, DY>
      <<<static_cast<unsigned>(blocks), kThreads, shared, launch.stream>>>(a);
  return blocks;
}

// Returns the number of partial sums.
template <bool kLayer, class X, class DY>
int64_t launch_grad(const GradArgs& a, bool vectors, const Launch& launch) {
  const int64_t units = vectors ? a.D / kGradVector<X, DY> : INT64_MAX;
  if (units <= 32 * 2) return launch_grad_rows<kLayer, 32, 2, X, DY>(a, launch);
  if (units <= kThreads * 1) return launch_grad_rows<kLayer, kThreads, 1, X, DY>(a, launch);
  if (units <= kThreads * 2) return launch_grad_rows<kLayer, kThreads, 2, X, DY>(a, launch);
  if (units <= kThreads * 4) return launch_grad_rows<kLayer, kThreads, 4, X, DY>(a, launch);
  if (units <= kThreads * 8) return launch_grad_rows<kLayer, kThreads, 8, X, DY>(a, launch);
  const int64_t slices = most_slices(a.R, *launch.props);
  const dim3 grid(static_cast<unsigned>(ceil_div(a.D, kThreads)), static_cast<unsigned>(slices));
  norm_grad_columns_kernel<kLayer, X, DY><<<grid, kThreads, 0, launch.stream>>>(a);
  norm_grad_any_kernel<kLayer, X, DY><<<static_cast<unsigned>(a.R), kThreads, 0, launch.stream>>>(a);
  return slices;
}

// rms_norm_grad has no mean, which lies before rstd, and no dbias.
template <bool kLayer>
Status run_norm_grad(const Node& node, const Launch& launch) {
  namespace in = at::layer_norm_grad::in;
  namespace out = at::layer_norm_grad::out;
  const Tensor &dy = node.in(in::dy), &x = node.in(in::x), &weight = node.in(in::weight);
  const Tensor& rstd = kLayer ? node.in(in::rstd) : node.in(at::rms_norm_grad::in::rstd);
  const Tensor& add = kLayer ? node.in(in::add) : node.in(at::rms_norm_grad::in::add);
  const Tensor &dx = node.out(out::dx), &dweight = node.out(out::dweight);
  const bool accumulate = node.attr(at::layer_norm_grad::attr::accumulate) != 0;
  const int64_t D = x.cols();
  if (x.elems() == 0) return {};
  const GradArgs a{dy.data,
                   x.data,
                   add.data,
                   dx.data,
                   weight.ptr<float>(),
                   kLayer ? node.in(in::mean).ptr<float>() : nullptr,
                   rstd.ptr<float>(),
                   reinterpret_cast<float*>(launch.scratch),
                   x.rows(),
                   D,
                   dy.row_stride,
                   x.row_stride,
                   add.row_stride,
                   dx.row_stride};
  const int64_t slices = with_activation(x.dtype, [&](auto t) {
    return with_activation(dy.dtype, [&](auto u) {
      using X = decltype(t);
      using DY = decltype(u);
      constexpr int N = kGradVector<X, DY>;
      const bool vectors = D % N == 0 && vectors_fit(dy, N) && vectors_fit(x, N) && (!add || vectors_fit(add, N)) &&
                           vectors_fit(dx, N) && vectors_fit(weight, N);
      return launch_grad<kLayer, X, DY>(a, vectors, launch);
    });
  });
  MB_CUDA_LAUNCHED("norm_grad");
  const int64_t stride = (kLayer ? 2 : 1) * D;
  MB_TRY(launch_sum_slices(a.partial, slices, stride, D, dweight.ptr<float>(), accumulate, launch.stream));
  if (!kLayer || !node.out(out::dbias)) return {};
  return launch_sum_slices(a.partial + D, slices, stride, D, node.out(out::dbias).ptr<float>(), accumulate,
                           launch.stream);
}

int64_t norm_grad_scratch(const Node& node, const Props& props) {
  const Tensor& x = node.in(at::layer_norm_grad::in::x);
  return most_slices(x.rows(), props) * 2 * x.cols() * 4;
}

template <int kAdd>
const char* norm_grad_why_not(const Node& node, const Props&) {
  const Tensor &dy = node.in(at::layer_norm_grad::in::dy), &x = node.in(at::layer_norm_grad::in::x);
  if (!is_activation(x) || !is_activation(dy)) return "x or dy is neither f32 nor bf16";
  if (node.out(0).dtype != x.dtype) return "dx and x differ in dtype";
  if (node.in(kAdd) && node.in(kAdd).dtype != x.dtype) return "add and x differ in dtype";
  for (int i = 2; i < kAdd; i++) {
    if (node.in(i).dtype != DType::f32) return "the weight, the mean or rstd is not f32";
    if (!node.in(i).contiguous()) return "the mean or rstd has gaps between rows";
  }
  for (int i = 1; i < node.n_out; i++) {
    if (node.out(i) && node.out(i).dtype != DType::f32) return "dweight or dbias is not f32";
  }
  return nullptr;
}

}  // namespace

const Kernel rms_norm_grad_kernel = {run_norm_grad<false>, norm_grad_scratch,
                                     norm_grad_why_not<at::rms_norm_grad::in::add>};
const Kernel layer_norm_grad_kernel = {run_norm_grad<true>, norm_grad_scratch,
                                       norm_grad_why_not<at::layer_norm_grad::in::add>};

}  // namespace mb::cuda
