// linear for few rows of x, bound by reading the weight once.
//
// A warp streams whole rows of the weight, 16 bytes a lane and row at a time, and multiplies them in f32 with up to
// eight rows of x, which stay in the first-level cache. Each row of y is summed in an order that the number of rows has
// no part in, so K verified ids have the bits of K decoded ones.
#include <algorithm>

#include "check.h"
#include "copy.cuh"
#include "early.cuh"
#include "gemm_epilogue.cuh"
#include "linear_epilogue.h"
#include "linear_rows.h"

namespace mb::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRowTile = 8;  // rows of x that share one reading of the weight

struct Args {
  const void* x;
  const void* weight;
  int64_t x_stride, weight_stride, rows, depth, m;
  Epilogue epilogue;
};

template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
  T v[V];
};

// Every weight is read once, so it need not stay in a cache.
template <class W, int V>
__device__ __forceinline__ Vector<W, V> load_weights(const W* p) {
  Vector<W, V> out;
  if constexpr (sizeof(out) == 16) {
    *reinterpret_cast<int4*>(&out) = __ldcs(reinterpret_cast<const int4*>(p));
  } else {
    *reinterpret_cast<int2*>(&out) = __ldcs(reinterpret_cast<const int2*>(p));
  }
  return out;
}

template <class X, int V>
__device__ __forceinline__ void load_x(float (&out)[V], const X* p) {
  constexpr int kEach = V < int(16 / sizeof(X)) ? V : int(16 / sizeof(X));
#pragma unroll
  for (int i = 0; i < V; i += kEach) {
    const auto part = *reinterpret_cast<const Vector<X, kEach>*>(p + i);
#pragma unroll
    for (int j = 0; j < kEach; j++) out[i + j] = to_float(part.v[j]);
  }
}

// The block's rows of the weight and rows of x. Blocks that read the same weights run side by side.
template <int R>
struct Part {
  int64_t first, r0;  // the block's number among those of its rows of x, their first one
  __device__ __forceinline__ explicit Part(const Args& a) {
    const int64_t tiles = R < kRowTile ? 1 : (a.rows + R - 1) / R;
    first = blockIdx.x / tiles;
    r0 = blockIdx.x % tiles * R;
  }
};

template <int R, int Each>
__device__ __forceinline__ void finish(const Args& a, int64_t r0, int64_t m0, float (&acc)[Each][R]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < Each; e++) {
#pragma unroll
    for (int r = 0; r < R; r++) {
      float sum = acc[e][r];
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
      if (lane == (e * R + r) % 32 && r0 + r < a.rows && m0 + e < a.m) epilogue_store(a.epilogue, r0 + r, m0 + e, sum);
    }
  }
}

// To the second-level cache, before what came earlier has ended; a kernel that writes the weight would still be seen.
template <class W, int Each>
__device__ __forceinline__ void prefetch_rows(const Args& a, int64_t m0) {
  for (int e = 0; e < Each && m0 + e < a.m; e++) {
    const char* row = reinterpret_cast<const char*>(static_cast<const W*>(a.weight) + (m0 + e) * a.weight_stride);
    for (int64_t at = threadIdx.x % 32 * kLine; at < a.depth * int64_t{sizeof(W)}; at += 32 * kLine)
      prefetch_line(row + at);
  }
}

// Each: rows of the weight a warp takes at once. R >= rows, or kRowTile; the rows beyond repeat the last one.
template <class W, class X, int R, int Each>
__global__ void __launch_bounds__(kWarps * 32) rows_kernel(const Args a) {
  constexpr int V = sizeof(W) == 4 ? 4 : 8;
  const Part<R> part(a);
  const int64_t m0 = (part.first * kWarps + threadIdx.x / 32) * Each;
  let_next_start();
  prefetch_rows<W, Each>(a, m0);
  wait_for_previous();
  if (m0 >= a.m) return;
  const W* weight[Each];
#pragma unroll
  for (int e = 0; e < Each; e++) {
    weight[e] = static_cast<const W*>(a.weight) + min(m0 + e, a.m - 1) * a.weight_stride;
  }
  float acc[Each][R] = {};
#pragma unroll(R == 1 && Each == 1 ? 4 : 2)
  for (int64_t k = threadIdx.x % 32 * V; k < a.depth; k += 32 * V) {
    Vector<W, V> packed[Each];
#pragma unroll
    for (int e = 0; e < Each; e++) packed[e] = load_weights<W, V>(weight[e] + k);
    float w[Each][V];
#pragma unroll
    for (int e = 0; e < Each; e++) {
#pragma unroll
      for (int i = 0; i < V; i++) w[e][i] = to_float(packed[e].v[i]);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      float x[V];
      load_x<X, V>(x, static_cast<const X*>(a.x) + min(part.r0 + r, a.rows - 1) * a.x_stride + k);
#pragma unroll
      for (int e = 0; e < Each; e++) {
#pragma unroll
        for (int i = 0; i < V; i++) acc[e][r] = fmaf(w[e][i], x[i], acc[e][r]);
      }
    }
  }
  finish<R, Each>(a, part.r0, m0, acc);
}

