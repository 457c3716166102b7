// The gradient of the selective scan, chunk by chunk from the end: states are recomputed from each chunk's start, then
// equations (4) to (6) of native/ref/selective_scan.h run backwards in registers.
//
// u, delta, z, dy, du, ddelta, dz(B,T,E); B, C(B,T,N); chunks(B,ceil(T/64),E*N); sums of dB and dC over a block's
// channels go to scratch (docs/math/selective-scan-gradient.md).
//
// Instructions a state and step of the bf16 kernel, counted: 4.3 to reach every eighth state and 21.5 for the rest; the
// special function unit is busy 17 cycles of theirs. All sums over lanes go through shared memory, where a 16-byte
// store and load move four values: a shuffle moves one and needs a select, and tensor cores take tf32, so that f32's
// accuracy asks for every value in two parts. States and decays of a sub-chunk take 128 registers of a thread: with
// what else lives as long, a multiprocessor holds 8 warps, not 12.
#include <algorithm>

#include "check.h"
#include "copy.cuh"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

constexpr int kSub = kGradSteps;
// Row lengths that keep a lane's own steps, and the transposed reads, free of bank conflicts.
// (f32 has no room for the first.)
template <class T>
constexpr int kStepRow = kGradPairs + (sizeof(T) == 2);
constexpr int kSlopeRow = kGradPairs + 2, kExchangeRow = 36;
// Elements of 16 bytes.
template <class T>
constexpr int kPiece = 16 / sizeof(T);

// Shares of a sum over states at two neighbouring steps, for both channels of a pair: (steps, cell of the lane).
using StateShares = float4[kSub / 2][32];

// Where lanes leave their shares of sums, for whoever owns a sum to add.
struct Exchange {
  float4 channels[kSub * kExchangeRow];  // (step, cell of the lane)
  StateShares states[2];
};

template <class T>
struct WarpShared {
  float4 step[kGradChunk][kStepRow<T>];  // dt, dt u of both channels
  float4 slots[kGradChunk / kSub][64];   // state before a sub-chunk, later its sums for dB and dC
  Exchange exchange;
  float2 ds[kSub][kSlopeRow];
  float4 dz[32];  // what a lane's s is multiplied by for dz
};

template <class T, int kWarps>
struct BlockShared {
  float4 B[kGradChunk][4], C[kGradChunk][4];
  T raw[2][kGradChunk][kGradStates];  // B and C of the chunk to come
  WarpShared<T> warps[kWarps];
};

// What belongs to a lane's two channels: parameters, or sums over all steps.
struct PairOf {
  float2 D, bias;
};

template <class T, bool kWhole>
__device__ __forceinline__ void stage_steps(const ChunkView<T, kWhole>& view, WarpShared<T>& mine, float2 bias, int k,
                                            const Raw<T>& delta, const Raw<T>& u) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const float2 x = u.at(j);
    float2 dt = delta.at(j) + bias;
    // Selected rather than branched on: the four values of a lane then run side by side.
    const float2 soft = {softplus_fast(dt.x), softplus_fast(dt.y)};
    dt = {view.p.softplus ? soft.x : dt.x, view.p.softplus ? soft.y : dt.y};
    // A step past the end changes nothing: a = exp(0).
    if (!view.inside(k, j)) dt = {0.0f, 0.0f};
    mine.step[kSub * k + 2 * view.at.q + j][view.at.g] = {dt.x, dt.x * x.x, dt.y, dt.y * x.y};
  }
}

// Of a step, for the lane's states. The special function unit is slow: callers ask for the next step's before they use
// those of this one.
__device__ __forceinline__ void decays(float (&a)[2][4], const float4& step, const float (&A2)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    a[0][i] = exp2_fast(step.x * A2[0][i]);
    a[1][i] = exp2_fast(step.z * A2[1][i]);
  }
}

