// What each piece of the time axis sends back to the steps before it, with nothing coming in from behind: its gradient
// of the state at its start, and the sum of its steps dt, from which the decay follows
// (docs/math/selective-scan-gradient.md (3)). This makes pieces independent, so that few sequences fill the chip.
#include "check.h"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

constexpr int kWarps = 8;

// What a sub-chunk reads, fetched one ahead.
template <class T>
struct Inputs {
  Raw<T> delta, dy, z;
};

template <class T, bool kWhole>
__device__ __forceinline__ Inputs<T> fetch(const ChunkView<T, kWhole>& view, int k) {
  return {view.load(view.p.delta, k), view.load(view.p.dy, k), view.load_optional(view.p.z, k)};
}

// dt and ds of both channels of the lane's pair at two steps of sub-chunk k; sums dt.
template <class T, bool kWhole>
__device__ __forceinline__ void stage_steps(const ChunkView<T, kWhole>& view, float4 (*step)[kGradPairs], float2 bias,
                                            int k, const Inputs<T>& in, float2& time) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    float2 dt = in.delta.at(j) + bias;
    if (view.p.softplus) dt = {softplus_fast(dt.x), softplus_fast(dt.y)};
    if (!view.inside(k, j)) dt = {0.0f, 0.0f};
    const float2 dy = in.dy.at(j), z = in.z.at(j);
    const bool gated = view.p.z.data != nullptr;
    const float2 ds = {gated ? dy.x * z.x * sigmoid_fast(z.x) : dy.x, gated ? dy.y * z.y * sigmoid_fast(z.y) : dy.y};
    time = time + dt;
    step[2 * view.at.q + j][view.at.g] = {dt.x, dt.y, ds.x, ds.y};
  }
}

// Backwards through a sub-chunk: g <- a (g + ds C).
__device__ __forceinline__ void reverse(const float4* __restrict__ steps, const float4* __restrict__ Cs,
                                        const float (&A2)[2][4], float (&g)[2][4]) {
#pragma unroll
  for (int j = kGradSteps - 1; j >= 0; j--) {
    const float4 s = steps[kGradPairs * j], C4 = Cs[4 * j];
    const float C[4] = {C4.x, C4.y, C4.z, C4.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      g[0][i] = fmaf(s.z, C[i], g[0][i]) * exp2_fast(s.x * A2[0][i]);
      g[1][i] = fmaf(s.w, C[i], g[1][i]) * exp2_fast(s.y * A2[1][i]);
    }
  }
}

template <class T, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps)
    scan_grad_pieces_kernel(const __grid_constant__ ScanGradArgs<T> p, int64_t channel_blocks, int64_t first_piece) {
  __shared__ float4 C_tile[kGradChunk * kGradStates / 4];
  __shared__ float4 steps_of[kWarps][2][kGradSteps][kGradPairs];
  const int64_t channel_block = blockIdx.x % channel_blocks;
  const int64_t pieces = p.pieces - first_piece;
  const int64_t piece = first_piece + blockIdx.x / channel_blocks % pieces, b = blockIdx.x / channel_blocks / pieces;
  const GradLane at((channel_block * kWarps + threadIdx.x / 32) * kGradChannels, p.E, p.first_state);
  const float2 bias = p.delta_bias ? load_pair(p.delta_bias + at.channel, at.channels) : float2{};
  float A2[2][4], g[2][4] = {};
  load_states(A2, p.A.data + at.channel * p.A.stride, p.A.stride, at, p.N, p.vector_states);
  for (auto& row : A2) {
    for (float& v : row) v *= kLog2e;
  }
  float2 time = {0.0f, 0.0f};

  const int64_t first = piece * p.chunks_per_piece, end = min(first + p.chunks_per_piece, p.chunks_per_batch);
#pragma unroll 1
  for (int64_t chunk = end - 1; chunk >= first; chunk--) {
    const int64_t row = b * p.time + chunk * kGradChunk;
    const int steps = static_cast<int>(min(int64_t{kGradChunk}, p.time - chunk * kGradChunk));
    __syncthreads();
    stage_projection(reinterpret_cast<float*>(C_tile), p.C_in, row, steps, p.first_state, p.N);
    __syncthreads();
    const ChunkView<T, kWhole> view(p, at, row, steps);
    int k = (steps - 1) / kGradSteps;
    Inputs<T> in = fetch(view, k);
#pragma unroll 1
    for (; k >= 0; k--) {
      // Two buffers: a lane may still read the last sub-chunk's.
      float4(*step)[kGradPairs] = steps_of[threadIdx.x / 32][k % 2];
      stage_steps(view, step, bias, k, in, time);
      __syncwarp();
      if (k > 0) in = fetch(view, k - 1);
      reverse(&step[0][at.g], C_tile + 4 * kGradSteps * k + at.q, A2, g);
    }
  }
  const int64_t out = (b * p.pieces + piece) * p.E + at.channel;
#pragma unroll
  for (int c = 0; c < 2; c++) {
    if (c >= at.channels) continue;
    reinterpret_cast<float4*>(p.piece_end + (out + c) * kGradStates)[at.q] = {g[c][0], g[c][1], g[c][2], g[c][3]};
  }
  time = {quad_sum(time.x), quad_sum(time.y)};
  if (at.q == 0) store_pair(p.piece_time + out, time, at.channels);
}

}  // namespace

template <class T>
Status launch_scan_grad_pieces(const ScanGradArgs<T>& args, cudaStream_t stream) {
  const int64_t channel_blocks = ceil_div(args.E, kWarps * kGradChannels);
  const int64_t first_piece = args.chunks_per_segment / args.chunks_per_piece;
  const int64_t blocks = channel_blocks * (args.pieces - first_piece) * args.B;
  const auto kernel = args.whole ? scan_grad_pieces_kernel<T, true> : scan_grad_pieces_kernel<T, false>;
  kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, stream>>>(args, channel_blocks, first_piece);
  MB_CUDA_LAUNCHED("selective_scan_grad");
  return {};
}
template Status launch_scan_grad_pieces(const ScanGradArgs<float>&, cudaStream_t);
template Status launch_scan_grad_pieces(const ScanGradArgs<bf16>&, cudaStream_t);

}  // namespace mb::cuda
