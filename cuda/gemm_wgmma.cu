// bf16 products on Hopper: a persistent block per multiprocessor takes tiles of 128 x Wide, 64 deep. One warp brings
// them in by bulk copies, several stages ahead; two warpgroups of four warps multiply 64 rows each (wgmma) and write
// them out through shared memory, so that stores are whole sectors. Factors are swizzled by 128 bytes, either way they
// lie.
#include <cuda.h>

#include <algorithm>

#include "check.h"
#include "gemm_epilogue.cuh"
#include "gemm_kernels.h"
#include "wgmma.cuh"

namespace mb::cuda {
namespace {

constexpr int kTall = 128;
constexpr int kDeep = 64;
constexpr int kConsumers = 2;
constexpr int kThreads = 128 * (kConsumers + 1);
[[maybe_unused]] constexpr int kBox = 64 * kDeep * 2;  // bytes of 64 elements of a factor that lies across

// Shared memory through which a warp writes 16 rows of C, 32 columns at a time.
constexpr int kOutCols = 32;
constexpr int kOutRow = kOutCols + 8;
constexpr int kOutBytes = 16 * kOutRow * 4;

// How sums reach C: each for itself, four to a store, or as bf16 eight to a store.
enum class Way { each, quads, bf16 };

Way way_of(const Product& p, int splits) {
  const Epilogue& e = p.epilogue;
  if (splits > 1) return p.cols % 4 == 0 ? Way::quads : Way::each;
  if (e.bf16 && !e.add && e.stride % 8 == 0 && reinterpret_cast<uintptr_t>(e.c) % 16 == 0) return Way::bf16;
  return takes_quads(e) ? Way::quads : Way::each;
}

template <int Wide>
struct Shape {
  static constexpr int kA = kTall * kDeep * 2, kB = Wide * kDeep * 2, kStage = kA + kB;
  static constexpr int kStages = Wide == 256 ? 4 : Wide == 128 ? 6 : 8;
  static constexpr int kBytes = kStages * kStage + kConsumers * 4 * kOutBytes + kStages * 16 + 1024;
};

// A piece of work: a tile of C and a slice of the depth.
struct Grid {
  int64_t rows, cols;  // in tiles
  int64_t slice;       // steps of kDeep
  int64_t steps;       // in all
  int64_t work;        // rows * cols * splits
};

struct Work {
  int64_t i, j, split;
};

// Neighbouring pieces share rows and columns: sixteen tiles down, then the next column.
[[maybe_unused]] __device__ __forceinline__ Work work_at(const Grid& g, int64_t n) {
  constexpr int64_t kDown = 16;
  Work w;
  const int64_t tiles = g.rows * g.cols;
  w.split = n / tiles;
  n %= tiles;
  const int64_t band = n / (kDown * g.cols), first = band * kDown;
  const int64_t tall = min(kDown, g.rows - first);
  n -= band * kDown * g.cols;
  w.i = first + n % tall;
  w.j = n / tall;
  return w;
}

// `wide` elements of a factor from i on.
template <bool Across>
__device__ __forceinline__ void fetch(char* to, const CUtensorMap& map, uint64_t* full, int i, int k, int wide) {
  if constexpr (Across) {
    for (int c = 0; c < wide / 64; c++) copy_box(to + c * kBox, &map, full, i + c * 64, k);
  } else {
    copy_box(to, &map, full, k, i);
  }
}

template <int Wide, bool AcrossA, bool AcrossB>
__device__ void produce(const Grid& g, const CUtensorMap& map_a, const CUtensorMap& map_b, char* stages, uint64_t* full,
                        uint64_t* empty) {
  using S = Shape<Wide>;
  int stage = 0, parity = 0;
  for (int64_t n = blockIdx.x; n < g.work; n += gridDim.x) {
    const Work w = work_at(g, n);
    const int64_t first = w.split * g.slice, end = min(g.steps, first + g.slice);
    const int i = int(w.i * kTall), j = int(w.j * Wide);
    for (int64_t step = first; step < end; step++) {
      barrier_wait(&empty[stage], parity ^ 1);
      barrier_expect(&full[stage], S::kStage);
      char* at = stages + stage * S::kStage;
      fetch<AcrossA>(at, map_a, &full[stage], i, int(step * kDeep), kTall);
      fetch<AcrossB>(at + S::kA, map_b, &full[stage], j, int(step * kDeep), Wide);
      if (++stage == S::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
}

// The sums of a warp, 16 rows of Wide, through shared memory to C.
template <int Wide>
__device__ __forceinline__ void write_out(const Product& p, const Epilogue& e, bool quads, float* out, int64_t i0,
                                          int64_t j0, const float (&acc)[Wide / 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int chunk = 0; chunk < Wide / kOutCols; chunk++) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kOutCols / 8; n++) {
      const float* s = acc + (chunk * (kOutCols / 8) + n) * 4;
      float* at = out + lane / 4 * kOutRow + n * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(s[0], s[1]);
      *reinterpret_cast<float2*>(at + 8 * kOutRow) = make_float2(s[2], s[3]);
    }
    __syncwarp();
    const int col = lane % 8 * 4;
    const int64_t j = j0 + chunk * kOutCols + col;
    const EpilogueColumns columns(e, quads, j, p.cols);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int row = r * 4 + lane / 8;
      if (i0 + row >= p.rows) break;
      columns.store(e, i0 + row, j, p.cols, *reinterpret_cast<const float4*>(out + row * kOutRow + col));
    }
  }
}

// The same for bf16 without `add`, 64 columns at a time: rounded before they are turned, so half of the bytes.
template <int Wide>
__device__ __forceinline__ void write_bf16(const Product& p, const Epilogue& e, char* out, int64_t i0, int64_t j0,
                                           const float (&acc)[Wide / 2]) {
  const int lane = threadIdx.x % 32;
  // Rows of 128 bytes; the 16 bytes at `column` of a row lie where no two rows of eight share banks.
  const auto place = [&](int row, int column) { return out + row * 128 + (column ^ row % 8) * 16; };
#pragma unroll
  for (int chunk = 0; chunk < Wide / 64; chunk++) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t packed[4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float* s = acc + (chunk * 8 + n + half) * 4;
        const int64_t j = j0 + chunk * 64 + (n + half) * 8 + lane % 4 * 2;
        float2 scale = make_float2(1, 1), bias = make_float2(0, 0);
        if (e.scale && j < p.cols) scale = make_float2(e.scale[j], e.scale[min(j + 1, p.cols - 1)]);
        if (e.bias && j < p.cols) bias = make_float2(e.bias[j], e.bias[min(j + 1, p.cols - 1)]);
        packed[half * 2] = pack_bf16(fmaf(s[0], scale.x, bias.x), fmaf(s[1], scale.y, bias.y));
        packed[half * 2 + 1] = pack_bf16(fmaf(s[2], scale.x, bias.x), fmaf(s[3], scale.y, bias.y));
      }
      store_matrices(place(lane % 16, n + lane / 16), packed);
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int row = r * 4 + lane / 8;
      const int64_t i = i0 + row, j = j0 + chunk * 64 + lane % 8 * 8;
      if (i >= p.rows) break;
      const uint4 v = *reinterpret_cast<const uint4*>(place(row, lane % 8));
      bf16* to = static_cast<bf16*>(e.c) + i * e.stride + j;
      if (j + 7 < p.cols) {
        *reinterpret_cast<uint4*>(to) = v;
      } else {
        const auto* each = reinterpret_cast<const bf16*>(place(row, lane % 8));
#pragma unroll 1
        for (int n = 0; j + n < p.cols; n++) to[n] = each[n];
      }
    }
  }
}