// Fills the steps' dt and the state before each sub-chunk. delta, u: of sub-chunk 0.
template <class T, bool kWhole>
__device__ __forceinline__ void reach_sub_chunks(const ChunkView<T, kWhole>& view, WarpShared<T>& mine,
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
    const auto step_row = [&](int j) { return mine.step[kSub * k + j][at.g]; };
    float4 step = step_row(0), next = step_row(1);
    float a[2][4], a_next[2][4];
    decays(a, step, A2);
#pragma unroll
    for (int j = 0; j < kSub; j++) {
      const float4 B4 = B_tile[4 * (kSub * k + j)];
      const float B[4] = {B4.x, B4.y, B4.z, B4.w};
      if (j + 1 < kSub) decays(a_next, next, A2);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        h[0][i] = fmaf(a[0][i], h[0][i], step.y * B[i]);
        h[1][i] = fmaf(a[1][i], h[1][i], step.w * B[i]);
        a[0][i] = a_next[0][i], a[1][i] = a_next[1][i];
      }
      step = next;
      if (j + 2 < kSub) next = step_row(j + 2);
    }
  }
}

// States before, and decays of, the steps of one sub-chunk.
struct Track {
  float a[kSub][2][4], before[kSub][2][4];
};

// What a step reads from shared memory, loaded a step ahead: the compiler does not move loads over stores.
struct StepInputs {
  float4 step, B, C;
  float2 ds;
};
template <class T>
struct StepRows {
  const float4 *step, *B, *C;
  const float2* ds;
  __device__ __forceinline__ StepInputs load(int j) const { return load(j, step[kStepRow<T> * j]); }
  __device__ __forceinline__ StepInputs load(int j, const float4& of_step) const {
    return {of_step, B[4 * j], C[4 * j], ds[kSlopeRow * j]};
  }
};

// Sums over states of one quantity for the lane's pair at the lane's steps.
struct PairSteps {
  float2 v[2];
};

// The lane's share of the sums over states of v times a projection.
__device__ __forceinline__ float2 share_of(const float (&v)[2][4], const float (&projection)[4]) {
  float share[2];
#pragma unroll
  for (int c = 0; c < 2; c++) {
    share[c] = v[c][0] * projection[0];
#pragma unroll
    for (int i = 1; i < 4; i++) share[c] = fmaf(v[c][i], projection[i], share[c]);
  }
  return {share[0], share[1]};
}

__device__ __forceinline__ float4 join(float2 even_step, float2 odd_step) {
  return {even_step.x, even_step.y, odd_step.x, odd_step.y};
}

// Over the warp's channels: lane 4 step + n / 4 has the sums of its step and states.
__device__ __forceinline__ float4 sum_channels(const Exchange& exchange, const GradLane& at) {
  const float4* from = exchange.channels + kExchangeRow * (at.lane / 4) + at.lane % 4;
  float4 sum[2] = {from[0], from[4]};
#pragma unroll
  for (int pair = 2; pair < kGradPairs; pair++) sum[pair % 2] = sum[pair % 2] + from[4 * pair];
  return sum[0] + sum[1];
}

// Over the states, from what the four lanes of a pair left. The order is turned by q: no two lanes then meet on a bank.
__device__ __forceinline__ PairSteps sum_states(const StateShares& shares, const GradLane& at) {
  const float4* from = shares[at.q] + 4 * at.g;
  const float4 sum = (from[at.q] + from[at.q ^ 1]) + (from[at.q ^ 2] + from[at.q ^ 3]);
  return {{{sum.x, sum.y}, {sum.z, sum.w}}};
}

// Forwards; leaves the shares of dC and of s.
template <class T>
__device__ __forceinline__ void recompute(const StepRows<T>& rows, WarpShared<T>& mine, const GradLane& at,
                                          const float4* start, const float (&A2)[2][4], Track& track) {
  float h[2][4];
  float2 held;
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const float4 v = start[32 * c];
    h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
  }
  StepInputs next = rows.load(0);
  float4 step_after = rows.step[kStepRow<T>];
  decays(track.a[0], next.step, A2);
