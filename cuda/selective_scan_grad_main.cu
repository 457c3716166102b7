// The gradient of the selective scan, chunk by chunk from the end: states are recomputed from each chunk's start, then
// equations (4) to (6) of native/ref/selective_scan.h run backwards in registers.
//
// u, delta, z, dy, du, ddelta, dz(B,T,E); B, C(B,T,N); chunks(B,ceil(T/64),E*N); sums of dB and dC over a block's
// channels go to scratch (docs/math/selective-scan-gradient.md).
//
// Instructions a state and step, counted: 4.7 to reach every eighth state, 6.7 to recompute states and decays into
// registers, 7.7 backwards, 2 for the sums of dB and dC over channels and of s, gB and gA over states, 3 for what is
// once a channel and step. Sums over lanes go through shared memory: a 16-byte store and load move four values, where
// shuffles would move one and need a select; bf16 tensor cores would be shorter, but their rounding shows.
#include "check.h"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

constexpr int kSub = kGradSteps;
// Rows of 36 vectors for 32 lanes keep the transposed reads free of bank conflicts.
constexpr int kExchangeRow = 36;

struct WarpShared {
  float4 step[kGradChunk][kGradPairs];       // dt, dt u of both channels
  float4 slots[kGradChunk / kSub][64];       // state before a sub-chunk, later its sums for dB and dC
  float4 channel_sums[kSub * kExchangeRow];  // (step, pair, 4 states)
  float4 state_sums[kSub * kExchangeRow];    // (step, lane)
  float2 ds[kSub][kGradPairs];
};

template <class T, int kWarps>
struct BlockShared {
  float4 B[kGradChunk][4], C[kGradChunk][4];
  T raw[2][kGradChunk][kGradStates];  // B and C of the chunk to come
  WarpShared warps[kWarps];
};

// What belongs to a lane's two channels: parameters, or sums over all steps.
struct PairOf {
  float2 D, bias;
};

template <class T, bool kWhole>
__device__ __forceinline__ void stage_steps(const ChunkView<T, kWhole>& view, WarpShared& mine, float2 bias, int k,
                                            const Raw<T>& delta, const Raw<T>& u) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const float2 x = u.at(j);
    float2 dt = delta.at(j) + bias;
    if (view.p.softplus) dt = {softplus_fast(dt.x), softplus_fast(dt.y)};
    // A step past the end changes nothing: a = exp(0).
    if (!view.inside(k, j)) dt = {0.0f, 0.0f};
    mine.step[kSub * k + 2 * view.at.q + j][view.at.g] = {dt.x, dt.x * x.x, dt.y, dt.y * x.y};
  }
}

// Fills the steps' dt and the state before each sub-chunk. delta, u: of sub-chunk 0.
template <class T, bool kWhole>
__device__ __forceinline__ void reach_sub_chunks(const ChunkView<T, kWhole>& view, WarpShared& mine,
                                                 const float4* B_tile, float2 bias, const float (&A2)[2][4],
                                                 float (&h)[2][4], int sub_chunks, Raw<T> delta, Raw<T> u) {
  const GradLane& at = view.at;
#pragma unroll 1
  for (int k = 0; k < sub_chunks; k++) {
    stage_steps(view, mine, bias, k, delta, u);
#pragma unroll
    for (int c = 0; c < 2; c++) mine.slots[k][32 * c + at.lane] = {h[c][0], h[c][1], h[c][2], h[c][3]};
    __syncwarp();
    if (k + 1 == sub_chunks) break;
    delta = view.load(view.p.delta, k + 1);
    u = view.load(view.p.u, k + 1);
#pragma unroll
    for (int j = 0; j < kSub; j++) {
      const float4 step = mine.step[kSub * k + j][at.g], B4 = B_tile[4 * (kSub * k + j)];
      const float B[4] = {B4.x, B4.y, B4.z, B4.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        h[0][i] = fmaf(exp2_fast(step.x * A2[0][i]), h[0][i], step.y * B[i]);
        h[1][i] = fmaf(exp2_fast(step.z * A2[1][i]), h[1][i], step.w * B[i]);
      }
    }
  }
}