template <int Wide, bool AcrossA, bool AcrossB>
__device__ void consume(const Product& p, const Grid& g, float* partials, Way way, char* stages, float* out,
                        uint64_t* full, uint64_t* empty) {
  using S = Shape<Wide>;
  const int group = __shfl_sync(~0u, threadIdx.x / 128 - 1, 0), warp = threadIdx.x % 128 / 32;
  int stage = 0, parity = 0;
  for (int64_t n = blockIdx.x; n < g.work; n += gridDim.x) {
    const Work w = work_at(g, n);
    const int64_t first = w.split * g.slice, end = min(g.steps, first + g.slice);
    float acc[Wide / 2];
    int before = -1;
    for (int64_t step = first; step < end; step++) {
      barrier_wait(&full[stage], parity);
      const uint32_t at = shared_address(stages + stage * S::kStage);
      const uint32_t at_a = at + group * kBox, at_b = at + S::kA;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDeep / 16; k++) {
        const uint64_t a = factor_descriptor(at_a + k * (AcrossA ? 2048 : 32), 1024, kBox);
        const uint64_t b = factor_descriptor(at_b + k * (AcrossB ? 2048 : 32), 1024, kBox);
        wgmma<AcrossA, AcrossB>(acc, a, b, step > first || k > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (before >= 0 && threadIdx.x % 128 == 0) barrier_arrive(&empty[before]);
      before = stage;
      if (++stage == S::kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wgmma_wait<0>();
    if (before >= 0 && threadIdx.x % 128 == 0) barrier_arrive(&empty[before]);
    if (before < 0) {
#pragma unroll
      for (int x = 0; x < Wide / 2; x++) acc[x] = 0;
    }
    Epilogue e = p.epilogue;
    if (partials) {
      e = {};
      e.c = partials + w.split * p.rows * p.cols;
      e.stride = p.cols;
    }
    float* turned = out + (group * 4 + warp) * (kOutBytes / 4);
    const int64_t i0 = w.i * kTall + group * 64 + warp * 16, j0 = w.j * Wide;
    if (way == Way::bf16) {
      write_bf16<Wide>(p, e, reinterpret_cast<char*>(turned), i0, j0, acc);
    } else {
      write_out<Wide>(p, e, way == Way::quads, turned, i0, j0, acc);
    }
  }
}

template <int Wide, bool AcrossA, bool AcrossB>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_kernel(const Product p, const Grid g, const __grid_constant__ CUtensorMap map_a,
                 const __grid_constant__ CUtensorMap map_b, float* partials, Way way) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = Shape<Wide>;
  extern __shared__ char raw[];
  char* stages = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t(1023));
  float* out = reinterpret_cast<float*>(stages + S::kStages * S::kStage);
  uint64_t* full = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(out) + kConsumers * 4 * kOutBytes);
  uint64_t* empty = full + S::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; s++) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) produce<Wide, AcrossA, AcrossB>(g, map_a, map_b, stages, full, empty);
  } else {
    take_registers<232>();
    consume<Wide, AcrossA, AcrossB>(p, g, partials, way, stages, out, full, empty);
  }
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Status encoder(Encode* out) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  MB_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
  if (!found) return fail(Code::unsupported, "cuTensorMapEncodeTiled: not in this driver");
  *out = reinterpret_cast<Encode>(found);
  return {};
}

