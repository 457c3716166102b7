// Gradient of attention of many steps with all operands but lse in bf16, on tensor cores (Dao 2023): a block has 64
// queries of a head, or 64 keys, and walks over the tiles of keys that they see, or of queries that see them, the next
// of which is on its way. Weights are computed again from lse; they and the gradients of scores are rounded to bf16,
// which is what the products with tiles take; sums are f32, each made by one thread in one order.
//
// For each pair of a query and a key it sees 6 P operations find the gradient of the query and 8 P those of the key and
// its value.
#include "attention_mma.cuh"
#include "attention_mma.h"
#include "check.h"

namespace mb::cuda {
namespace {

namespace in = at::attention_grad::in;
namespace out = at::attention_grad::out;

struct Args {
  AttentionSizes size;
  const bf16 *q, *k, *v, *dy;
  const float *lse, *outputs;  // (B*T,H): of the softmax; dy . y
  bf16 *dq, *dk, *dv;
  int64_t q_stride, k_stride, v_stride, dy_stride, lse_stride, dq_stride, dk_stride, dv_stride;
};

constexpr int tile_rows(int P) { return P <= 64 ? 64 : 32; }

// Own rows, then tiles of two kinds, each twice.
template <int P>
struct Room {
  bf16 own[2][kMmaRows * mma_pitch(P)];
  bf16 tiles[2][2][tile_rows(P) * mma_pitch(P)];  // [stage][kind]
  float lse[2][tile_rows(P)], outputs[2][tile_rows(P)];
};

// first, second += the own rows times the stage's tile, of either kind.
template <int P>
__device__ __forceinline__ void multiply_both(const Room<P>& room, int stage, float (&first)[tile_rows(P) / 8][4],
                                              float (&second)[tile_rows(P) / 8][4]) {
#pragma unroll
  for (int i = 0; i < P / 16; i++) {
    uint32_t own[4];
    load_own<P>(own, room.own[0], i);
    multiply_tile<P, tile_rows(P)>(first, own, room.tiles[stage][0], i);
    load_own<P>(own, room.own[1], i);
    multiply_tile<P, tile_rows(P)>(second, own, room.tiles[stage][1], i);
  }
}

template <int P>
__global__ void __launch_bounds__(kMmaThreads) query_gradient(const Args a) {
  constexpr int kRows = tile_rows(P);
  extern __shared__ __align__(16) char shared[];
  Room<P>& room = *reinterpret_cast<Room<P>*>(shared);
  const AttentionSizes& z = a.size;
  const int h = blockIdx.y % z.H, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Blocks that see the most keys go first.
  const int64_t b = blockIdx.y / z.H, t0 = int64_t{gridDim.x - 1 - blockIdx.x} * kMmaRows;
  const int64_t n = min(int64_t{kMmaRows}, z.T - t0), first = z.S - z.T, end = first + t0 + n;
  const bf16* k = a.k + b * z.S * a.k_stride + z.key_column(h);
  const bf16* v = a.v + b * z.S * a.v_stride + z.key_column(h);
  const auto fetch = [&](int stage, int64_t s0) {
    fetch_rows<P, kRows>(room.tiles[stage][0], k, a.k_stride, s0, end);
    fetch_rows<P, kRows>(room.tiles[stage][1], v, a.v_stride, s0, end);
    commit_copies();
  };
  fetch_rows<P, kMmaRows>(room.own[0], a.q + (b * z.T + t0) * a.q_stride + h * P, a.q_stride, 0, n);
  fetch_rows<P, kMmaRows>(room.own[1], a.dy + (b * z.T + t0) * a.dy_stride + h * P, a.dy_stride, 0, n);
  fetch(0, 0);

  // Of the rows lane / 4 and lane / 4 + 8 of the warp.
  const int64_t last = first + t0 + warp * 16 + lane / 4;  // the last key of the former; the latter sees 8 more
  float lse[2], outputs[2], dq[P / 8][4] = {};
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t row = b * z.T + min(t0 + warp * 16 + lane / 4 + r * 8, z.T - 1);
    lse[r] = kLog2e * a.lse[row * a.lse_stride + h];
    outputs[r] = a.outputs[row * z.H + h];
  }
  for (int64_t s0 = 0; s0 < end; s0 += kRows) {
    const int stage = static_cast<int>(s0 / kRows % 2);
    __syncthreads();  // the other stage has been read
    fetch(1 - stage, s0 + kRows);
    wait_for_groups<1>();
    __syncthreads();
    float score[kRows / 8][4] = {}, slope[kRows / 8][4] = {};
    multiply_both<P>(room, stage, score, slope);
#pragma unroll
    for (int s = 0; s < kRows / 8; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool sees = s0 + s * 8 + lane % 4 * 2 + i % 2 <= last + i / 2 * 8;
        const float p = sees ? exp2_fast(fmaf(score[s][i], z.scale, -lse[i / 2])) : 0.0f;
        slope[s][i] = p * (slope[s][i] - outputs[i / 2]);
      }
    }
    add_tile<P, kRows>(dq, slope, room.tiles[stage][0]);
  }
  wait_for_copies();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t t = t0 + warp * 16 + lane / 4 + r * 8;
    if (t < t0 + n) store_sums<P>(a.dq + (b * z.T + t) * a.dq_stride + h * P, dq, r, z.scale / kLog2e);
  }
}

