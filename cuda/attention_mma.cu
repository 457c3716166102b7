// Causal attention of many steps with q, k, v and y in bf16, on tensor cores (Dao 2023): a block has 64 queries of a
// head, a warp 16 of them, and walks over the keys they see in tiles of 64, the next of which is on its way. Scores and
// sums are f32; weights are rounded to bf16, which is what the second product takes.
//
// 4 P operations for each pair of a query and a key it sees, so T (S - T / 2) H 4 P in all.
#include "attention_mma.cuh"
#include "attention_mma.h"
#include "check.h"

namespace mb::cuda {
namespace {

namespace in = at::attention::in;
namespace out = at::attention::out;

constexpr int kQueries = kMmaRows, kKeys = 64;  // of a block, and of a tile

struct Args {
  AttentionSizes size;
  const bf16 *q, *k, *v;
  bf16* y;
  float* lse;             // or null
  const int32_t* length;  // or null
  int64_t q_stride, k_stride, v_stride, y_stride, lse_stride;
};

template <int P>
constexpr int shared_bytes() {
  return 4 * kKeys * mma_pitch(P) * 2;  // two tiles of keys and of values each; the queries come through the last one
}

template <int P>
__global__ void __launch_bounds__(kMmaThreads) attend(const Args a) {
  constexpr int kTile = kKeys * mma_pitch(P), kColumns = P / 8;
  extern __shared__ __align__(16) bf16 shared[];
  bf16 *keys = shared, *values = shared + 2 * kTile;
  const AttentionSizes& z = a.size;
  const int h = blockIdx.y % z.H, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Blocks that see the most keys go first.
  const int64_t b = blockIdx.y / z.H, t0 = int64_t{gridDim.x - 1 - blockIdx.x} * kQueries;
  const int64_t n = min(int64_t{kQueries}, z.T - t0);
  const int64_t first = z.first_key(a.length, b);
  const bool fits = first >= 0;
  const int64_t end = fits ? first + t0 + n : 0;  // of the keys that any query of the block sees
  const bf16* k = a.k + b * z.S * a.k_stride + z.key_column(h);
  const bf16* v = a.v + b * z.S * a.v_stride + z.key_column(h);

  fetch_rows<P, kKeys>(values + kTile, a.q + (b * z.T + t0) * a.q_stride + h * P, a.q_stride, 0, n);
  fetch_rows<P, kKeys>(keys, k, a.k_stride, 0, end);
  fetch_rows<P, kKeys>(values, v, a.v_stride, 0, end);
  commit_copies();
  wait_for_copies();
  __syncthreads();
  uint32_t q[P / 16][4];
#pragma unroll
  for (int i = 0; i < P / 16; i++) load_own<P>(q[i], values + kTile, i);

  // Of the rows lane / 4 and lane / 4 + 8 of the warp.
  const int64_t last = first + t0 + warp * 16 + lane / 4;  // the last key of the former; the latter sees 8 more
  float top[2] = {kNoScore, kNoScore}, sum[2] = {}, o[kColumns][4] = {};
  for (int64_t s0 = 0; s0 < end; s0 += kKeys) {
    const int stage = static_cast<int>(s0 / kKeys % 2);
    __syncthreads();  // the other stage, and at first the queries, have been read
    fetch_rows<P, kKeys>(keys + (1 - stage) * kTile, k, a.k_stride, s0 + kKeys, end);
    fetch_rows<P, kKeys>(values + (1 - stage) * kTile, v, a.v_stride, s0 + kKeys, end);
    commit_copies();
    wait_for_groups<1>();
    __syncthreads();
    const bf16 *own_keys = keys + stage * kTile, *own_values = values + stage * kTile;

    float score[kKeys / 8][4] = {};
#pragma unroll
    for (int i = 0; i < P / 16; i++) multiply_tile<P, kKeys>(score, q[i], own_keys, i);
    // Masks only where a key may lie behind the warp's first query.
    const bool whole = s0 + kKeys <= first + t0 + warp * 16 + 1;
    float best[2] = {top[0], top[1]};
#pragma unroll
    for (int s = 0; s < kKeys / 8; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool sees = whole || s0 + s * 8 + lane % 4 * 2 + i % 2 <= last + i / 2 * 8;
        score[s][i] = sees ? score[s][i] * z.scale : kNoScore;
        best[i / 2] = fmaxf(best[i / 2], score[s][i]);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      best[r] = warp_reduce<4>(best[r], Max{});
      shrink[r] = exp2_fast(top[r] - best[r]);
      top[r] = best[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int s = 0; s < kKeys / 8; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[s][i] = exp2_fast(score[s][i] - top[i / 2]);
        sum[i / 2] += score[s][i];
      }
    }
#pragma unroll
    for (int d = 0; d < kColumns; d++) {
#pragma unroll
      for (int i = 0; i < 4; i++) o[d][i] *= shrink[i / 2];
    }
    add_tile<P, kKeys>(o, score, own_values);
  }
  wait_for_copies();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float total = warp_sum<4>(sum[r]);
    const int64_t t = t0 + warp * 16 + lane / 4 + r * 8, row = b * z.T + t;
    if (t >= t0 + n) continue;
    const float factor = fits ? 1.0f / total : nanf("");
    store_sums<P>(a.y + row * a.y_stride + h * P, o, r, factor);
    if (a.lse && lane % 4 == 0) a.lse[row * a.lse_stride + h] = fits ? kLn2 * (top[r] + log2f(total)) : nanf("");
  }
}

template <int P>
Status launch_width(const Args& a, cudaStream_t stream) {
  MB_CUDA(cudaFuncSetAttribute(attend<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<P>()));
  const dim3 grid(static_cast<unsigned>(ceil_div(a.size.T, kQueries)), static_cast<unsigned>(a.size.B * a.size.H));
  attend<P><<<grid, kMmaThreads, shared_bytes<P>(), stream>>>(a);
  MB_CUDA_LAUNCHED("attention");
  return {};
}

}  // namespace

bool takes_attention_mma(const Node& node) {
  for (const Tensor* t : {&node.in(in::q), &node.in(in::k), &node.in(in::v), &node.out(out::y)}) {
    if (t->dtype != DType::bf16 || !rows_aligned(*t, 16)) return false;
  }
  const int P = AttentionSizes(node).P;
  return P == 64 || P == 128;
}

Status launch_attention_mma(const Node& node, const Launch& launch) {
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &v = node.in(in::v), &y = node.out(out::y),
               &lse = node.out(out::lse);
  const Args a{AttentionSizes(node),
               q.ptr<bf16>(),
               k.ptr<bf16>(),
               v.ptr<bf16>(),
               y.ptr<bf16>(),
               lse.ptr<float>(),
               node.in(in::length).ptr<int32_t>(),
               q.row_stride,
               k.row_stride,
               v.row_stride,
               y.row_stride,
               lse.row_stride};
  return a.size.P == 64 ? launch_width<64>(a, launch.stream) : launch_width<128>(a, launch.stream);
}

}  // namespace mb::cuda