#pragma unroll
  for (int j = 0; j < kSub; j++) {
    const StepInputs in = next;
    if (j + 1 < kSub) {
      next = rows.load(j + 1, step_after);
      decays(track.a[j + 1], next.step, A2);
    }
    if (j + 2 < kSub) step_after = rows.step[kStepRow<T> * (j + 2)];
    const float B[4] = {in.B.x, in.B.y, in.B.z, in.B.w}, C[4] = {in.C.x, in.C.y, in.C.z, in.C.w};
    float dC[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      track.before[j][0][i] = h[0][i];
      track.before[j][1][i] = h[1][i];
      h[0][i] = fmaf(track.a[j][0][i], h[0][i], in.step.y * B[i]);
      h[1][i] = fmaf(track.a[j][1][i], h[1][i], in.step.w * B[i]);
      dC[i] = fmaf(in.ds.x, h[0][i], in.ds.y * h[1][i]);
    }
    mine.exchange.channels[kExchangeRow * j + at.cell] = {dC[0], dC[1], dC[2], dC[3]};
    const float2 s = share_of(h, C);
    if (j % 2 == 0) {
      held = s;
    } else {
      mine.exchange.states[0][j / 2][at.cell] = join(held, s);
    }
  }
}

// Backwards; leaves the shares of dB and of the sums over states of g B and of g A2 a h.
template <class T>
__device__ __forceinline__ void reverse(const StepRows<T>& rows, WarpShared<T>& mine, const GradLane& at,
                                        const float (&A2)[2][4], const Track& track, float (&g)[2][4],
                                        float (&dA)[2][4]) {
  float2 held_gB, held_gA;
  StepInputs next = rows.load(kSub - 1);
#pragma unroll
  for (int j = kSub - 1; j >= 0; j--) {
    const StepInputs in = next;
    if (j > 0) next = rows.load(j - 1);
    const float B[4] = {in.B.x, in.B.y, in.B.z, in.B.w}, C[4] = {in.C.x, in.C.y, in.C.z, in.C.w};
    const float dt[2] = {in.step.x, in.step.z}, dtu[2] = {in.step.y, in.step.w}, ds[2] = {in.ds.x, in.ds.y};
    float gA[2], dB[4];
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        g[c][i] = fmaf(ds[c], C[i], g[c][i]);
        dB[i] = c == 0 ? dtu[0] * g[0][i] : fmaf(dtu[1], g[1][i], dB[i]);
      }
    }
    mine.exchange.channels[kExchangeRow * j + at.cell] = {dB[0], dB[1], dB[2], dB[3]};
    const float2 gB = share_of(g, B);
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        g[c][i] *= track.a[j][c][i];
        const float gah = g[c][i] * track.before[j][c][i];
        gA[c] = i == 0 ? gah * A2[c][0] : fmaf(gah, A2[c][i], gA[c]);
        dA[c][i] = fmaf(gah, dt[c], dA[c][i]);
      }
    }
    if (j % 2 == 1) {
      held_gB = gB, held_gA = {gA[0], gA[1]};
    } else {
      mine.exchange.states[0][j / 2][at.cell] = join(gB, held_gB);
      mine.exchange.states[1][j / 2][at.cell] = join({gA[0], gA[1]}, held_gA);
    }
  }
}

// ds and the factors of dz into shared memory.
template <class T, bool kWhole>
__device__ __forceinline__ void open_gate(const ChunkView<T, kWhole>& view, WarpShared<T>& mine, const Raw<T>& dy2,
                                          const Raw<T>& z2) {
  float2 dz[2];
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const float2 dy = dy2.at(j), z = z2.at(j), sg = {sigmoid_fast(z.x), sigmoid_fast(z.y)}, dys = dy * sg;
    dz[j] = {dys.x * fmaf(z.x, 1.0f - sg.x, 1.0f), dys.y * fmaf(z.y, 1.0f - sg.y, 1.0f)};
    const bool gated = view.p.z.data != nullptr;
    const float2 ds = {gated ? dys.x * z.x : dy.x, gated ? dys.y * z.y : dy.y};
    mine.ds[2 * view.at.q + j][view.at.g] = ds;
  }
  mine.dz[view.at.lane] = {dz[0].x, dz[0].y, dz[1].x, dz[1].y};
}

// Of softplus, from its value: 1 - exp(-dt), by its series where the difference would cancel.
__device__ __forceinline__ float softplus_slope(float dt) {
  const float series = dt * fmaf(dt, fmaf(dt, fmaf(dt, -1.0f / 24, 1.0f / 6), -0.5f), 1.0f);
  return dt < 0.03f ? series : 1.0f - exp2_fast(-kLog2e * dt);
}