// States before, and decays of, the steps of one sub-chunk.
struct Track {
  float a[kSub][2][4], before[kSub][2][4];
};

// Forwards; leaves the shares of dC in channel_sums and of s in state_sums.
__device__ __forceinline__ void recompute(const float4* __restrict__ steps, const float4* __restrict__ Bs,
                                          const float4* __restrict__ Cs, const float2* __restrict__ dss,
                                          const float4* __restrict__ start, float4* __restrict__ channel_sums,
                                          float2* __restrict__ state_sums, const float (&A2)[2][4], Track& track) {
  float h[2][4];
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const float4 v = start[32 * c];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
#pragma unroll
  for (int j = 0; j < kSub; j++) {
    const float4 step = steps[kGradPairs * j], B4 = Bs[4 * j], C4 = Cs[4 * j];
    const float2 ds = dss[kGradPairs * j];
    const float B[4] = {B4.x, B4.y, B4.z, B4.w}, C[4] = {C4.x, C4.y, C4.z, C4.w};
    float2 s = {0.0f, 0.0f};
    float dC[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      track.before[j][0][i] = h[0][i];
      track.before[j][1][i] = h[1][i];
      track.a[j][0][i] = exp2_fast(step.x * A2[0][i]);
      track.a[j][1][i] = exp2_fast(step.z * A2[1][i]);
      h[0][i] = fmaf(track.a[j][0][i], h[0][i], step.y * B[i]);
      h[1][i] = fmaf(track.a[j][1][i], h[1][i], step.w * B[i]);
      s.x = fmaf(C[i], h[0][i], s.x);
      s.y = fmaf(C[i], h[1][i], s.y);
      dC[i] = fmaf(ds.x, h[0][i], ds.y * h[1][i]);
    }
    channel_sums[kExchangeRow * j] = {dC[0], dC[1], dC[2], dC[3]};
    state_sums[kExchangeRow * j] = s;
  }
}

// Backwards; leaves the shares of dB in channel_sums, and in state_sums those of sum_n g B of both channels and of
// sum_n g A2 a h of both.
__device__ __forceinline__ void reverse(const float4* __restrict__ steps, const float4* __restrict__ Bs,
                                        const float4* __restrict__ Cs, const float2* __restrict__ dss,
                                        float4* __restrict__ channel_sums, float4* __restrict__ state_sums,
                                        const float (&A2)[2][4], const Track& track, float (&g)[2][4],
                                        float (&dA)[2][4]) {
#pragma unroll
  for (int j = kSub - 1; j >= 0; j--) {
    const float4 step = steps[kGradPairs * j], B4 = Bs[4 * j], C4 = Cs[4 * j];
    const float2 ds2 = dss[kGradPairs * j];
    const float B[4] = {B4.x, B4.y, B4.z, B4.w}, C[4] = {C4.x, C4.y, C4.z, C4.w};
    const float dt[2] = {step.x, step.z}, dtu[2] = {step.y, step.w}, ds[2] = {ds2.x, ds2.y};
    float gB[2], gA[2], dB[4];
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        g[c][i] = fmaf(ds[c], C[i], g[c][i]);
        gB[c] = i == 0 ? g[c][0] * B[0] : fmaf(g[c][i], B[i], gB[c]);
        dB[i] = c == 0 ? dtu[0] * g[0][i] : fmaf(dtu[1], g[1][i], dB[i]);
        g[c][i] *= track.a[j][c][i];
        const float gah = g[c][i] * track.before[j][c][i];
        gA[c] = i == 0 ? gah * A2[c][0] : fmaf(gah, A2[c][i], gA[c]);
        dA[c][i] = fmaf(gah, dt[c], dA[c][i]);
      }
    }
    channel_sums[kExchangeRow * j] = {dB[0], dB[1], dB[2], dB[3]};
    state_sums[kExchangeRow * j] = {gB[0], gB[1], gA[0], gA[1]};
  }
}

// Over the warp's channels: lane 4 step + n / 4 has the sums of its step and states.
__device__ __forceinline__ float4 sum_channels(const WarpShared& mine, int lane) {
  const float4* from = mine.channel_sums + kExchangeRow * (lane / 4) + lane % 4;
  float4 sum[2] = {from[0], from[4]};
#pragma unroll
  for (int pair = 2; pair < kGradPairs; pair++) sum[pair % 2] = sum[pair % 2] + from[4 * pair];
  return sum[0] + sum[1];
}

