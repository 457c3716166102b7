// The gradient of the selective scan, chunk by chunk from the end: states are recomputed from each chunk's start, then
// equations (4) to (6) of native/ref/selective_scan.h run backwards in registers.
//
// u, delta, z, dy, du, ddelta, dz(B,T,E); B, C(B,T,N); chunks(B,ceil(T/64),E*N); sums of dB and dC over a block's
// channels go to scratch (docs/math/selective-scan-gradient.md).
//
// Instructions a state and step, counted: 5.2 to reach every eighth state, 6.3 to recompute states and decays into
// registers, 7.5 backwards, 3.4 for the sums of dB and dC over channels, 1.1 for those over states, 2.6 for what is
// once a channel and step. Sums over lanes go through shared memory: a 16-byte store and load move four values, where
// shuffles would move one and need a select.
#include "check.h"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

// Rows of 36 vectors for 32 lanes keep the transposed reads free of bank conflicts.
constexpr int kExchangeRow = 36;

struct WarpShared {
  float4 step[kGradChunk][kGradPairs];             // dt, dt u of both channels
  float4 slots[kGradChunk / kGradSteps][64];       // state before a sub-chunk, later its sums for dB and dC
  float4 channel_sums[kGradSteps * kExchangeRow];  // (step, pair, 4 states)
  float4 state_sums[kGradSteps * kExchangeRow];    // (step, lane)
  float2 ds[kGradSteps][kGradPairs];
};

template <int kWarps>
constexpr int shared_bytes() {
  return 2 * kGradChunk * kGradStates * sizeof(float) + kWarps * sizeof(WarpShared);
}

// What a lane knows of its two channels.
struct PairParams {
  float2 D, bias;
};

template <class T>
struct ChunkView {
  const ScanGradArgs<T>& p;
  const GradLane& at;
  WarpShared& shared;
  const float4 *B_tile, *C_tile;
  int64_t row;  // of the chunk's first step
  int steps;

  __device__ __forceinline__ bool inside(int t) const { return t < steps; }
  template <class Rows>
  __device__ __forceinline__ float2 load(const Rows& rows, int t) const {
    return load_pair(rows.data + (row + t) * rows.stride + at.channel, p.paired, inside(t) ? at.channels : 0);
  }
  template <class Rows>
  __device__ __forceinline__ void store(const Rows& rows, int t, float2 v) const {
    store_pair(rows.data + (row + t) * rows.stride + at.channel, v, p.paired, inside(t) ? at.channels : 0);
  }
};

template <class T>
__device__ __forceinline__ void stage_steps(const ChunkView<T>& view, const PairParams& params, int k) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int t = kGradSteps * k + 2 * view.at.q + j;
    const float2 u = view.load(view.p.u, t);
    float2 dt = view.load(view.p.delta, t) + params.bias;
    if (view.p.softplus) dt = {softplus_fast(dt.x), softplus_fast(dt.y)};
    // A step past the end changes nothing: a = exp(0).
    if (!view.inside(t)) dt = {0.0f, 0.0f};
    view.shared.step[t][view.at.g] = {dt.x, dt.x * u.x, dt.y, dt.y * u.y};
  }
}

__device__ __forceinline__ void keep_state(float4* slot, const float (&h)[2][4], int lane) {
#pragma unroll
  for (int c = 0; c < 2; c++) slot[32 * c + lane] = {h[c][0], h[c][1], h[c][2], h[c][3]};
}

__device__ __forceinline__ void take_state(float (&h)[2][4], const float4* slot, int lane) {
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const float4 v = slot[32 * c + lane];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
}