template <class T, bool kWhole>
__device__ __forceinline__ void store_gate(const ChunkView<T, kWhole>& view, float2 D, int k, const Raw<T>& u,
                                           const float4& factors, const PairSteps& sums) {
  if (!view.p.dz.data) return;
  const float2 dz[2] = {{factors.x, factors.y}, {factors.z, factors.w}};
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const float2 s = view.add_passes(0, k, j, sums.v[j]);
    if (view.p.last_pass) view.store(view.p.dz, k, j, dz[j] * (s + D * u.at(j)));
  }
}

// du and ddelta of two steps of the lane's pair, and their part of dD and ddelta_bias.
template <class T, bool kWhole>
__device__ __forceinline__ void store_scalars(const ChunkView<T, kWhole>& view, const WarpShared<T>& mine,
                                              const PairOf& params, int k, const Raw<T>& u2, const PairSteps& gB_sums,
                                              const PairSteps& gA_sums, PairOf& sums) {
  constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int in_sub = 2 * view.at.q + j;
    const float2 gB = view.add_passes(1, k, j, gB_sums.v[j]);
    const float2 gA = view.add_passes(2, k, j, gA_sums.v[j]);
    if (!view.p.last_pass) continue;
    const float2 u = u2.at(j), ds = mine.ds[in_sub][view.at.g];
    const float4 step = mine.step[kSub * k + in_sub][view.at.g];
    const bool softplus = view.p.softplus;
    const float2 slope = {softplus ? softplus_slope(step.x) : 1.0f, softplus ? softplus_slope(step.z) : 1.0f};
    const float2 dw = slope * float2{fmaf(kLn2, gA.x, u.x * gB.x), fmaf(kLn2, gA.y, u.y * gB.y)};
    view.store(view.p.du, k, j, {fmaf(step.x, gB.x, ds.x * params.D.x), fmaf(step.z, gB.y, ds.y * params.D.y)});
    view.store(view.p.ddelta, k, j, dw);
    sums.D = sums.D + ds * u;
    const bool inside = view.inside(k, j);
    sums.bias = sums.bias + float2{inside ? dw.x : 0.0f, inside ? dw.y : 0.0f};
  }
}

// Brings B and C of a chunk into `raw` while the block works.
template <class T, int kWarps>
__device__ __forceinline__ void fetch_projections(const ScanGradArgs<T>& p, BlockShared<T, kWarps>& block, int64_t row,
                                                  int steps) {
  constexpr int kPieces = kGradStates / kPiece<T>;
  for (int i = threadIdx.x; i < 2 * kGradChunk * kPieces; i += 32 * kWarps) {
    const int which = i / (kGradChunk * kPieces), t = i / kPieces % kGradChunk;
    const GradRows<const T>& rows = which ? p.C_in : p.B_in;
    const T* from = rows.data + (row + (t < steps ? t : 0)) * rows.stride + p.first_state + i % kPieces * kPiece<T>;
    copy_async<16>(&block.raw[0][0][0] + i * kPiece<T>, from, t < steps ? 16 : 0);
  }
}

// Makes the tiles of a chunk; a thread widens what it has fetched itself, so this needs no barrier before it.
template <class T, int kWarps>
__device__ __forceinline__ void widen_projections(const ScanGradArgs<T>& p, BlockShared<T, kWarps>& block, int64_t row,
                                                  int steps) {
  if (!p.vector_projections) {
    stage_projection(&block.B[0][0].x, p.B_in, row, steps, p.first_state, p.N);
    stage_projection(&block.C[0][0].x, p.C_in, row, steps, p.first_state, p.N);
    return;
  }
  wait_for_copies();
  for (int i = threadIdx.x; i < 2 * kGradChunk * kGradStates / kPiece<T>; i += 32 * kWarps) {
    float v[kPiece<T>];
    load_vector<kPiece<T>>(&block.raw[0][0][0] + i * kPiece<T>, v);
    store_vector<kPiece<T>>(&block.B[0][0].x + i * kPiece<T>, v);
  }
}

// What a chunk begins with, loaded before the one after it is done.
template <class T>
struct ChunkStart {
  float h[2][4];
  Raw<T> delta, u;  // of the first sub-chunk
  Raw<T> dy, z;     // of the last one
};