// n by depth elements in boxes of `wide` by kDeep, or of 64 by kDeep where the factor lies across.
Status encode(Encode call, CUtensorMap* map, const Factor& f, int64_t n, int64_t depth, int wide) {
  const cuuint64_t size[2] = {cuuint64_t(f.across ? n : depth), cuuint64_t(f.across ? depth : n)};
  const cuuint64_t stride[1] = {cuuint64_t(f.stride) * 2};
  const cuuint32_t box[2] = {64, cuuint32_t(f.across ? kDeep : wide)};
  const cuuint32_t each[2] = {1, 1};
  const CUresult code = call(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(f.data), size, stride, box,
                             each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) return fail(Code::device, "cuTensorMapEncodeTiled: error %d", int(code));
  return {};
}

Grid grid_of(const Product& p, int wide, int splits) {
  Grid g;
  g.rows = (p.rows + kTall - 1) / kTall;
  g.cols = (p.cols + wide - 1) / wide;
  g.steps = (p.depth + kDeep - 1) / kDeep;
  g.slice = (g.steps + splits - 1) / splits;
  g.work = g.rows * g.cols * splits;
  return g;
}

template <int Wide, bool AcrossA, bool AcrossB>
Status run(const Product& p, int splits, float* partials, const Props& props, cudaStream_t stream) {
  const auto kernel = wgmma_kernel<Wide, AcrossA, AcrossB>;
  Encode call = nullptr;
  MB_TRY(encoder(&call));
  CUtensorMap map_a, map_b;
  MB_TRY(encode(call, &map_a, p.a, p.rows, p.depth, kTall));
  MB_TRY(encode(call, &map_b, p.b, p.cols, p.depth, Wide));
  MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape<Wide>::kBytes));
  const Grid g = grid_of(p, Wide, splits);
  const Way way = way_of(p, splits);
  const unsigned blocks = unsigned(std::min<int64_t>(g.work, props.sm_count));
  kernel<<<blocks, kThreads, Shape<Wide>::kBytes, stream>>>(p, g, map_a, map_b, splits > 1 ? partials : nullptr, way);
  MB_CUDA_LAUNCHED("multiply_wgmma");
  return {};
}

template <int Wide>
Status run_laid(const Product& p, int splits, float* partials, const Props& props, cudaStream_t stream) {
  return with_layout(p, "multiply_wgmma", [&](auto across_a, auto across_b) {
    return run<Wide, across_a(), across_b()>(p, splits, partials, props, stream);
  });
}

}  // namespace

WgmmaPlan plan_wgmma(const Product& p, const Props& props) {
  // Time in steps of 64 columns: a piece of work costs its slice of the depth, and some steps to begin and write out.
  constexpr double kAround = 6;
  WgmmaPlan best;
  double least = 0;
  for (const int wide : {256, 128, 64}) {
    for (int splits = 1; splits <= 32; splits++) {
      const Grid g = grid_of(p, wide, splits);
      if (splits > 1 && g.slice < 8) break;
      const double waves = double((g.work + props.sm_count - 1) / props.sm_count);
      // A narrow tile moves more bytes for its work.
      const double step = wide == 256 ? 4 : wide == 128 ? 2.3 : 1.6;
      const double reduce = splits > 1 ? 25.0 + double(splits) * double(p.rows * p.cols) / (1 << 18) : 0;
      const double time = waves * (double(g.slice) * step + kAround * wide / 64) + reduce;
      if (best.wide == 0 || time < least) {
        best = {wide, splits};
        least = time;
      }
    }
  }
  return best;
}

Status multiply_wgmma(const Product& p, WgmmaPlan plan, float* partials, const Props& props, cudaStream_t stream) {
  if (plan.wide == 256) return run_laid<256>(p, plan.splits, partials, props, stream);
  if (plan.wide == 128) return run_laid<128>(p, plan.splits, partials, props, stream);
  return run_laid<64>(p, plan.splits, partials, props, stream);
}

}  // namespace mb::cuda
