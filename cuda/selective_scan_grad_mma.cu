// The gradient of the selective scan for bf16 activations and 16 states, its sums over lanes on tensor cores. Work and
// scratch are those of selective_scan_grad_main.cu; states, decays and carried gradients are f32 here too, and h, g, ds
// and dt u are rounded to bf16 only as factors of those sums:
//   s = C h and sum_n g B: contraction over states, straight from registers (rows: channels; columns: steps)
//   dC = ds h and dB = (dt u) g: contraction over channels, turned by ldmatrix (rows: states; columns: steps)
//   sum_n g A a h: summed over a lane's 4 states in f32, over the 4 lanes by a product with ones
// A product covers one step; the other factor is zero outside that step's column, so eight steps fill one accumulator.
//
// Instructions a state and step, counted: 4.3 to reach every eighth state, 5.9 to recompute, 7.1 backwards, 3 for what
// is once a channel and step; special function unit: 2 exponentials, 16 of its cycles.
#include "check.h"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kSub = kGradSteps;

struct WarpShared {
  float4 step[kGradChunk][kGradPairs];  // dt, dt u of both channels
  float4 slots[kGradChunk / kSub][64];  // state before a sub-chunk, later its sums for dB and dC
  uint2 tile[kSub][64];                 // bf16 (step, channel, 16 states), swizzled
  float2 ds[kSub][kGradPairs];
  uint32_t weight[2][kSub][kGradPairs];  // bf16 pairs: ds, dt u
};

struct BlockShared {
  float4 B[kGradChunk][4], C[kGradChunk][4];
  uint4 raw[2][2][kGradChunk][2];  // double-buffered: bf16 B and C
  WarpShared warps[kWarps];
};

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ float2 unpack(uint32_t v) {
  return {__uint_as_float(v << 16), __uint_as_float(v & 0xFFFF0000u)};
}

// d(16,8) += a(16,16) b(16,8); rows g and g + 8, columns 2 q and 2 q + 1 of d are the lane's.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void load_turned(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void copy_async16(void* to, const void* from, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Two bf16 of the lane's pair at steps 2 q and 2 q + 1 of a sub-chunk.
struct Raw {
  uint32_t v[2];
  __device__ __forceinline__ float2 at(int j) const { return unpack(v[j]); }
};

struct View {
  const ScanGradArgs<bf16>& p;
  const GradLane& at;
  WarpShared& mine;
  const BlockShared& block;
  int buffer;
  int64_t row;  // of the chunk's first step
  int steps;    // 0 for a warp without channels
  uint32_t channel;

  template <class Rows>
  __device__ __forceinline__ Raw load(const Rows& rows, int k) const {
    const bf16* base = rows.data + row * rows.stride;
    const uint32_t stride = static_cast<uint32_t>(rows.stride);
    Raw raw;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int t = kSub * k + 2 * at.q + j;
      raw.v[j] = t < steps ? *reinterpret_cast<const uint32_t*>(base + (t * stride + channel)) : 0u;
    }
    return raw;
  }
  __device__ __forceinline__ void store(const GradRows<bf16>& rows, int k, int j, float2 v) const {
    const int t = kSub * k + 2 * at.q + j;
    bf16* base = rows.data + row * rows.stride;
    if (t < steps) {
      *reinterpret_cast<uint32_t*>(base + (t * static_cast<uint32_t>(rows.stride) + channel)) = pack(v.x, v.y);
    }
  }
};

__device__ __forceinline__ void stage_steps(const View& view, float2 bias, int k, const Raw& delta, const Raw& u) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int t = kSub * k + 2 * view.at.q + j;
    const float2 x = u.at(j);
    float2 dt = delta.at(j) + bias;
    if (view.p.softplus) dt = {softplus_fast(dt.x), softplus_fast(dt.y)};
    if (t >= view.steps) dt = {0.0f, 0.0f};  // a step past the end changes nothing
    view.mine.step[t][view.at.g] = {dt.x, dt.x * x.x, dt.y, dt.y * x.y};
  }
}