template <int P>
__global__ void __launch_bounds__(kMmaThreads) key_gradient(const Args a) {
  constexpr int kRows = tile_rows(P);
  extern __shared__ __align__(16) char shared[];
  Room<P>& room = *reinterpret_cast<Room<P>*>(shared);
  const AttentionSizes& z = a.size;
  const int j = blockIdx.y % z.J, group = z.H / z.J, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t b = blockIdx.y / z.J, s0 = int64_t{blockIdx.x} * kMmaRows, n = min(int64_t{kMmaRows}, z.S - s0);
  // Tiles of queries, from the first that sees a key of the block, of one query head after the other.
  const int64_t first = z.S - z.T, begin = max(int64_t{0}, s0 - first) / kRows * kRows;
  const int tiles = static_cast<int>((z.T - begin + kRows - 1) / kRows), turns = group * tiles;
  const auto head_of = [&](int turn) { return j * group + turn / tiles; };
  const auto first_of = [&](int turn) { return begin + int64_t{turn % tiles} * kRows; };
  const auto fetch = [&](int stage, int turn) {
    if (turn < turns) {
      const int h = head_of(turn);
      const int64_t t0 = first_of(turn);
      fetch_rows<P, kRows>(room.tiles[stage][0], a.q + b * z.T * a.q_stride + h * P, a.q_stride, t0, z.T);
      fetch_rows<P, kRows>(room.tiles[stage][1], a.dy + b * z.T * a.dy_stride + h * P, a.dy_stride, t0, z.T);
      if (threadIdx.x < kRows) {
        const int64_t row = b * z.T + min(t0 + threadIdx.x, z.T - 1);
        copy_async<4>(&room.lse[stage][threadIdx.x], a.lse + row * a.lse_stride + h);
        copy_async<4>(&room.outputs[stage][threadIdx.x], a.outputs + row * z.H + h);
      }
    }
    commit_copies();
  };
  fetch_rows<P, kMmaRows>(room.own[0], a.k + (b * z.S + s0) * a.k_stride + j * P, a.k_stride, 0, n);
  fetch_rows<P, kMmaRows>(room.own[1], a.v + (b * z.S + s0) * a.v_stride + j * P, a.v_stride, 0, n);
  fetch(0, 0);

  const int64_t key = s0 + warp * 16 + lane / 4;  // of the row lane / 4 of the warp; the other is 8 further
  float dk[P / 8][4] = {}, dv[P / 8][4] = {};
  for (int turn = 0; turn < turns; turn++) {
    const int stage = turn % 2;
    const int64_t t0 = first_of(turn);
    __syncthreads();  // the other stage has been read
    fetch(1 - stage, turn + 1);
    wait_for_groups<1>();
    __syncthreads();
    float weight[kRows / 8][4] = {}, slope[kRows / 8][4] = {};
    multiply_both<P>(room, stage, weight, slope);
#pragma unroll
    for (int s = 0; s < kRows / 8; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int c = s * 8 + lane % 4 * 2 + i % 2;
        const bool seen = t0 + c < z.T && key + i / 2 * 8 <= first + t0 + c;
        const float p = seen ? exp2_fast(fmaf(weight[s][i], z.scale, -kLog2e * room.lse[stage][c])) : 0.0f;
        weight[s][i] = p;
        slope[s][i] = p * (slope[s][i] - room.outputs[stage][c]);
      }
    }
    add_tile<P, kRows>(dk, slope, room.tiles[stage][0]);
    add_tile<P, kRows>(dv, weight, room.tiles[stage][1]);
  }
  wait_for_copies();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t s = key + r * 8;
    if (s >= s0 + n) continue;
    store_sums<P>(a.dk + (b * z.S + s) * a.dk_stride + j * P, dk, r, z.scale / kLog2e);
    store_sums<P>(a.dv + (b * z.S + s) * a.dv_stride + j * P, dv, r, 1.0f);
  }
}