// Over the states, for the lane's pair at its step j. The order is turned by q: no two lanes then meet on a bank.
__device__ __forceinline__ float4 sum_states(const WarpShared& mine, const GradLane& at, int j) {
  const float4* from = mine.state_sums + kExchangeRow * (2 * at.q + j) + 4 * at.g;
  return (from[at.q] + from[at.q ^ 1]) + (from[at.q ^ 2] + from[at.q ^ 3]);
}
__device__ __forceinline__ float2 sum_states_s(const WarpShared& mine, const GradLane& at, int j) {
  const float4* from = reinterpret_cast<const float4*>(reinterpret_cast<const float2*>(mine.state_sums) +
                                                       kExchangeRow * (2 * at.q + j) + 4 * at.g);
  const float4 sum = from[at.q / 2] + from[1 - at.q / 2];
  return {sum.x + sum.z, sum.y + sum.w};
}

// ds into shared memory; what s is multiplied by for dz.
template <class T, bool kWhole>
__device__ __forceinline__ void open_gate(const ChunkView<T, kWhole>& view, WarpShared& mine, const Raw<T>& dy2,
                                          const Raw<T>& z2, float2 (&dz)[2]) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    float2 ds = dy2.at(j);
    if (view.p.z.data) {
      const float2 z = z2.at(j), sg = {sigmoid_fast(z.x), sigmoid_fast(z.y)}, dys = ds * sg;
      ds = dys * z;
      dz[j] = {dys.x * fmaf(z.x, 1.0f - sg.x, 1.0f), dys.y * fmaf(z.y, 1.0f - sg.y, 1.0f)};
    }
    mine.ds[2 * view.at.q + j][view.at.g] = ds;
  }
}

// Of softplus, from its value: 1 - exp(-dt), by its series where the difference would cancel.
__device__ __forceinline__ float softplus_slope(float dt) {
  const float series = dt * fmaf(dt, fmaf(dt, fmaf(dt, -1.0f / 24, 1.0f / 6), -0.5f), 1.0f);
  return dt < 0.03f ? series : 1.0f - exp2_fast(-kLog2e * dt);
}

template <class T, bool kWhole>
__device__ __forceinline__ void store_gate(const ChunkView<T, kWhole>& view, const WarpShared& mine, float2 D, int k,
                                           const Raw<T>& u, const float2 (&dz)[2]) {
  if (!view.p.dz.data) return;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const float2 s = view.add_passes(0, k, j, sum_states_s(mine, view.at, j));
    if (view.p.last_pass) view.store(view.p.dz, k, j, dz[j] * (s + D * u.at(j)));
  }
}

// du and ddelta of two steps of the lane's pair, and their part of dD and ddelta_bias.
template <class T, bool kWhole>
__device__ __forceinline__ void store_scalars(const ChunkView<T, kWhole>& view, const WarpShared& mine,
                                              const PairOf& params, int k, const Raw<T>& u2, PairOf& sums) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int in_sub = 2 * view.at.q + j;
    const float4 shares = sum_states(mine, view.at, j);
    const float2 gB = view.add_passes(1, k, j, {shares.x, shares.y});
    const float2 gA = view.add_passes(2, k, j, {shares.z, shares.w});
    if (!view.p.last_pass) continue;
    const float2 u = u2.at(j), ds = mine.ds[in_sub][view.at.g];
    const float4 step = mine.step[kSub * k + in_sub][view.at.g];
    float2 dw = {fmaf(kLn2, gA.x, u.x * gB.x), fmaf(kLn2, gA.y, u.y * gB.y)};
    if (view.p.softplus) {
      dw = dw * float2{softplus_slope(step.x), softplus_slope(step.z)};
    }
    view.store(view.p.du, k, j, {fmaf(step.x, gB.x, ds.x * params.D.x), fmaf(step.z, gB.y, ds.y * params.D.y)});
    view.store(view.p.ddelta, k, j, dw);
    sums.D = sums.D + ds * u;
    if (view.inside(k, j)) sums.bias = sums.bias + dw;
  }
}