__device__ __forceinline__ void reach_sub_chunks(const View& view, float2 bias, const float (&A2)[2][4],
                                                 float (&h)[2][4], int sub_chunks) {
  const GradLane& at = view.at;
  Raw delta = view.load(view.p.delta, 0), u = view.load(view.p.u, 0);
#pragma unroll 1
  for (int k = 0; k < sub_chunks; k++) {
    stage_steps(view, bias, k, delta, u);
#pragma unroll
    for (int c = 0; c < 2; c++) view.mine.slots[k][32 * c + at.lane] = {h[c][0], h[c][1], h[c][2], h[c][3]};
    __syncwarp();
    if (k + 1 == sub_chunks) break;
    delta = view.load(view.p.delta, k + 1);
    u = view.load(view.p.u, k + 1);
#pragma unroll
    for (int j = 0; j < kSub; j++) {
      const float4 step = view.mine.step[kSub * k + j][at.g], B4 = view.block.B[kSub * k + j][at.q];
      const float B[4] = {B4.x, B4.y, B4.z, B4.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        h[0][i] = fmaf(exp2_fast(step.x * A2[0][i]), h[0][i], step.y * B[i]);
        h[1][i] = fmaf(exp2_fast(step.z * A2[1][i]), h[1][i], step.w * B[i]);
      }
    }
  }
}

struct Track {
  float a[kSub][2][4], before[kSub][2][4];
};

// Where a lane stores its states in a step's tile, and the row that it names to ldmatrix. Channel c of pair g has the
// row of 32 bytes at 256 c + 32 g, its halves exchanged where c = 1: neither access then meets itself on a bank.
struct TilePlace {
  uint32_t store[2], load;
  __device__ __forceinline__ TilePlace(const WarpShared& mine, const GradLane& at) {
    const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(mine.tile));
    for (int c = 0; c < 2; c++) store[c] = base + 256 * c + 32 * at.g + 16 * ((at.q / 2) ^ c) + 8 * (at.q % 2);
    const int matrix = at.lane / 8, half = matrix % 2, k = 8 * (matrix / 2) + at.lane % 8;
    load = base + 256 * (k % 2) + 32 * (k / 2) + 16 * (half ^ (k % 2));
  }
};

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}

// v as a factor (channels, states) of step j's products; also into the tile.
__device__ __forceinline__ void as_factor(uint32_t (&a)[4], const float (&v)[2][4], const TilePlace& place, int j) {
  a[0] = pack(v[0][0], v[0][1]);
  a[1] = pack(v[1][0], v[1][1]);
  a[2] = pack(v[0][2], v[0][3]);
  a[3] = pack(v[1][2], v[1][3]);
  store_shared(place.store[0] + 512 * j, a[0], a[2]);
  store_shared(place.store[1] + 512 * j, a[1], a[3]);
}

// (16 states, 8 steps) summed over the warp's channels: the tile times weights of channels and steps.
__device__ __forceinline__ float4 sum_channels(const View& view, const TilePlace& place, int which) {
  const uint32_t w0 = view.mine.weight[which][view.at.g][view.at.q],
                 w1 = view.mine.weight[which][view.at.g][view.at.q + 4];
  float d[4] = {};
#pragma unroll
  for (int j = 0; j < kSub; j++) {
    uint32_t a[4];
    load_turned(a, place.load + 512 * j);
    const bool column = view.at.g == j;
    multiply(d, a, column ? w0 : 0u, column ? w1 : 0u);
  }
  return {d[0], d[1], d[2], d[3]};
}

// B or C at the lane's column of a sub-chunk.
__device__ __forceinline__ uint2 projection_factor(const View& view, int which, int k) {
  const uint2* rows = reinterpret_cast<const uint2*>(view.block.raw[view.buffer][which]);
  return rows[4 * (kSub * k + view.at.g) + view.at.q];
}

