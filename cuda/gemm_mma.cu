// bf16 products with mma.sync m16n8k16, for every tensor core from Ampere on: tiles of 128 x 128 or 64 x 64, 32 deep,
// brought in by cp.async four stages ahead. Rows of a tile are padded by 16 bytes, which keeps ldmatrix free of bank
// conflicts. A factor that lies across is staged as it lies and turned by ldmatrix.trans.
#include "check.h"
#include "copy.cuh"
#include "gemm_epilogue.cuh"
#include "gemm_kernels.h"
#include "mma.cuh"

namespace mb::cuda {
namespace {

constexpr int kDeep = 32;
constexpr int kStages = 4;

// `Wide` elements of i by kDeep of k of one factor in shared memory.
template <int Wide, bool Across, int Threads>
struct Tile {
  static constexpr int kRow = (Across ? Wide : kDeep) + 8;
  static constexpr int kElems = (Across ? kDeep : Wide) * kRow;

  static constexpr int kAcrossRow = (Across ? Wide : kDeep) / 8;  // copies a row
  static constexpr int kCopies = Wide * kDeep / 8 / Threads;      // copies a thread
  static_assert(Wide * kDeep / 8 % Threads == 0 && Threads % kAcrossRow == 0);

  const bf16* from;   // this thread's first copy, at k_begin
  int64_t next_copy;  // elements from one of its copies to the next
  int64_t next_step;
  int to;        // where its first copy lands
  int row, col;  // in the tile
  int inside;    // elements of i that the matrix has from `row` (`col` where across) of the tile on

  __device__ __forceinline__ Tile(const Factor& f, int64_t i0, int64_t n, int64_t k_begin) {
    row = int(threadIdx.x) / kAcrossRow;
    col = int(threadIdx.x) % kAcrossRow * 8;
    to = row * kRow + col;
    const int64_t outer = (Across ? k_begin : i0) + row, inner = (Across ? i0 : k_begin) + col;
    from = static_cast<const bf16*>(f.data) + outer * f.stride + inner;
    next_copy = Threads / kAcrossRow * f.stride;
    next_step = Across ? kDeep * f.stride : kDeep;
    inside = int(min(n - i0 - (Across ? col : row), int64_t(Wide)));
  }

  // The tile of one step; `deep`: elements of k that are left. What lies outside of the matrix is 0.
  __device__ __forceinline__ void fetch(bf16* tile, int step, int64_t deep) const {
#pragma unroll
    for (int c = 0; c < kCopies; c++) {
      constexpr int kRows = Threads / kAcrossRow;
      int left;
      if constexpr (Across) {
        left = row + c * kRows < deep ? inside : 0;
      } else {
        left = c * kRows < inside ? int(min(deep - col, int64_t(8))) : 0;
      }
      left = left < 0 ? 0 : left > 8 ? 8 : left;
      copy_async<16>(tile + to + c * kRows * kRow, from + step * next_step + c * next_copy, left * 2);
    }
  }