// Brings B and C of a chunk into `raw` while the block works.
template <class T, int kWarps>
__device__ __forceinline__ void fetch_projections(const ScanGradArgs<T>& p, BlockShared<T, kWarps>& block, int64_t row,
                                                  int steps) {
  constexpr int kPieces = kGradStates * sizeof(T) / 16;
  for (int i = threadIdx.x; i < 2 * kGradChunk * kPieces; i += 32 * kWarps) {
    const int which = i / (kGradChunk * kPieces), t = i / kPieces % kGradChunk, piece = i % kPieces;
    const GradRows<const T>& rows = which ? p.C_in : p.B_in;
    const T* from = rows.data + (row + (t < steps ? t : 0)) * rows.stride + p.first_state + piece * (16 / sizeof(T));
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(&block.raw[which][t][piece * (16 / sizeof(T))]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(t < steps ? 16 : 0)
                 : "memory");
  }
}

template <class T, int kWarps>
__device__ __forceinline__ void widen_projections(const ScanGradArgs<T>& p, BlockShared<T, kWarps>& block, int64_t row,
                                                  int steps) {
  if (!p.vector_projections) {
    stage_projection(&block.B[0][0].x, p.B_in, row, steps, p.first_state, p.N);
    stage_projection(&block.C[0][0].x, p.C_in, row, steps, p.first_state, p.N);
    return;
  }
  float4* tiles = &block.B[0][0];
  for (int i = threadIdx.x; i < 2 * kGradChunk * 4; i += 32 * kWarps) {
    float v[4];
    load_vector<4>(&block.raw[0][0][0] + 4 * i, v);
    tiles[i] = {v[0], v[1], v[2], v[3]};
  }
}