// s: even channel at steps 2 q, 2 q + 1, then odd channel.
__device__ __forceinline__ void recompute(const View& view, const float (&A2)[2][4], const TilePlace& place, int k,
                                          Track& track, float (&s)[4]) {
  const GradLane& at = view.at;
  const uint2 C = projection_factor(view, 1, k);
  float h[2][4];
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const float4 v = view.mine.slots[k][32 * c + at.lane];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
#pragma unroll
  for (int j = 0; j < kSub; j++) {
    const float4 step = view.mine.step[kSub * k + j][at.g], B4 = view.block.B[kSub * k + j][at.q];
    const float B[4] = {B4.x, B4.y, B4.z, B4.w}, dt[2] = {step.x, step.z}, dtu[2] = {step.y, step.w};
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        track.before[j][c][i] = h[c][i];
        track.a[j][c][i] = exp2_fast(dt[c] * A2[c][i]);
        h[c][i] = fmaf(track.a[j][c][i], h[c][i], dtu[c] * B[i]);
      }
    }
    uint32_t a[4];
    as_factor(a, h, place, j);
    const bool column = at.g == j;
    multiply(s, a, column ? C.x : 0u, column ? C.y : 0u);
  }
}

// gB and gA (of A2): sums over states, laid out as s.
__device__ __forceinline__ void reverse(const View& view, const float (&A2)[2][4], const TilePlace& place, int k,
                                        const Track& track, float (&g)[2][4], float (&dA)[2][4], float (&gB)[4],
                                        float (&gA)[4]) {
  const GradLane& at = view.at;
  const uint2 B = projection_factor(view, 0, k);
  uint32_t shares[2][4];
  float last[2];
#pragma unroll
  for (int j = kSub - 1; j >= 0; j--) {
    const float4 step = view.mine.step[kSub * k + j][at.g], C4 = view.block.C[kSub * k + j][at.q];
    const float2 ds2 = view.mine.ds[j][at.g];
    const float C[4] = {C4.x, C4.y, C4.z, C4.w}, dt[2] = {step.x, step.z}, ds[2] = {ds2.x, ds2.y};
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) g[c][i] = fmaf(ds[c], C[i], g[c][i]);
    }
    uint32_t a[4];
    as_factor(a, g, place, j);
    const bool column = at.g == j;
    multiply(gB, a, column ? B.x : 0u, column ? B.y : 0u);
#pragma unroll
    for (int c = 0; c < 2; c++) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        g[c][i] *= track.a[j][c][i];
        const float gah = g[c][i] * track.before[j][c][i];
        sum = fmaf(gah, A2[c][i], sum);
        dA[c][i] = fmaf(gah, dt[c], dA[c][i]);
      }
      if (j % 2) {
        last[c] = sum;
      } else {
        shares[c][j / 2] = pack(sum, last[c]);
      }
    }
  }
  // Shares of steps 0 and 1 lie at k = 2 q, 2 q + 1, of 2 and 3 at k = 2 q + 8, 2 q + 9; ones select the column.
  constexpr uint32_t kOne = 0x3F80u;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t a[4] = {shares[0][2 * half], shares[1][2 * half], shares[0][2 * half + 1], shares[1][2 * half + 1]};
    const int column = at.g - 4 * half;
    multiply(gA, a,
             column == 0   ? kOne
             : column == 1 ? kOne << 16
                           : 0u,
             column == 2   ? kOne
             : column == 3 ? kOne << 16
                           : 0u);
  }
}

struct Gate {
  float2 ds[2], dz[2];
};

