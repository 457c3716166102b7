// f32 products in f32 arithmetic throughout (no tf32): tiles of 128 x 128 or 64 x 64, 16 deep, double-buffered in
// shared memory with k outermost, so that both factors are read as float4. Each of 256 threads keeps 8 x 8 (4 x 4)
// sums.
#include "check.h"
#include "gemm_epilogue.cuh"
#include "gemm_kernels.h"

namespace mb::cuda {
namespace {

constexpr int kDeep = 16;
constexpr int kThreads = 256;
// Sums longer than this many terms are added up in pieces of it: the rounding of one running sum grows with its length.
constexpr int kChain = 1024;

// Wide elements of i by kDeep of k, on their way from memory through registers to shared memory [k][i].
template <int Wide, bool Across>
struct Tile {
  static constexpr int kRow = Wide + 4;
  static constexpr int kLoads = Wide * kDeep / 4 / kThreads;
  float4 held[kLoads];

  static __device__ __forceinline__ int outer(int c) {
    return (c * kThreads + int(threadIdx.x)) / (Across ? Wide / 4 : kDeep / 4);
  }
  static __device__ __forceinline__ int inner(int c) {
    return (c * kThreads + int(threadIdx.x)) % (Across ? Wide / 4 : kDeep / 4) * 4;
  }

  __device__ __forceinline__ void fetch(const Factor& f, int64_t i0, int64_t n, int64_t k0, int64_t k_end) {
#pragma unroll
    for (int c = 0; c < kLoads; c++) {
      const int64_t row = (Across ? k0 : i0) + outer(c), col = (Across ? i0 : k0) + inner(c);
      const int64_t left = row < (Across ? k_end : n) ? (Across ? n : k_end) - col : 0;
      const float* from = static_cast<const float*>(f.data) + row * f.stride + col;
      float4 v = make_float4(0, 0, 0, 0);
      if (left >= 4) {
        v = *reinterpret_cast<const float4*>(from);
      } else {
        if (left > 0) v.x = from[0];
        if (left > 1) v.y = from[1];
        if (left > 2) v.z = from[2];
      }
      held[c] = v;
    }
  }