// The same element by element, for rows that are not aligned.
template <class W, class X>
__global__ void __launch_bounds__(kWarps * 32) odd_rows_kernel(const Args a) {
  constexpr int R = kRowTile;
  const Part<R> part(a);
  const int64_t m0 = part.first * kWarps + threadIdx.x / 32;
  if (m0 >= a.m) return;
  const W* weight = static_cast<const W*>(a.weight) + m0 * a.weight_stride;
  float acc[1][R] = {};
  for (int64_t k = threadIdx.x % 32; k < a.depth; k += 32) {
    const float w = to_float(weight[k]);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const X* x = static_cast<const X*>(a.x) + min(part.r0 + r, a.rows - 1) * a.x_stride;
      acc[0][r] = fmaf(w, to_float(x[k]), acc[0][r]);
    }
  }
  finish<R, 1>(a, part.r0, m0, acc);
}

bool aligned(const void* p, int64_t stride, int64_t size, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0 && stride * size % bytes == 0;
}

unsigned blocks(const Args& a, int each) {
  const int64_t of = int64_t(kWarps) * each, tiles = (a.rows + kRowTile - 1) / kRowTile;
  return unsigned((a.m + of - 1) / of * tiles);
}

template <class W, class X, int R>
Status start_stream(const Args& a, const Props& props, cudaStream_t stream) {
  const bool many = a.m >= int64_t(props.sm_count) * kWarps * 3;
  return start_early(many ? rows_kernel<W, X, R, 4> : rows_kernel<W, X, R, 1>, blocks(a, many ? 4 : 1), kWarps * 32, 0,
                     props, stream, a);
}

template <class W, class X>
Status start_rows(const Args& a, const Props& props, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(W);
  if (a.depth % V != 0 || !aligned(a.weight, a.weight_stride, sizeof(W), 16) ||
      !aligned(a.x, a.x_stride, sizeof(X), std::min<int64_t>(V * sizeof(X), 16))) {
    odd_rows_kernel<W, X><<<blocks(a, 1), kWarps * 32, 0, stream>>>(a);
  } else if (a.rows == 1) {
    return start_stream<W, X, 1>(a, props, stream);
  } else if (a.rows == 2) {
    return start_stream<W, X, 2>(a, props, stream);
  } else if (a.rows <= 4) {
    return start_stream<W, X, 4>(a, props, stream);
  } else {
    return start_stream<W, X, kRowTile>(a, props, stream);
  }
  return {};
}

template <class W>
Status start_weight(const Args& a, bool bf16_x, const Props& props, cudaStream_t stream) {
  return bf16_x ? start_rows<W, bf16>(a, props, stream) : start_rows<W, float>(a, props, stream);
}

}  // namespace

Status linear_rows(const Node& node, const Props& props, cudaStream_t stream) {
  const Tensor& x = node.in(at::linear::in::x);
  const Tensor& weight = node.in(at::linear::in::weight);
  if (x.rows() == 0 || weight.rows() == 0) return {};
  const Args a{x.data,   weight.data,   x.row_stride,  weight.row_stride,
               x.rows(), weight.cols(), weight.rows(), linear_epilogue(node)};
  const bool bf16_x = x.dtype == DType::bf16;
  if (weight.dtype == DType::i8) {
    MB_TRY(start_weight<int8_t>(a, bf16_x, props, stream));
  } else if (weight.dtype == DType::bf16) {
    MB_TRY(start_weight<bf16>(a, bf16_x, props, stream));
  } else {
    MB_TRY(start_weight<float>(a, bf16_x, props, stream));
  }
  MB_CUDA_LAUNCHED("linear_rows");
  return {};
}

}  // namespace mb::cuda