__device__ __forceinline__ Gate gate_of(const View& view, int k, const Raw& dy2, const Raw& z2) {
  Gate gate;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int in_sub = 2 * view.at.q + j;
    const float2 dy = dy2.at(j);
    gate.ds[j] = dy;
    if (view.p.z.data) {
      const float2 z = z2.at(j), sg = {sigmoid_fast(z.x), sigmoid_fast(z.y)}, dys = dy * sg;
      gate.ds[j] = dys * z;
      gate.dz[j] = {dys.x * fmaf(z.x, 1.0f - sg.x, 1.0f), dys.y * fmaf(z.y, 1.0f - sg.y, 1.0f)};
    }
    const float4 step = view.mine.step[kSub * k + in_sub][view.at.g];
    view.mine.ds[in_sub][view.at.g] = gate.ds[j];
    view.mine.weight[0][in_sub][view.at.g] = pack(gate.ds[j].x, gate.ds[j].y);
    view.mine.weight[1][in_sub][view.at.g] = pack(step.y, step.w);
  }
  return gate;
}

__device__ __forceinline__ float softplus_slope(float w) { return w > 20.0f ? 1.0f : sigmoid_fast(w); }

// What a lane sums over all steps for its two channels.
struct PairSums {
  float2 D, bias;
};

__device__ __forceinline__ void store_scalars(const View& view, const PairSums& params, int k, const Gate& gate,
                                              const Raw& u2, const Raw& delta2, const float (&gB)[4],
                                              const float (&gA)[4], PairSums& sums) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int t = kSub * k + 2 * view.at.q + j;
    const float2 u = u2.at(j), ds = gate.ds[j];
    const float4 step = view.mine.step[t][view.at.g];
    float2 dw = {fmaf(kLn2, gA[j], u.x * gB[j]), fmaf(kLn2, gA[2 + j], u.y * gB[2 + j])};
    if (view.p.softplus) {
      const float2 w = delta2.at(j) + params.bias;
      dw = dw * float2{softplus_slope(w.x), softplus_slope(w.y)};
    }
    view.store(view.p.du, k, j, {fmaf(step.x, gB[j], ds.x * params.D.x), fmaf(step.z, gB[2 + j], ds.y * params.D.y)});
    view.store(view.p.ddelta, k, j, dw);
    sums.D = sums.D + ds * u;
    if (t < view.steps) sums.bias = sums.bias + dw;
  }
}

__device__ __forceinline__ void fetch_projections(const ScanGradArgs<bf16>& p, BlockShared& block, int buffer,
                                                  int64_t row, int steps) {
  const int which = threadIdx.x / 128, t = threadIdx.x / 2 % 64, half = threadIdx.x % 2;
  const GradRows<const bf16> rows = which ? p.C_in : p.B_in;
  copy_async16(&block.raw[buffer][which][t][half], rows.data + (row + (t < steps ? t : 0)) * rows.stride + 8 * half,
               t < steps);
}

__device__ __forceinline__ void widen_projections(BlockShared& block, int buffer) {
  const int which = threadIdx.x / 128, t = threadIdx.x / 2 % 64, half = threadIdx.x % 2;
  const uint4 v = block.raw[buffer][which][t][half];
  const float2 x = unpack(v.x), y = unpack(v.y), z = unpack(v.z), w = unpack(v.w);
  float4* to = which ? block.C[t] : block.B[t];
  to[2 * half] = {x.x, x.y, y.x, y.y};
  to[2 * half + 1] = {z.x, z.y, w.x, w.y};
}