template <class T, int kWarps, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps, 1) scan_grad_kernel(const __grid_constant__ ScanGradArgs<T> p) {
  extern __shared__ float4 shared_bytes[];
  BlockShared<T, kWarps>& block = *reinterpret_cast<BlockShared<T, kWarps>*>(shared_bytes);
  WarpShared<T>& mine = block.warps[threadIdx.x / 32];

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

  const auto start_of = [&](int64_t chunk) {
    const int steps = steps_of(chunk);
    const ChunkView<T, kWhole> view(p, at, row_of(chunk), steps);
    const int last = (steps - 1) / kSub;
    ChunkStart<T> start;
    load_states(start.h, state_of(chunk), p.N, at, p.N, p.vector_states);
    start.delta = view.load(p.delta, 0), start.u = view.load(p.u, 0);
    start.dy = view.load(p.dy, last), start.z = view.load_optional(p.z, last);
    return start;
  };
  ChunkStart<T> start = start_of(end - 1);
  widen_projections(p, block, row_of(end - 1), steps_of(end - 1));

#pragma unroll 1
  for (int64_t chunk = end - 1; chunk >= first; chunk--) {
    const int64_t row = row_of(chunk);
    const int steps = steps_of(chunk), sub_chunks = (steps + kSub - 1) / kSub;
    const ChunkView<T, kWhole> view(p, at, row, steps);
    if (chunk > first && at.channels == 2 && at.state < p.N) {
      prefetch_line(state_of(chunk - 1) + at.state);
      prefetch_line(state_of(chunk - 1) + p.N + at.state);
    }
    // The tiles are there, and the slots have been read.
    __syncthreads();
    if (p.vector_projections && chunk > first) fetch_projections(p, block, row - kGradChunk, kGradChunk);
    const float4 *B_tile = &block.B[0][at.q], *C_tile = &block.C[0][at.q];
    reach_sub_chunks(view, mine, B_tile, params.bias, A2, start.h, sub_chunks, start.delta, start.u);
    Raw<T> dy = start.dy, z = start.z;
#pragma unroll 1
    for (int k = sub_chunks - 1; k >= 0; k--) {
      open_gate(view, mine, dy, z);
      const Raw<T> u = view.load(p.u, k);
      if (k > 0) {
        dy = view.load(p.dy, k - 1);
        z = view.load_optional(p.z, k - 1);
      }
      __syncwarp();
      const StepRows<T> rows{&mine.step[kSub * k][at.g], B_tile + 4 * kSub * k, C_tile + 4 * kSub * k,
                             &mine.ds[0][at.g]};
      Track track;
      recompute(rows, mine, at, &mine.slots[k][at.lane], A2, track);
      __syncwarp();
      mine.slots[k][32 + at.lane] = sum_channels(mine.exchange, at);
      store_gate(view, params.D, k, u, mine.dz[at.lane], sum_states(mine.exchange.states[0], at));
      __syncwarp();
      reverse(rows, mine, at, A2, track, g, dA);
      __syncwarp();
      mine.slots[k][at.lane] = sum_channels(mine.exchange, at);
      const PairSteps gB = sum_states(mine.exchange.states[0], at), gA = sum_states(mine.exchange.states[1], at);
      store_scalars(view, mine, params, k, u, gB, gA, sums);
      __syncwarp();
    }
    if (chunk > first) start = start_of(chunk - 1);
    __syncthreads();
    store_projection_sums<kWarps>(p, block.warps, channel_block, b, chunk);
    if (chunk > first) widen_projections(p, block, row - kGradChunk, kGradChunk);
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
  constexpr size_t kBytes = std::max(sizeof(BlockShared<float, 8>), sizeof(BlockShared<bf16, 8>));
  return props.max_shared_per_block >= static_cast<int>(kBytes) ? 8 : 3;
}

template <class T>
Status launch_scan_grad_main(const ScanGradArgs<T>& args, int warps, cudaStream_t stream) {
  if (args.whole) return warps == 8 ? launch<T, 8, true>(args, stream) : launch<T, 3, true>(args, stream);
  return warps == 8 ? launch<T, 8, false>(args, stream) : launch<T, 3, false>(args, stream);
}
template Status launch_scan_grad_main(const ScanGradArgs<float>&, int, cudaStream_t);
template Status launch_scan_grad_main(const ScanGradArgs<bf16>&, int, cudaStream_t);

}  // namespace mb::cuda