  // Four 8 x 8 matrices: i and i + 8 (order_i first) by k and k + 8.
  static __device__ __forceinline__ void load(uint32_t (&r)[4], const bf16* tile, int i, int k, bool i_first) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    const int di = (i_first ? matrix % 2 : matrix / 2) * 8, dk = (i_first ? matrix / 2 : matrix % 2) * 8;
    if constexpr (Across) {
      load_matrices_turned(r, tile + (k + dk + row) * kRow + i + di);
    } else {
      load_matrices(r, tile + (i + di + row) * kRow + k + dk);
    }
  }
};

// A block of WarpsM x WarpsN warps, each 16 * FragM by 8 * FragN.
template <int WarpsM, int WarpsN, int FragM, int FragN, bool AcrossA, bool AcrossB>
__global__ void __launch_bounds__(WarpsM* WarpsN * 32)
    mma_kernel(const Product p, int64_t slice, float* partials, bool paired) {
  constexpr int kThreads = WarpsM * WarpsN * 32, kM = WarpsM * FragM * 16, kN = WarpsN * FragN * 8;
  using TileA = Tile<kM, AcrossA, kThreads>;
  using TileB = Tile<kN, AcrossB, kThreads>;
  constexpr int kStage = TileA::kElems + TileB::kElems;
  extern __shared__ __align__(16) bf16 shared[];
  const int64_t i0 = int64_t(blockIdx.x) * kM, j0 = int64_t(blockIdx.y) * kN;
  const int64_t k_begin = slice * blockIdx.z, k_end = min(p.depth, k_begin + slice);
  const int steps = int((k_end - k_begin + kDeep - 1) / kDeep);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_i = warp % WarpsM * FragM * 16, warp_j = warp / WarpsM * FragN * 8;

  float acc[FragM][FragN][4] = {};
  const TileA tile_a(p.a, i0, p.rows, k_begin);
  const TileB tile_b(p.b, j0, p.cols, k_begin);
  const auto fetch = [&](int step) {
    if (step < steps) {
      bf16* stage = shared + step % kStages * kStage;
      const int64_t deep = k_end - k_begin - int64_t(step) * kDeep;
      tile_a.fetch(stage, step, deep);
      tile_b.fetch(stage + TileA::kElems, step, deep);
    }
    commit_copies();
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) fetch(s);
  for (int step = 0; step < steps; step++) {
    wait_for_groups<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const bf16* stage = shared + step % kStages * kStage;
#pragma unroll
    for (int k = 0; k < kDeep; k += 16) {
      uint32_t a[FragM][4], b[FragN / 2][4];
#pragma unroll
      for (int m = 0; m < FragM; m++) TileA::load(a[m], stage, warp_i + m * 16, k, true);
#pragma unroll
      for (int n = 0; n < FragN / 2; n++) TileB::load(b[n], stage + TileA::kElems, warp_j + n * 16, k, false);
#pragma unroll
      for (int m = 0; m < FragM; m++) {
#pragma unroll
        for (int n = 0; n < FragN; n++) mma(acc[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
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
  for (int m = 0; m < FragM; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t i = i0 + warp_i + m * 16 + half * 8 + lane / 4;
      if (i >= p.rows) continue;
#pragma unroll
      for (int n = 0; n < FragN; n++) {
        const int64_t j = j0 + warp_j + n * 8 + lane % 4 * 2;
        const float s0 = acc[m][n][half * 2], s1 = acc[m][n][half * 2 + 1];
        if (j + 1 < p.cols) {
          epilogue_store2(e, paired, i, j, s0, s1);
        } else if (j < p.cols) {
          epilogue_store(e, i, j, s0);
        }
      }
    }
  }
}

template <int WarpsM, int WarpsN, int FragM, int FragN, bool AcrossA, bool AcrossB>
Status run(const Product& p, int splits, float* partials, cudaStream_t stream) {
  constexpr int kThreads = WarpsM * WarpsN * 32, kM = WarpsM * FragM * 16, kN = WarpsN * FragN * 8;
  constexpr int kBytes = kStages * 2 * (Tile<kM, AcrossA, kThreads>::kElems + Tile<kN, AcrossB, kThreads>::kElems);
  const auto kernel = mma_kernel<WarpsM, WarpsN, FragM, FragN, AcrossA, AcrossB>;
  MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int64_t steps = (p.depth + kDeep - 1) / kDeep;
  const int64_t slice = (steps + splits - 1) / splits * kDeep;
  const dim3 grid(unsigned((p.rows + kM - 1) / kM), unsigned((p.cols + kN - 1) / kN), unsigned(splits));
  const bool paired = splits > 1 ? p.cols % 2 == 0 : takes_pairs(p.epilogue);
  kernel<<<grid, kThreads, kBytes, stream>>>(p, slice, splits > 1 ? partials : nullptr, paired);
  MB_CUDA_LAUNCHED("multiply_mma");
  return {};
}

template <int WarpsM, int WarpsN, int FragM, int FragN>
Status run_laid(const Product& p, int splits, float* partials, cudaStream_t stream) {
  return with_layout(p, "multiply_mma", [&](auto across_a, auto across_b) {
    return run<WarpsM, WarpsN, FragM, FragN, across_a(), across_b()>(p, splits, partials, stream);
  });
}

}  // namespace

Status multiply_mma(const Product& p, int splits, float* partials, const Props& props, cudaStream_t stream) {
  if (wants_large_tiles(p, props)) return run_laid<2, 4, 4, 4>(p, splits, partials, stream);
  return run_laid<2, 2, 2, 4>(p, splits, partials, stream);
}

}  // namespace mb::cuda