template <int P>
Status launch_width(const Args& a, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Room<P>);
  const AttentionSizes& z = a.size;
  MB_CUDA(cudaFuncSetAttribute(query_gradient<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  MB_CUDA(cudaFuncSetAttribute(key_gradient<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 queries(static_cast<unsigned>(ceil_div(z.T, kMmaRows)), static_cast<unsigned>(z.B * z.H));
  query_gradient<P><<<queries, kMmaThreads, kBytes, stream>>>(a);
  MB_CUDA_LAUNCHED("attention_grad");
  const dim3 keys(static_cast<unsigned>(ceil_div(z.S, kMmaRows)), static_cast<unsigned>(z.B * z.J));
  key_gradient<P><<<keys, kMmaThreads, kBytes, stream>>>(a);
  MB_CUDA_LAUNCHED("attention_grad");
  return {};
}

}  // namespace

bool takes_attention_grad_mma(const Node& node, int P, const Props& props) {
  for (const Tensor* t : {&node.in(in::dy), &node.in(in::q), &node.in(in::k), &node.in(in::v), &node.out(out::dq),
                          &node.out(out::dk), &node.out(out::dv)}) {
    if (t->dtype != DType::bf16 || !rows_aligned(*t, 16)) return false;
  }
  return (P == 64 || P == 128) && static_cast<int>(sizeof(Room<128>)) <= props.max_shared_per_block;
}

Status launch_attention_grad_mma(const Node& node, const AttentionSizes& size, const float* outputs,
                                 cudaStream_t stream) {
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &v = node.in(in::v), &dy = node.in(in::dy),
               &lse = node.in(in::lse), &dq = node.out(out::dq), &dk = node.out(out::dk), &dv = node.out(out::dv);
  const Args a{size,         q.ptr<bf16>(),  k.ptr<bf16>(),  v.ptr<bf16>(),  dy.ptr<bf16>(), lse.ptr<float>(),
               outputs,      dq.ptr<bf16>(), dk.ptr<bf16>(), dv.ptr<bf16>(), q.row_stride,   k.row_stride,
               v.row_stride, dy.row_stride,  lse.row_stride, dq.row_stride,  dk.row_stride,  dv.row_stride};
  return a.size.P == 64 ? launch_width<64>(a, stream) : launch_width<128>(a, stream);
}

}  // namespace mb::cuda