// Fills the steps' dt and the state before each sub-chunk.
template <class T>
__device__ __forceinline__ void reach_sub_chunks(const ChunkView<T>& view, const PairParams& params,
                                                 const float (&A2)[2][4], float (&h)[2][4], int sub_chunks) {
  WarpShared& shared = view.shared;
  const GradLane& at = view.at;
#pragma unroll 1
  for (int k = 0; k < sub_chunks; k++) {
    stage_steps(view, params, k);
    keep_state(shared.slots[k], h, at.lane);
    __syncwarp();
    if (k + 1 == sub_chunks) break;
#pragma unroll
    for (int j = 0; j < kGradSteps; j++) {
      const int t = kGradSteps * k + j;
      const float4 step = shared.step[t][at.g];
      const float4 B4 = view.B_tile[4 * t + at.q];
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
  float a[kGradSteps][2][4], before[kGradSteps][2][4];
};

// Forwards through sub-chunk k; leaves the shares of dC in channel_sums and of s in state_sums.
template <class T>
__device__ __forceinline__ void recompute(const ChunkView<T>& view, const float (&A2)[2][4], int k, Track& track) {
  WarpShared& shared = view.shared;
  const GradLane& at = view.at;
  float h[2][4];
  take_state(h, shared.slots[k], at.lane);
  float2* s_sums = reinterpret_cast<float2*>(shared.state_sums);
#pragma unroll
  for (int j = 0; j < kGradSteps; j++) {
    const int t = kGradSteps * k + j;
    const float4 step = shared.step[t][at.g];
    const float2 ds = shared.ds[j][at.g];
    const float4 B4 = view.B_tile[4 * t + at.q], C4 = view.C_tile[4 * t + at.q];
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
    shared.channel_sums[kExchangeRow * j + at.lane] = {dC[0], dC[1], dC[2], dC[3]};
    s_sums[kExchangeRow * j + at.lane] = s;
  }
}

// Backwards through sub-chunk k; leaves the shares of dB in channel_sums, and per lane in state_sums those of
// sum_n g B of both channels and of sum_n g A2 a h of both.
template <class T>
__device__ __forceinline__ void reverse(const ChunkView<T>& view, const float (&A2)[2][4], int k, const Track& track,
                                        float (&g)[2][4], float (&dA)[2][4]) {
  WarpShared& shared = view.shared;
  const GradLane& at = view.at;
#pragma unroll
  for (int j = kGradSteps - 1; j >= 0; j--) {
    const int t = kGradSteps * k + j;
    const float4 step = shared.step[t][at.g];
    const float2 ds = shared.ds[j][at.g];
    const float4 B4 = view.B_tile[4 * t + at.q], C4 = view.C_tile[4 * t + at.q];
    const float B[4] = {B4.x, B4.y, B4.z, B4.w}, C[4] = {C4.x, C4.y, C4.z, C4.w};
    const float dt[2] = {step.x, step.z}, dtu[2] = {step.y, step.w}, dsc[2] = {ds.x, ds.y};
    float gB[2] = {0.0f, 0.0f}, gA[2] = {0.0f, 0.0f}, dB[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int c = 0; c < 2; c++) {
        g[c][i] = fmaf(dsc[c], C[i], g[c][i]);
        gB[c] = fmaf(g[c][i], B[i], gB[c]);
        dB[i] = c == 0 ? dtu[0] * g[0][i] : fmaf(dtu[1], g[1][i], dB[i]);
        g[c][i] *= track.a[j][c][i];
        const float gah = g[c][i] * track.before[j][c][i];
        gA[c] = fmaf(gah, A2[c][i], gA[c]);
        dA[c][i] = fmaf(gah, dt[c], dA[c][i]);
      }
    }
    shared.channel_sums[kExchangeRow * j + at.lane] = {dB[0], dB[1], dB[2], dB[3]};
    shared.state_sums[kExchangeRow * j + at.lane] = {gB[0], gB[1], gA[0], gA[1]};
  }
}

// Over the warp's channels: lane 4 step + n / 4 has the sums of its step and states.
__device__ __forceinline__ float4 sum_channels(const WarpShared& shared, int lane) {
  const float4* from = shared.channel_sums + kExchangeRow * (lane / 4) + lane % 4;
  float4 sum = from[0];
#pragma unroll
  for (int pair = 1; pair < kGradPairs; pair++) sum = sum + from[4 * pair];
  return sum;
}

// Over the states, for the lane's pair at step j of the sub-chunk. The order is turned by q: no two lanes then meet on
// a bank.
__device__ __forceinline__ float4 sum_states(const WarpShared& shared, const GradLane& at, int j) {
  const float4* from = shared.state_sums + kExchangeRow * j + 4 * at.g;
  float4 sum = from[at.q];
#pragma unroll
  for (int i = 1; i < 4; i++) sum = sum + from[(at.q + i) % 4];
  return sum;
}

__device__ __forceinline__ float2 sum_states_s(const WarpShared& shared, const GradLane& at, int j) {
  const float4* from =
      reinterpret_cast<const float4*>(reinterpret_cast<const float2*>(shared.state_sums) + kExchangeRow * j + 4 * at.g);
  const float4 sum = from[at.q / 2] + from[1 - at.q / 2];
  return {sum.x + sum.z, sum.y + sum.w};
}

// Where earlier passes over other states left sums; `which` of s, sum g B, sum g A2 a h.
template <class T>
__device__ __forceinline__ float2 add_passes(const ChunkView<T>& view, int which, int t, float2 sum) {
  const ScanGradArgs<T>& p = view.p;
  const GradRows<float> rows{p.passes + which * p.B * p.time * p.E, p.E};
  if (!p.first_pass) sum = sum + view.load(rows, t);
  if (!p.last_pass) view.store(rows, t, sum);
  return sum;
}

// The gate's part of two steps of the lane's pair: ds, and what s is multiplied by for dz.
struct Gate {
  float2 ds[2], dz[2];
};

template <class T>
__device__ __forceinline__ Gate gate_of(const ChunkView<T>& view, int k) {
  Gate gate;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int t = kGradSteps * k + 2 * view.at.q + j;
    const float2 dy = view.load(view.p.dy, t);
    gate.ds[j] = dy;
    if (view.p.z.data) {
      const float2 z = view.load(view.p.z, t);
      const float2 sg = {sigmoid_fast(z.x), sigmoid_fast(z.y)};
      gate.ds[j] = dy * z * sg;
      gate.dz[j] = {dy.x * sg.x * fmaf(z.x, 1.0f - sg.x, 1.0f), dy.y * sg.y * fmaf(z.y, 1.0f - sg.y, 1.0f)};
    }
    view.shared.ds[2 * view.at.q + j][view.at.g] = gate.ds[j];
  }
  return gate;
}

