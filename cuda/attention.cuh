// What attention and its gradient share: the operands of a node, and tiles of rows in shared memory.
#pragma once
#include <cmath>
#include <type_traits>

#include "kernel.h"
#include "reduce.cuh"
#include "scan.cuh"

namespace mb::cuda {

// A block has a tile of 32 rows: its thread has row threadIdx.x / 4, and of what lies along the row every fourth column
// from threadIdx.x % 4 on.
constexpr int kAttentionThreads = 128, kTile = 32, kShare = 4;
constexpr int kScores = kTile / kShare;  // of a thread, when its row meets a tile
constexpr int kMaxHeadWidth = 256;
constexpr float kNoScore = -1e30f;  // below every score, and far from infinity
constexpr float kLn2 = 0.69314718055994531f;

struct AttentionSizes {
  int64_t B, T, S;
  int H, J, P;
  float scale;  // 1 / sqrt(P), times log2(e) so that exponentials are powers of 2
  AttentionSizes(const Tensor& q, const Tensor& k, double heads)
      : B(q.dim(0)), T(q.dim(1)), S(k.dim(1)), H(static_cast<int>(heads)), P(static_cast<int>(q.dim(2)) / H) {
    J = static_cast<int>(k.dim(2)) / P;
    scale = kLog2e / std::sqrt(static_cast<float>(P));
  }
  explicit AttentionSizes(const Node& node)
      : AttentionSizes(node.in(at::attention::in::q), node.in(at::attention::in::k),
                       node.attr(at::attention::attr::heads)) {}
  // The first column of the key head that query head h reads.
  __device__ __forceinline__ int key_column(int h) const { return h / (H / J) * P; }
  // The last key that query 0 sees of a sequence whose cache has `length` keys already, all it has room for if null;
  // -1: the queries' own keys do not fit behind them.
  __device__ __forceinline__ int64_t first_key(const int32_t* length, int64_t b) const {
    const int64_t at = length ? length[b] : S - T;
    return at >= 0 && at + T <= S ? at : -1;
  }
};

// Rows of a tile lie one word further apart than they are long, so that a column meets every bank.
__host__ __device__ constexpr int tile_stride(int P) { return P + 1; }
constexpr int64_t tile_bytes(int P) { return int64_t{kTile} * tile_stride(P) * 4; }
constexpr int64_t weights_bytes() { return int64_t{kTile} * tile_stride(kTile) * 4; }

// to[32][P] <- rows [first, first + n) of P columns from `column` on; rows from n on are 0.
__device__ __forceinline__ void load_tile(const ScanRows& from, int64_t first, int64_t n, int column, int P,
                                          float* to) {
  for (int i = threadIdx.x; i < kTile * P; i += kAttentionThreads) {
    const int r = i / P, d = i % P;
    to[r * tile_stride(P) + d] = r < n ? from.load(first + r, column + d) : 0.0f;
  }
}

// product[i] <- row . tile[threadIdx.x % 4 + 4 i].
__device__ __forceinline__ void multiply_rows(const float* row, const float* tile, int P, float (&product)[kScores]) {
  const float* own = tile + threadIdx.x % kShare * tile_stride(P);
#pragma unroll
  for (int i = 0; i < kScores; i++) product[i] = 0;
  for (int d = 0; d < P; d++) {
    const float x = row[d];
#pragma unroll
    for (int i = 0; i < kScores; i++) product[i] = fmaf(x, own[i * kShare * tile_stride(P) + d], product[i]);
  }
}

// sum[j] += over n rows: weights[row] * tile[row][threadIdx.x % 4 + 4 j].
template <int kColumns>
__device__ __forceinline__ void add_rows(const float* weights, const float* tile, int64_t n, int P,
                                         float (&sum)[kColumns]) {
  const int first = threadIdx.x % kShare;
  for (int row = 0; row < n; row++) {
    const float w = weights[row];
#pragma unroll
    for (int j = 0; j < kColumns; j++) {
      if (first + kShare * j < P) sum[j] = fmaf(w, tile[row * tile_stride(P) + first + kShare * j], sum[j]);
    }
  }
}

template <int kColumns>
__device__ __forceinline__ void store_row(const ScanRows& to, int64_t row, int column, int P, float factor,
                                          const float (&sum)[kColumns]) {
  const int first = threadIdx.x % kShare;
#pragma unroll
  for (int j = 0; j < kColumns; j++) {
    if (first + kShare * j < P) to.store(row, column + first + kShare * j, factor * sum[j]);
  }
}

// Calls fn with the number of columns that a thread has of a head of width P.
template <class Fn>
Status with_columns(int P, Fn fn) {
  if (P <= 64) return fn(std::integral_constant<int, 64 / kShare>{});
  if (P <= 128) return fn(std::integral_constant<int, 128 / kShare>{});
  return fn(std::integral_constant<int, 256 / kShare>{});
}

// Null, or why these sizes cannot be.
inline const char* attention_why_not(const AttentionSizes& a) {
  if (a.P > kMaxHeadWidth) return "cuda: attention takes heads of at most 256 columns";
  return a.B * a.H > 65535 ? "cuda: attention takes at most 65535 heads of all sequences" : nullptr;
}

}  // namespace mb::cuda