  __device__ __forceinline__ void put(float (*tile)[kRow]) const {
#pragma unroll
    for (int c = 0; c < kLoads; c++) {
      if constexpr (Across) {
        *reinterpret_cast<float4*>(&tile[outer(c)][inner(c)]) = held[c];
      } else {
        tile[inner(c)][outer(c)] = held[c].x;
        tile[inner(c) + 1][outer(c)] = held[c].y;
        tile[inner(c) + 2][outer(c)] = held[c].z;
        tile[inner(c) + 3][outer(c)] = held[c].w;
      }
    }
  }
};

// The elements of a thread: groups of 4 neighbours, 64 apart.
template <int Wide>
__device__ __forceinline__ int element(int thread, int n) {
  return n / 4 * 64 + thread * 4 + n % 4;
}

template <int Wide, bool AcrossA, bool AcrossB, bool Long>
__global__ void __launch_bounds__(kThreads, Wide == 128 && Long ? 1 : 2)
    f32_kernel(const Product p, int64_t slice, float* partials, bool paired) {
  constexpr int kEach = Wide / 16;
  using TileA = Tile<Wide, AcrossA>;
  using TileB = Tile<Wide, AcrossB>;
  __shared__ __align__(16) float tile_a[2][kDeep][TileA::kRow];
  __shared__ __align__(16) float tile_b[2][kDeep][TileB::kRow];
  const int64_t i0 = int64_t(blockIdx.x) * Wide, j0 = int64_t(blockIdx.y) * Wide;
  const int64_t k_begin = slice * blockIdx.z, k_end = min(p.depth, k_begin + slice);
  const int steps = int((k_end - k_begin + kDeep - 1) / kDeep);
  const int ti = threadIdx.x / 16, tj = threadIdx.x % 16;
  float acc[kEach][kEach] = {}, total[Long ? kEach : 1][Long ? kEach : 1] = {};
  TileA next_a;
  TileB next_b;
  const auto fetch = [&](int step) {
    const int64_t k = k_begin + int64_t(step) * kDeep;
    next_a.fetch(p.a, i0, p.rows, k, k_end);
    next_b.fetch(p.b, j0, p.cols, k, k_end);
  };
  if (steps > 0) {
    fetch(0);
    next_a.put(tile_a[0]);
    next_b.put(tile_b[0]);
  }
  for (int step = 0; step < steps; step++) {
    __syncthreads();
    const int now = step % 2;
    if (step + 1 < steps) fetch(step + 1);
#pragma unroll
    for (int k = 0; k < kDeep; k++) {
      float a[kEach], b[kEach];
#pragma unroll
      for (int n = 0; n < kEach; n += 4) {
        *reinterpret_cast<float4*>(a + n) = *reinterpret_cast<const float4*>(&tile_a[now][k][element<Wide>(ti, n)]);
        *reinterpret_cast<float4*>(b + n) = *reinterpret_cast<const float4*>(&tile_b[now][k][element<Wide>(tj, n)]);
      }
#pragma unroll
      for (int m = 0; m < kEach; m++) {
#pragma unroll
        for (int n = 0; n < kEach; n++) acc[m][n] = fmaf(a[m], b[n], acc[m][n]);
      }
    }
    if (step + 1 < steps) {
      next_a.put(tile_a[1 - now]);
      next_b.put(tile_b[1 - now]);
    }
    if constexpr (Long) {
      if ((step + 1) % (kChain / kDeep) == 0) {
#pragma unroll
        for (int m = 0; m < kEach; m++) {
#pragma unroll
          for (int n = 0; n < kEach; n++) {
            total[m][n] += acc[m][n];
            acc[m][n] = 0;
          }
        }
      }
    }
  }

  Epilogue e = p.epilogue;
  if (partials) {
    e = {};
    e.c = partials + int64_t(blockIdx.z) * p.rows * p.cols;
    e.stride = p.cols;
  }
#pragma unroll
  for (int m = 0; m < kEach; m++) {
    const int64_t i = i0 + element<Wide>(ti, m);
    if (i >= p.rows) continue;
#pragma unroll
    for (int n = 0; n < kEach; n += 2) {
      const int64_t j = j0 + element<Wide>(tj, n);
      float s0 = acc[m][n], s1 = acc[m][n + 1];
      if constexpr (Long) {
        s0 += total[m][n];
        s1 += total[m][n + 1];
      }
      if (j + 1 < p.cols) {
        epilogue_store2(e, paired, i, j, s0, s1);
      } else if (j < p.cols) {
        epilogue_store(e, i, j, s0);
      }
    }
  }
}

template <int Wide, bool AcrossA, bool AcrossB>
Status run(const Product& p, int splits, float* partials, cudaStream_t stream) {
  const int64_t steps = (p.depth + kDeep - 1) / kDeep;
  const int64_t slice = (steps + splits - 1) / splits * kDeep;
  const dim3 grid(unsigned((p.rows + Wide - 1) / Wide), unsigned((p.cols + Wide - 1) / Wide), unsigned(splits));
  const bool paired = splits > 1 ? p.cols % 2 == 0 : takes_pairs(p.epilogue);
  float* to = splits > 1 ? partials : nullptr;
  if (slice > 2 * kChain) {
    f32_kernel<Wide, AcrossA, AcrossB, true><<<grid, kThreads, 0, stream>>>(p, slice, to, paired);
  } else {
    f32_kernel<Wide, AcrossA, AcrossB, false><<<grid, kThreads, 0, stream>>>(p, slice, to, paired);
  }
  MB_CUDA_LAUNCHED("multiply_f32");
  return {};
}

template <int Wide>
Status run_laid(const Product& p, int splits, float* partials, cudaStream_t stream) {
  return with_layout(p, "multiply_f32", [&](auto across_a, auto across_b) {
    return run<Wide, across_a(), across_b()>(p, splits, partials, stream);
  });
}

}  // namespace

Status multiply_f32(const Product& p, int splits, float* partials, const Props& props, cudaStream_t stream) {
  if (wants_large_tiles(p, props)) return run_laid<128>(p, splits, partials, stream);
  return run_laid<64>(p, splits, partials, stream);
}

}  // namespace mb::cuda