template <class T>
__device__ __forceinline__ void store_gate(const ChunkView<T>& view, const PairParams& params, int k,
                                           const Gate& gate) {
  if (!view.p.dz.data) return;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int in_sub = 2 * view.at.q + j, t = kGradSteps * k + in_sub;
    float2 s = add_passes(view, 0, t, sum_states_s(view.shared, view.at, in_sub));
    if (view.p.last_pass) view.store(view.p.dz, t, gate.dz[j] * (s + params.D * view.load(view.p.u, t)));
  }
}

__device__ __forceinline__ float softplus_slope(float w) { return w > 20.0f ? 1.0f : sigmoid_fast(w); }

// du and ddelta of two steps of the lane's pair, and their part of dD and ddelta_bias.
template <class T>
__device__ __forceinline__ void store_scalars(const ChunkView<T>& view, const PairParams& params, int k,
                                              const Gate& gate, float2& dD, float2& dbias) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int in_sub = 2 * view.at.q + j, t = kGradSteps * k + in_sub;
    const float4 sums = sum_states(view.shared, view.at, in_sub);
    const float2 gB = add_passes(view, 1, t, {sums.x, sums.y});
    const float2 gA = add_passes(view, 2, t, {sums.z, sums.w});
    if (!view.p.last_pass) continue;
    const float2 u = view.load(view.p.u, t);
    const float4 step = view.shared.step[t][view.at.g];
    const float2 ds = gate.ds[j];
    float2 dw = {fmaf(kLn2, gA.x, u.x * gB.x), fmaf(kLn2, gA.y, u.y * gB.y)};
    if (view.p.softplus) {
      const float2 w = view.load(view.p.delta, t) + params.bias;
      dw = dw * float2{softplus_slope(w.x), softplus_slope(w.y)};
    }
    view.store(view.p.du, t, {fmaf(step.x, gB.x, ds.x * params.D.x), fmaf(step.z, gB.y, ds.y * params.D.y)});
    view.store(view.p.ddelta, t, dw);
    dD = dD + ds * u;
    if (view.inside(t)) dbias = dbias + dw;
  }
}

template <class T>
__device__ __forceinline__ PairParams pair_params(const ScanGradArgs<T>& p, const GradLane& at) {
  return {p.D ? load_pair(p.D + at.channel, false, at.channels) : float2{},
          p.delta_bias ? load_pair(p.delta_bias + at.channel, false, at.channels) : float2{}};
}

