// y(M) <- sum over rows of x(R,M), or added to y. Two stages, so that the order of the sums is fixed: blocks add slices
// of rows, then one kernel adds the slices.
#include "check.h"
#include "column_sum.cuh"
#include "dtype.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kLanes = 32, kWarps = 8;
constexpr int kBatch = 4;  // rows a thread loads at once

int64_t slice_count(int64_t R, const Props& props) {
  return std::clamp<int64_t>(R / (kWarps * kBatch), 1, 4 * int64_t{props.sm_count});
}

// Block (columns, slice); warps take the rows of the slice in turn.
template <int N, class T>
__global__ void __launch_bounds__(kLanes* kWarps)
    sum_rows_kernel(const T* x, int64_t stride, int64_t R, int64_t M, float* partial) {
  __shared__ float shared[kWarps][kLanes * N];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t c = (int64_t{blockIdx.x} * kLanes + lane) * N;
  const int64_t begin = R * blockIdx.y / gridDim.y, end = R * (blockIdx.y + 1) / gridDim.y;
  float sum[N] = {};
  if (c < M) {
    for (int64_t r0 = begin + warp; r0 < end; r0 += kWarps * kBatch) {
      alignas(16) T raw[kBatch][N];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        if (r0 + i * kWarps < end) load_raw<N>(x + (r0 + i * kWarps) * stride + c, raw[i]);
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        if (r0 + i * kWarps >= end) continue;
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += to_float(raw[i][j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) shared[warp][j * kLanes + lane] = sum[j];
  __syncthreads();
  for (int j = warp; j < N; j += kWarps) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) total += shared[w][j * kLanes + lane];
    if (c < M) partial[blockIdx.y * M + c + j] = total;
  }
}

constexpr int kSliceRows = 32;  // threads of a block along the slices
__global__ void __launch_bounds__(kLanes* kSliceRows)
    sum_slices_kernel(const float* partial, int64_t slices, int64_t stride, int64_t M, float* y, bool accumulate) {
  __shared__ float shared[kSliceRows][kLanes + 1];
  const int64_t m = int64_t{blockIdx.x} * kLanes + threadIdx.x;
  float sum = 0;
  if (m < M) {
#pragma unroll 16
    for (int64_t s = threadIdx.y; s < slices; s += kSliceRows) sum += partial[s * stride + m];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || m >= M) return;
  sum = 0;
#pragma unroll
  for (int s = 0; s < kSliceRows; s++) sum += shared[s][threadIdx.x];
  y[m] = accumulate ? y[m] + sum : sum;
}

template <int N, class T>
Status launch_rows(const Tensor& x, float* partial, int64_t slices, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(ceil_div(x.cols(), kLanes * N)), static_cast<unsigned>(slices));
  sum_rows_kernel<N, T>
      <<<grid, dim3(kLanes, kWarps), 0, launch.stream>>>(x.ptr<T>(), x.row_stride, x.rows(), x.cols(), partial);
  MB_CUDA_LAUNCHED("column_sum");
  return {};
}

Status run_column_sum(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(at::column_sum::in::x), &y = node.out(at::column_sum::out::y);
  const int64_t M = x.cols(), slices = slice_count(x.rows(), *launch.props);
  auto* partial = reinterpret_cast<float*>(launch.scratch);
  if (M == 0) return {};
  MB_TRY(with_activation(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const bool whole = M % N == 0 && vectors_fit(x, N);
    return whole ? launch_rows<N, T>(x, partial, slices, launch) : launch_rows<1, T>(x, partial, slices, launch);
  }));
  const bool accumulate = node.attr(at::column_sum::attr::accumulate) != 0;
  return launch_sum_slices(partial, slices, M, M, y.ptr<float>(), accumulate, launch.stream);
}

int64_t column_sum_scratch(const Node& node, const Props& props) {
  const Tensor& x = node.in(at::column_sum::in::x);
  return slice_count(x.rows(), props) * x.cols() * 4;
}

const char* column_sum_why_not(const Node& node, const Props&) {
  if (!is_activation(node.in(at::column_sum::in::x))) return "x is neither f32 nor bf16";
  return node.out(at::column_sum::out::y).dtype == DType::f32 ? nullptr : "y is not f32";
}

}  // namespace

Status launch_sum_slices(const float* partial, int64_t slices, int64_t stride, int64_t M, float* y, bool accumulate,
                         cudaStream_t stream) {
  sum_slices_kernel<<<static_cast<unsigned>(ceil_div(M, kLanes)), dim3(kLanes, kSliceRows), 0, stream>>>(
      partial, slices, stride, M, y, accumulate);
  MB_CUDA_LAUNCHED("sum of slices");
  return {};
}

const Kernel column_sum_kernel = {run_column_sum, column_sum_scratch, column_sum_why_not};

}  // namespace mb::cuda