__device__ __forceinline__ void prefetch(const float* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

template <class T, int kWarps, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps, 1) scan_grad_kernel(const __grid_constant__ ScanGradArgs<T> p) {
  extern __shared__ float4 shared_bytes[];
  BlockShared<T, kWarps>& block = *reinterpret_cast<BlockShared<T, kWarps>*>(shared_bytes);
  WarpShared& mine = block.warps[threadIdx.x / 32];

  const int64_t channel_block = blockIdx.x % p.channel_blocks;
  const int64_t part = blockIdx.x / p.channel_blocks, segment = part % p.segments, b = part / p.segments;
  const GradLane at((channel_block * kWarps + threadIdx.x / 32) * kGradChannels, p.E, p.first_state);
  const PairOf params = {p.D ? load_pair(p.D + at.channel, at.channels) : float2{},
                         p.delta_bias ? load_pair(p.delta_bias + at.channel, at.channels) : float2{}};
  PairOf sums = {};
  const int64_t first = segment * p.chunks_per_segment;
  const int64_t end = min(first + p.chunks_per_segment, p.chunks_per_batch);
  const auto row_of = [&](int64_t chunk) { return b * p.time + chunk * kGradChunk; };
  const auto steps_of = [&](int64_t chunk) {
    return static_cast<int>(min(int64_t{kGradChunk}, p.time - chunk * kGradChunk));
  };
  const auto state_of = [&](int64_t chunk) {
    return p.chunks.data + (b * p.chunks_per_batch + chunk) * p.chunks.stride + at.channel * p.N;
  };
  if (p.vector_projections) fetch_projections(p, block, row_of(end - 1), steps_of(end - 1));

  float A2[2][4], g[2][4], dA[2][4] = {};
  load_states(A2, p.A.data + at.channel * p.A.stride, p.A.stride, at, p.N, p.vector_states);
  for (auto& row : A2) {
    for (float& v : row) v *= kLog2e;
  }
  incoming_gradient(g, A2, p, b, end == p.chunks_per_batch ? p.pieces : end / p.chunks_per_piece, at);

#pragma unroll 1
  for (int64_t chunk = end - 1; chunk >= first; chunk--) {
    const int64_t row = row_of(chunk);
    const int steps = steps_of(chunk), sub_chunks = (steps + kSub - 1) / kSub;
    const ChunkView<T, kWhole> view(p, at, row, steps);
    float h[2][4];
    load_states(h, state_of(chunk), p.N, at, p.N, p.vector_states);
    const Raw<T> delta0 = view.load(p.delta, 0), u0 = view.load(p.u, 0);
    if (chunk > first && at.channels == 2 && at.state < p.N) {
      prefetch(state_of(chunk - 1) + at.state);
      prefetch(state_of(chunk - 1) + p.N + at.state);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    widen_projections(p, block, row, steps);
    __syncthreads();
    if (p.vector_projections && chunk > first) fetch_projections(p, block, row - kGradChunk, kGradChunk);
    const float4 *B_tile = &block.B[0][at.q], *C_tile = &block.C[0][at.q];
    reach_sub_chunks(view, mine, B_tile, params.bias, A2, h, sub_chunks, delta0, u0);
    Raw<T> dy = view.load(p.dy, sub_chunks - 1), z{};
    if (p.z.data) z = view.load(p.z, sub_chunks - 1);
#pragma unroll 1
    for (int k = sub_chunks - 1; k >= 0; k--) {
      float2 dz[2];
      open_gate(view, mine, dy, z, dz);
      const Raw<T> u = view.load(p.u, k);
      if (k > 0) {
        dy = view.load(p.dy, k - 1);
        if (p.z.data) z = view.load(p.z, k - 1);
      }
      __syncwarp();
      const float4 *step_rows = &mine.step[kSub * k][at.g], *B_rows = B_tile + 4 * kSub * k,
                   *C_rows = C_tile + 4 * kSub * k;
      const float2* ds_rows = &mine.ds[0][at.g];
      Track track;
      recompute(step_rows, B_rows, C_rows, ds_rows, &mine.slots[k][at.lane], mine.channel_sums + at.lane,
                reinterpret_cast<float2*>(mine.state_sums) + at.lane, A2, track);
      __syncwarp();
      mine.slots[k][32 + at.lane] = sum_channels(mine, at.lane);
      store_gate(view, mine, params.D, k, u, dz);
      __syncwarp();
      reverse(step_rows, B_rows, C_rows, ds_rows, mine.channel_sums + at.lane, mine.state_sums + at.lane, A2, track, g,
              dA);
      __syncwarp();
      mine.slots[k][at.lane] = sum_channels(mine, at.lane);
      store_scalars(view, mine, params, k, u, sums);
      __syncwarp();
    }
    __syncthreads();
    store_projection_sums<kWarps>(p, block.warps, channel_block, b, chunk);
  }
  store_parameter_sums(p, at, part, dA, sums.D, sums.bias);
  if (p.dstate.data && segment == 0) store_state_gradient(p, at, b, g);
}

template <class T, int kWarps, bool kWhole>
Status launch(const ScanGradArgs<T>& args, cudaStream_t stream) {
  const int bytes = sizeof(BlockShared<T, kWarps>);
  MB_CUDA(
      cudaFuncSetAttribute(scan_grad_kernel<T, kWarps, kWhole>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int64_t blocks = args.channel_blocks * args.segments * args.B;
  scan_grad_kernel<T, kWarps, kWhole><<<static_cast<unsigned>(blocks), 32 * kWarps, bytes, stream>>>(args);
  MB_CUDA_LAUNCHED("selective_scan_grad");
  return {};
}

}  // namespace

int scan_grad_warps(const Props& props) {
  return props.max_shared_per_block >= static_cast<int>(sizeof(BlockShared<float, 8>)) ? 8 : 3;
}

template <class T>
Status launch_scan_grad_main(const ScanGradArgs<T>& args, int warps, cudaStream_t stream) {
  if (args.whole) return warps == 8 ? launch<T, 8, true>(args, stream) : launch<T, 3, true>(args, stream);
  return warps == 8 ? launch<T, 8, false>(args, stream) : launch<T, 3, false>(args, stream);
}
template Status launch_scan_grad_main(const ScanGradArgs<float>&, int, cudaStream_t);
template Status launch_scan_grad_main(const ScanGradArgs<bf16>&, int, cudaStream_t);

}  // namespace mb::cuda
