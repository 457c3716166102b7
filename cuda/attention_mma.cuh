// What attention and its gradient share on tensor cores: a block's 64 rows of bf16, 16 a warp, meet tiles of other rows
// in shared memory.
#pragma once
#include "attention.cuh"
#include "copy.cuh"
#include "mma.cuh"

namespace mb::cuda {

constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * 32;
constexpr int kMmaRows = 16 * kMmaWarps;  // of a block

// Elements from row to row of P columns in shared memory, so that ldmatrix meets every bank.
constexpr int mma_pitch(int P) { return P + 8; }

// Rows [first, first + kRows) of P columns to shared memory; rows from `end` on are 0.
template <int P, int kRows>
__device__ __forceinline__ void fetch_rows(bf16* to, const bf16* from, int64_t stride, int64_t first, int64_t end) {
  constexpr int kVectors = P / 8;
  static_assert(kRows * kVectors % kMmaThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kVectors / kMmaThreads; i++) {
    const int at = i * kMmaThreads + static_cast<int>(threadIdx.x), r = at / kVectors, d = at % kVectors * 8;
    const bool there = first + r < end;
    copy_async<16>(to + r * mma_pitch(P) + d, from + (there ? first + r : 0) * stride + d, there ? 16 : 0);
  }
}

// The warp's 16 rows at columns [16 i, 16 i + 16), as the first factor of a product.
template <int P>
__device__ __forceinline__ void load_own(uint32_t (&own)[4], const bf16* rows, int i) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  load_matrices(own, rows + (warp * 16 + lane % 16) * mma_pitch(P) + i * 16 + lane / 16 * 8);
}

// product(16, kRows) += own(16, 16) tile(kRows, P)ᵀ at columns [16 i, 16 i + 16).
template <int P, int kRows>
__device__ __forceinline__ void multiply_tile(float (&product)[kRows / 8][4], const uint32_t (&own)[4],
                                              const bf16* tile, int i) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < kRows; s += 16) {
    uint32_t m[4];
    load_matrices(m, tile + (s + lane / 16 * 8 + lane % 8) * mma_pitch(P) + i * 16 + lane / 8 % 2 * 8);
    mma(product[s / 8], own, m[0], m[1]);
    mma(product[s / 8 + 1], own, m[2], m[3]);
  }
}

// sum(16, P) += weights(16, kRows), rounded to bf16, times tile(kRows, P).
template <int P, int kRows>
__device__ __forceinline__ void add_tile(float (&sum)[P / 8][4], const float (&weights)[kRows / 8][4],
                                         const bf16* tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < kRows / 16; s++) {
    // The weights lie as the first factor has to.
    const float(&low)[4] = weights[2 * s], (&high)[4] = weights[2 * s + 1];
    const uint32_t w[4] = {pair(low[0], low[1]), pair(low[2], low[3]), pair(high[0], high[1]), pair(high[2], high[3])};
#pragma unroll
    for (int d = 0; d < P; d += 16) {
      uint32_t m[4];
      load_matrices_turned(m, tile + (s * 16 + lane % 16) * mma_pitch(P) + d + lane / 16 * 8);
      mma(sum[d / 8], w, m[0], m[1]);
      mma(sum[d / 8 + 1], w, m[2], m[3]);
    }
  }
}

// Row `row` (0 or 1: lane / 4, or 8 further) of the warp's sums, times factor.
template <int P>
__device__ __forceinline__ void store_sums(bf16* to, const float (&sum)[P / 8][4], int row, float factor) {
#pragma unroll
  for (int d = 0; d < P / 8; d++) {
    *reinterpret_cast<uint32_t*>(to + d * 8 + threadIdx.x % 4 * 2) =
        pair(sum[d][2 * row] * factor, sum[d][2 * row + 1] * factor);
  }
}

}  // namespace mb::cuda