__global__ void __launch_bounds__(32 * kWarps, 1) scan_grad_mma_kernel(const __grid_constant__ ScanGradArgs<bf16> p) {
  extern __shared__ float4 shared_bytes[];
  BlockShared& block = *reinterpret_cast<BlockShared*>(shared_bytes);
  WarpShared& mine = block.warps[threadIdx.x / 32];

  const int64_t channel_block = blockIdx.x % p.channel_blocks;
  const int64_t part = blockIdx.x / p.channel_blocks, segment = part % p.segments, b = part / p.segments;
  const GradLane at((channel_block * kWarps + threadIdx.x / 32) * kGradChannels, p.E, 0);
  const TilePlace place(mine, at);
  const PairSums params = {p.D ? load_pair(p.D + at.channel, false, at.channels) : float2{},
                           p.delta_bias ? load_pair(p.delta_bias + at.channel, false, at.channels) : float2{}};
  PairSums sums = {};
  float A2[2][4], g[2][4], dA[2][4] = {};
  load_states(A2, p.A.data + at.channel * p.A.stride, p.A.stride, at, 16, true);
  for (auto& row : A2) {
    for (float& v : row) v *= kLog2e;
  }
  const int64_t first = segment * p.chunks_per_segment;
  const int64_t end = min(first + p.chunks_per_segment, p.chunks_per_batch);
  const auto steps_of = [&](int64_t chunk) {
    return static_cast<int>(min(int64_t{kGradChunk}, p.time - chunk * kGradChunk));
  };
  fetch_projections(p, block, 0, b * p.time + (end - 1) * kGradChunk, steps_of(end - 1));
  incoming_gradient(g, A2, p, b, end == p.chunks_per_batch ? p.pieces : end / p.chunks_per_piece, at);

  int buffer = 0;
#pragma unroll 1
  for (int64_t chunk = end - 1; chunk >= first; chunk--, buffer ^= 1) {
    const int64_t row = b * p.time + chunk * kGradChunk;
    const int steps = steps_of(chunk), sub_chunks = (steps + kSub - 1) / kSub;
    float h[2][4];
    load_states(h, p.chunks.data + (b * p.chunks_per_batch + chunk) * p.chunks.stride + at.channel * 16, 16, at, 16,
                true);
    copies_done();
    __syncthreads();
    widen_projections(block, buffer);
    if (chunk > first) fetch_projections(p, block, buffer ^ 1, row - kGradChunk, kGradChunk);
    __syncthreads();
    const View view{p, at, mine, block, buffer, row, at.channels ? steps : 0, static_cast<uint32_t>(at.channel)};
    reach_sub_chunks(view, params.bias, A2, h, sub_chunks);
    Raw dy = view.load(p.dy, sub_chunks - 1), z{};
    if (p.z.data) z = view.load(p.z, sub_chunks - 1);
#pragma unroll 1
    for (int k = sub_chunks - 1; k >= 0; k--) {
      const Gate gate = gate_of(view, k, dy, z);
      const Raw u = view.load(p.u, k), delta = view.load(p.delta, k);
      if (k > 0) {
        dy = view.load(p.dy, k - 1);
        if (p.z.data) z = view.load(p.z, k - 1);
      }
      Track track;
      float s[4] = {}, gB[4] = {}, gA[4] = {};
      recompute(view, A2, place, k, track, s);
      __syncwarp();
      mine.slots[k][32 + at.lane] = sum_channels(view, place, 0);
      if (p.dz.data) {
#pragma unroll
        for (int j = 0; j < 2; j++) view.store(p.dz, k, j, gate.dz[j] * (float2{s[j], s[2 + j]} + params.D * u.at(j)));
      }
      __syncwarp();
      reverse(view, A2, place, k, track, g, dA, gB, gA);
      __syncwarp();
      mine.slots[k][at.lane] = sum_channels(view, place, 1);
      store_scalars(view, params, k, gate, u, delta, gB, gA, sums);
      __syncwarp();
    }
    __syncthreads();
    store_projection_sums(p, block.warps, kWarps, channel_block, b, chunk);
  }
  if (!at.channels) return;
  store_parameter_sums(p, at, part, dA, sums.D, sums.bias);
  if (p.dstate.data && segment == 0) store_state_gradient(p, at, b, g);
}

}  // namespace

Status launch_scan_grad_mma(const ScanGradArgs<bf16>& args, cudaStream_t stream) {
  MB_CUDA(cudaFuncSetAttribute(scan_grad_mma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(BlockShared)));
  const int64_t blocks = args.channel_blocks * args.segments * args.B;
  scan_grad_mma_kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, sizeof(BlockShared), stream>>>(args);
  MB_CUDA_LAUNCHED("selective_scan_grad");
  return {};
}

}  // namespace mb::cuda
