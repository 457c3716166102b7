// Gradient of attention; equations in native/ops.def. Weights are computed again from lse by tiles (Dao 2023).
//
// Three kernels, so that every number is summed by one thread in one order: o = dy . y of each query; dq, a block
// having 32 queries of a head; dk and dv, a block having 32 keys and walking over the query heads that read them. Sums
// are float32 fused multiply-adds whatever the operands are. In bf16 tensor cores find dq, dk and dv
// (attention_grad_mma.cu).
#include "attention.cuh"
#include "attention_mma.h"
#include "check.h"

namespace mb::cuda {
namespace {

namespace in = at::attention_grad::in;
namespace out = at::attention_grad::out;

constexpr int kThreads = kAttentionThreads, kWarps = kThreads / 32;

struct Args {
  AttentionSizes size;
  ScanRows dy, q, k, v, y, lse, dq, dk, dv;
  float* outputs;  // o(B*T,H)
};

// A warp a head of a row.
__global__ void __launch_bounds__(kThreads) dot_outputs(const Args a) {
  const AttentionSizes& z = a.size;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (i >= z.B * z.T * z.H) return;  // a whole warp
  const int64_t row = i / z.H;
  const int column = static_cast<int>(i % z.H) * z.P;
  float sum = 0;
  for (int d = threadIdx.x % 32; d < z.P; d += 32) {
    sum = fmaf(a.dy.load(row, column + d), a.y.load(row, column + d), sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) a.outputs[i] = sum;
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads) query_gradient(const Args a) {
  extern __shared__ float shared[];
  const AttentionSizes& z = a.size;
  const int stride = tile_stride(z.P), words = kTile * stride;
  float *queries = shared, *dys = queries + words, *keys = dys + words, *values = keys + words;
  float* slopes = values + words;
  const int64_t b = blockIdx.y / z.H, t0 = int64_t{blockIdx.x} * kTile, n = min(int64_t{kTile}, z.T - t0);
  const int h = blockIdx.y % z.H, column = z.key_column(h), r = threadIdx.x / kShare, c = threadIdx.x % kShare;
  const int64_t row = b * z.T + min(t0 + r, z.T - 1), last = z.S - z.T + t0 + r, end = z.S - z.T + t0 + n;
  const float lse = kLog2e * a.lse.load(row, h), o = a.outputs[row * z.H + h];
  load_tile(a.q, b * z.T + t0, n, h * z.P, z.P, queries);
  load_tile(a.dy, b * z.T + t0, n, h * z.P, z.P, dys);
  float dq[kColumns] = {};
  for (int64_t s0 = 0; s0 < end; s0 += kTile) {
    const int64_t some = min(int64_t{kTile}, end - s0);
    load_tile(a.k, b * z.S + s0, some, column, z.P, keys);
    load_tile(a.v, b * z.S + s0, some, column, z.P, values);
    __syncthreads();
    float score[kScores], slope[kScores];
    multiply_rows(queries + r * stride, keys, z.P, score);
    multiply_rows(dys + r * stride, values, z.P, slope);
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const float p = s0 + c + kShare * i <= last ? exp2f(score[i] * z.scale - lse) : 0.0f;
      slopes[r * tile_stride(kTile) + c + kShare * i] = p * (slope[i] - o);
    }
    __syncthreads();
    add_rows(slopes + r * tile_stride(kTile), keys, some, z.P, dq);
    __syncthreads();
  }
  if (r < n) store_row(a.dq, row, h * z.P, z.P, z.scale / kLog2e, dq);
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads) key_gradient(const Args a) {
  extern __shared__ float shared[];
  const AttentionSizes& z = a.size;
  const int stride = tile_stride(z.P), words = kTile * stride;
  float *keys = shared, *values = keys + words, *queries = values + words, *dys = queries + words;
  float *weights = dys + words, *slopes = weights + kTile * tile_stride(kTile);
  const int64_t b = blockIdx.y / z.J, s0 = int64_t{blockIdx.x} * kTile, n = min(int64_t{kTile}, z.S - s0);
  const int j = blockIdx.y % z.J, group = z.H / z.J, r = threadIdx.x / kShare, c = threadIdx.x % kShare;
  const int64_t first = z.S - z.T;
  load_tile(a.k, b * z.S + s0, n, j * z.P, z.P, keys);
  load_tile(a.v, b * z.S + s0, n, j * z.P, z.P, values);
  float dk[kColumns] = {}, dv[kColumns] = {};
  for (int h = j * group; h < (j + 1) * group; h++) {
    for (int64_t t0 = max(int64_t{0}, s0 - first); t0 < z.T; t0 += kTile) {
      const int64_t some = min(int64_t{kTile}, z.T - t0);
      load_tile(a.q, b * z.T + t0, some, h * z.P, z.P, queries);
      load_tile(a.dy, b * z.T + t0, some, h * z.P, z.P, dys);
      __syncthreads();
      float score[kScores], slope[kScores];
      multiply_rows(keys + r * stride, queries, z.P, score);
      multiply_rows(values + r * stride, dys, z.P, slope);
#pragma unroll
      for (int i = 0; i < kScores; i++) {
        const int64_t t = t0 + c + kShare * i, row = b * z.T + min(t, z.T - 1);
        const bool seen = t < z.T && s0 + r <= first + t;
        const float p = seen ? exp2f(score[i] * z.scale - kLog2e * a.lse.load(row, h)) : 0.0f;
        weights[r * tile_stride(kTile) + c + kShare * i] = p;
        slopes[r * tile_stride(kTile) + c + kShare * i] = p * (slope[i] - a.outputs[row * z.H + h]);
      }
      __syncthreads();
      add_rows(slopes + r * tile_stride(kTile), queries, some, z.P, dk);
      add_rows(weights + r * tile_stride(kTile), dys, some, z.P, dv);
      __syncthreads();
    }
  }
  if (r >= n) return;
  store_row(a.dk, b * z.S + s0 + r, j * z.P, z.P, z.scale / kLog2e, dk);
  store_row(a.dv, b * z.S + s0 + r, j * z.P, z.P, 1.0f, dv);
}

AttentionSizes sizes_of(const Node& node) {
  return {node.in(in::q), node.in(in::k), node.attr(at::attention_grad::attr::heads)};
}

int64_t shared_bytes(const AttentionSizes& z) { return 4 * tile_bytes(z.P) + 2 * weights_bytes(); }

int64_t grad_scratch(const Node& node, const Props&) {
  const AttentionSizes z = sizes_of(node);
  return z.B * z.T * z.H * 4;
}

Status run_attention_grad(const Node& node, const Launch& launch) {
  const AttentionSizes z = sizes_of(node);
  if (node.in(in::q).elems() == 0) return {};
  const Args a{z,
               ScanRows(node.in(in::dy)),
               ScanRows(node.in(in::q)),
               ScanRows(node.in(in::k)),
               ScanRows(node.in(in::v)),
               ScanRows(node.in(in::y)),
               ScanRows(node.in(in::lse)),
               ScanRows(node.out(out::dq)),
               ScanRows(node.out(out::dk)),
               ScanRows(node.out(out::dv)),
               reinterpret_cast<float*>(launch.scratch)};
  dot_outputs<<<static_cast<unsigned>(ceil_div(z.B * z.T * z.H, kWarps)), kThreads, 0, launch.stream>>>(a);
  MB_CUDA_LAUNCHED("attention_grad");
  if (takes_attention_grad_mma(node, z.P, *launch.props)) {
    return launch_attention_grad_mma(node, z, a.outputs, launch.stream);
  }
  const int bytes = static_cast<int>(shared_bytes(z));
  return with_columns(z.P, [&](auto columns) -> Status {
    const auto of_queries = query_gradient<columns()>;
    const auto of_keys = key_gradient<columns()>;
    MB_CUDA(cudaFuncSetAttribute(of_queries, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    MB_CUDA(cudaFuncSetAttribute(of_keys, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const dim3 queries(static_cast<unsigned>(ceil_div(z.T, kTile)), static_cast<unsigned>(z.B * z.H));
    of_queries<<<queries, kThreads, bytes, launch.stream>>>(a);
    MB_CUDA_LAUNCHED("attention_grad");
    const dim3 keys(static_cast<unsigned>(ceil_div(z.S, kTile)), static_cast<unsigned>(z.B * z.J));
    of_keys<<<keys, kThreads, bytes, launch.stream>>>(a);
    MB_CUDA_LAUNCHED("attention_grad");
    return {};
  });
}

const char* why_not_attention_grad(const Node& node, const Props& props) {
  for (const Tensor* t : {&node.in(in::dy), &node.in(in::q), &node.in(in::k), &node.in(in::v), &node.in(in::y),
                          &node.out(out::dq), &node.out(out::dk), &node.out(out::dv)}) {
    if (!is_activation(*t)) return "cuda: attention_grad takes activations and their gradients in f32 or bf16";
  }
  if (node.in(in::lse).dtype != DType::f32) return "cuda: attention_grad takes lse in f32";
  const AttentionSizes z = sizes_of(node);
  if (const char* why = attention_why_not(z)) return why;
  return shared_bytes(z) > props.max_shared_per_block
             ? "cuda: attention_grad needs more shared memory for heads this wide than the GPU has"
             : nullptr;
}

}  // namespace

const Kernel attention_grad_kernel = {run_attention_grad, grad_scratch, why_not_attention_grad};

}  // namespace mb::cuda