template <class T, int kWarps>
__global__ void __launch_bounds__(32 * kWarps) scan_grad_kernel(const __grid_constant__ ScanGradArgs<T> p) {
  extern __shared__ float4 shared_bytes_[];
  float* B_tile = reinterpret_cast<float*>(shared_bytes_);
  float* C_tile = B_tile + kGradChunk * kGradStates;
  WarpShared* warps = reinterpret_cast<WarpShared*>(C_tile + kGradChunk * kGradStates);
  WarpShared& mine = warps[threadIdx.x / 32];

  const int64_t channel_block = blockIdx.x % p.channel_blocks;
  const int64_t part = blockIdx.x / p.channel_blocks, segment = part % p.segments, b = part / p.segments;
  const GradLane at((channel_block * kWarps + threadIdx.x / 32) * kGradChannels, p.E, p.first_state);
  const PairParams params = pair_params(p, at);
  float A2[2][4], g[2][4], dA[2][4] = {};
  load_states(A2, p.A.data + at.channel * p.A.stride, p.A.stride, at, p.N, p.vector_states);
  for (auto& row : A2) {
    for (float& v : row) v *= kLog2e;
  }
  const int64_t first = segment * p.chunks_per_segment;
  const int64_t end = min(first + p.chunks_per_segment, p.chunks_per_batch);
  incoming_gradient(g, A2, p, b, end == p.chunks_per_batch ? p.pieces : end / p.chunks_per_piece, at);
  float2 dD = {0.0f, 0.0f}, dbias = {0.0f, 0.0f};

#pragma unroll 1
  for (int64_t chunk = end - 1; chunk >= first; chunk--) {
    const int64_t row = b * p.time + chunk * kGradChunk;
    const int steps = static_cast<int>(min(int64_t{kGradChunk}, p.time - chunk * kGradChunk));
    const int sub_chunks = (steps + kGradSteps - 1) / kGradSteps;
    stage_projection(B_tile, p.B_in, row, steps, p.first_state, p.N);
    stage_projection(C_tile, p.C_in, row, steps, p.first_state, p.N);
    __syncthreads();
    const ChunkView<T> view{
        p, at, mine, reinterpret_cast<const float4*>(B_tile), reinterpret_cast<const float4*>(C_tile), row, steps};
    float h[2][4];
    load_states(h, p.chunks.data + (b * p.chunks_per_batch + chunk) * p.chunks.stride + at.channel * p.N, p.N, at, p.N,
                p.vector_states);
    reach_sub_chunks(view, params, A2, h, sub_chunks);
#pragma unroll 1
    for (int k = sub_chunks - 1; k >= 0; k--) {
      const Gate gate = gate_of(view, k);
      __syncwarp();
      Track track;
      recompute(view, A2, k, track);
      __syncwarp();
      mine.slots[k][32 + at.lane] = sum_channels(mine, at.lane);
      store_gate(view, params, k, gate);
      __syncwarp();
      reverse(view, A2, k, track, g, dA);
      __syncwarp();
      mine.slots[k][at.lane] = sum_channels(mine, at.lane);
      store_scalars(view, params, k, gate, dD, dbias);
      __syncwarp();
    }
    __syncthreads();
    store_projection_sums(p, warps, kWarps, channel_block, b, chunk);
    __syncthreads();
  }
  store_parameter_sums(p, at, part, dA, dD, dbias);
  if (p.dstate.data && segment == 0) store_state_gradient(p, at, b, g);
}

template <class T, int kWarps>
Status launch(const ScanGradArgs<T>& args, cudaStream_t stream) {
  MB_CUDA(cudaFuncSetAttribute(scan_grad_kernel<T, kWarps>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_bytes<kWarps>()));
  const int64_t blocks = args.channel_blocks * args.segments * args.B;
  scan_grad_kernel<T, kWarps><<<static_cast<unsigned>(blocks), 32 * kWarps, shared_bytes<kWarps>(), stream>>>(args);
  MB_CUDA_LAUNCHED("selective_scan_grad");
  return {};
}

}  // namespace

int scan_grad_warps(const Props& props) { return props.max_shared_per_block >= shared_bytes<8>() ? 8 : 3; }

template <class T>
Status launch_scan_grad_main(const ScanGradArgs<T>& args, int warps, cudaStream_t stream) {
  return warps == 8 ? launch<T, 8>(args, stream) : launch<T, 3>(args, stream);
}
template Status launch_scan_grad_main(const ScanGradArgs<float>&, int, cudaStream_t);
template Status launch_scan_grad_main(const ScanGradArgs<bf16>&, int, cudaStream_t);

}  // namespace mb::cuda
