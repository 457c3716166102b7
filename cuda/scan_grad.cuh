// Operands and tile sizes shared by the kernels of the selective scan's gradient; docs/math/selective-scan-gradient.md
// has the equations and the meaning of segments and pieces.
//
// A warp owns 16 channels times 16 states. Lane (g, q), g < 8, q < 4, holds the states 4 q .. 4 q + 3 of the channel
// pair 2 g, 2 g + 1, and looks after that pair's scalars at the steps 2 q, 2 q + 1 of every sub-chunk of 8. The lane's
// number has g's lowest bit in front of q's two: what is read by g alone or by q alone is then the same for neighbours
// or next-but-ones, which shared memory serves twice as fast.
#pragma once
#include <type_traits>

#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda {

constexpr int kGradChunk = 64;     // steps between the states that the forward pass keeps
constexpr int kGradSteps = 8;      // steps of a sub-chunk: its states and decays stay in registers
constexpr int kGradChannels = 16;  // of a warp
constexpr int kGradStates = 16;    // of a pass; more states take several passes
constexpr int kGradPairs = kGradChannels / 2;
// Vectors of four sums for dB and dC of a chunk: 64 for each sub-chunk, first those of dB.
constexpr int kGradCells = kGradChunk / kGradSteps * 64;

template <class T>
struct GradRows {
  T* data = nullptr;
  int64_t stride = 0;
  uint32_t row_bytes = 0;  // the stride again, for operands as wide as u
};

template <class T>
struct ScanGradArgs {
  int64_t B, time, E, N;
  int64_t chunks_per_batch, chunks_per_segment, segments, chunks_per_piece, pieces, channel_blocks;
  int64_t first_state;  // of this pass
  bool softplus, vector_states, vector_projections, whole, first_pass, last_pass;
  GradRows<const T> dy, u, delta, z, B_in, C_in;
  GradRows<T> du, ddelta, dz;
  GradRows<const float> A, chunks, dstate_out;
  GradRows<float> dstate;
  const float *D, *delta_bias;
  // Scratch. bc_sums(channel_blocks, B, chunks, kGradCells, 4); piece_end(B, pieces, E, 16), piece_time(B, pieces, E);
  // dA_sums(B * segments, E, 16); dD_sums, bias_sums(B * segments, E); passes(3, B * T, E): sums of earlier passes.
  float *bc_sums, *piece_end, *piece_time, *dA_sums, *dD_sums, *bias_sums, *passes;
};

// The two channels of a pair; those past the end are 0, and not stored.
__device__ __forceinline__ float2 load_pair(const float* p, int channels) {
  return {channels > 0 ? p[0] : 0.0f, channels > 1 ? p[1] : 0.0f};
}
__device__ __forceinline__ void store_pair(float* p, float2 v, int channels) {
  if (channels > 0) p[0] = v.x;
  if (channels > 1) p[1] = v.y;
}

__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// One chunk of B or C as f32 (64, 16); steps and states past the end are 0.
template <class T>
__device__ __forceinline__ void stage_projection(float* tile, const GradRows<const T>& rows, int64_t row, int steps,
                                                 int64_t first_state, int64_t N) {
  for (int i = threadIdx.x; i < kGradChunk * kGradStates; i += blockDim.x) {
    const int t = i / kGradStates, n = i % kGradStates;
    const bool inside = t < steps && first_state + n < N;
    tile[i] = inside ? to_float(rows.data[(row + t) * rows.stride + first_state + n]) : 0.0f;
  }
}

// Where a lane is: its channel pair, how many channels of it exist, and its states.
struct GradLane {
  int lane, g, q;
  int cell;  // 4 g + q
  int64_t channel;
  int channels;
  int64_t state;  // the first of its 4
  __device__ __forceinline__ GradLane(int64_t first_channel, int64_t E, int64_t first_state) {
    lane = threadIdx.x % 32;
    g = lane / 8 * 2 + lane % 2;
    q = lane / 2 % 4;
    cell = 4 * g + q;
    channel = first_channel + 2 * g;
    const int64_t left = E - channel;
    channels = left < 0 ? 0 : left > 2 ? 2 : static_cast<int>(left);
    state = first_state + 4 * q;
  }
};

// The lane's pair at steps 2 q and 2 q + 1 of a sub-chunk, as it lies in memory.
template <class T>
struct Raw;
template <>
struct Raw<float> {
  using Pair = float2;
  Pair v[2];
  __device__ __forceinline__ float2 at(int j) const { return v[j]; }
  static __device__ __forceinline__ Pair pack(float2 v) { return v; }
};
template <>
struct Raw<bf16> {
  using Pair = uint32_t;
  Pair v[2];
  __device__ __forceinline__ float2 at(int j) const {
    return {__uint_as_float(v[j] << 16), __uint_as_float(v[j] & 0xFFFF0000u)};
  }
  static __device__ __forceinline__ Pair pack(float2 v) {
    const __nv_bfloat162 pair = __float22bfloat162_rn(v);
    return reinterpret_cast<const Pair&>(pair);
  }
};

// One chunk as a lane sees it. kWhole: every pair exists as a whole, aligned to its size.
template <class T, bool kWhole>
struct ChunkView {
  const ScanGradArgs<T>& p;
  const GradLane& at;
  uint32_t row;  // of the lane's first step
  int steps;     // from there on; none for a lane without channels

  using Pair = typename Raw<T>::Pair;
  __device__ __forceinline__ ChunkView(const ScanGradArgs<T>& args, const GradLane& lane, int64_t first_row, int count)
      : p(args),
        at(lane),
        row(static_cast<uint32_t>(first_row + 2 * lane.q)),
        steps(lane.channels ? count - 2 * lane.q : 0) {}

  __device__ __forceinline__ bool inside(int k, int j) const { return kGradSteps * k + j < steps; }
  template <class Element>
  __device__ __forceinline__ Element* address(const GradRows<Element>& rows, int k, int j) const {
    const uint32_t r = row + static_cast<uint32_t>(kGradSteps * k + j);
    const uint64_t offset = uint64_t{r} * rows.row_bytes + static_cast<uint64_t>(at.channel) * sizeof(Element);
    using Byte = std::conditional_t<std::is_const_v<Element>, const char, char>;
    return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(rows.data) + offset);
  }
  // An absent operand reads as 0.
  __device__ __forceinline__ Raw<T> load_optional(const GradRows<const T>& rows, int k) const {
    return load(rows, k, rows.data != nullptr);
  }
  __device__ __forceinline__ Raw<T> load(const GradRows<const T>& rows, int k, bool present = true) const {
    Raw<T> raw{};
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const T* from = address(rows, k, j);
      const bool in = present && inside(k, j);
      if constexpr (kWhole) {
        if (in) raw.v[j] = *reinterpret_cast<const Pair*>(from);
      } else {
        raw.v[j] = Raw<T>::pack({in ? to_float(from[0]) : 0.0f, in && at.channels > 1 ? to_float(from[1]) : 0.0f});
      }
    }
    return raw;
  }
  __device__ __forceinline__ void store(const GradRows<T>& rows, int k, int j, float2 v) const {
    if (!inside(k, j)) return;
    T* to = address(rows, k, j);
    if constexpr (kWhole) {
      *reinterpret_cast<Pair*>(to) = Raw<T>::pack(v);
    } else {
      to[0] = from_float<T>(v.x);
      if (at.channels > 1) to[1] = from_float<T>(v.y);
    }
  }
  // A sum that takes part in `which` of s, sum g B and sum g A2 a h, with what passes over other states left of it.
  __device__ __forceinline__ float2 add_passes(int which, int k, int j, float2 sum) const {
    if constexpr (kWhole) return sum;
    if ((p.first_pass && p.last_pass) || !inside(k, j)) return sum;
    float* left =
        address(GradRows<float>{p.passes + which * p.B * p.time * p.E, p.E, static_cast<uint32_t>(4 * p.E)}, k, j);
    if (!p.first_pass) sum = {sum.x + left[0], at.channels > 1 ? sum.y + left[1] : 0.0f};
    if (!p.last_pass) {
      left[0] = sum.x;
      if (at.channels > 1) left[1] = sum.y;
    }
    return sum;
  }
};

// v[channel of the pair][4 states] <- rows of N states; what does not exist is 0. `vector`: N is a multiple of 4 and
// rows are aligned.
__device__ __forceinline__ void load_states(float (&v)[2][4], const float* first_channel, int64_t channel_stride,
                                            const GradLane& at, int64_t N, bool vector) {
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const float* p = first_channel + c * channel_stride + at.state;
    if (vector) {
      const float4 x = c < at.channels && at.state < N ? *reinterpret_cast<const float4*>(p) : float4{};
      v[c][0] = x.x, v[c][1] = x.y, v[c][2] = x.z, v[c][3] = x.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) v[c][i] = c < at.channels && at.state + i < N ? p[i] : 0.0f;
    }
  }
}

// The piece's own gradient and decay take part in what enters the steps before it: docs (3).
template <class T>
__device__ __forceinline__ void incoming_gradient(float (&g)[2][4], const float (&A2)[2][4], const ScanGradArgs<T>& p,
                                                  int64_t b, int64_t first_piece, const GradLane& at) {
  if (p.dstate_out.data) {
    load_states(g, p.dstate_out.data + (b * p.E + at.channel) * p.dstate_out.stride, p.dstate_out.stride, at, p.N,
                p.vector_states);
  } else {
    for (int c = 0; c < 2; c++) {
      for (int i = 0; i < 4; i++) g[c][i] = 0.0f;
    }
  }
  GradLane local = at;
  local.state = 4 * at.q;
#pragma unroll 2
  for (int64_t piece = p.pieces - 1; piece >= first_piece; piece--) {
    const int64_t row = (b * p.pieces + piece) * p.E + at.channel;
    float end[2][4];
    load_states(end, p.piece_end + row * kGradStates, kGradStates, local, kGradStates, true);
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const float time = c < at.channels ? p.piece_time[row + c] : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; i++) g[c][i] = fmaf(exp2_fast(time * A2[c][i]), g[c][i], end[c][i]);
    }
  }
}

// The block's sums of dB and dC over its channels, cell for cell as its warps left them in their slots.
template <int kWarps, class T, class WarpShared>
__device__ __forceinline__ void store_projection_sums(const ScanGradArgs<T>& p, const WarpShared* warps,
                                                      int64_t channel_block, int64_t b, int64_t chunk) {
  float4* out =
      reinterpret_cast<float4*>(p.bc_sums) + ((channel_block * p.B + b) * p.chunks_per_batch + chunk) * kGradCells;
  for (int i = threadIdx.x; i < kGradCells; i += 32 * kWarps) {
    const int slot = i / 64, cell = i % 64;
    float4 sum = warps[0].slots[slot][cell];
#pragma unroll
    for (int w = 1; w < kWarps; w++) sum = sum + warps[w].slots[slot][cell];
    out[i] = sum;
  }
}

// Sums over the four lanes of a pair.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xFFFFFFFFu, v, 2);
  return v + __shfl_xor_sync(0xFFFFFFFFu, v, 4);
}

template <class T>
__device__ __forceinline__ void store_parameter_sums(const ScanGradArgs<T>& p, const GradLane& at, int64_t part,
                                                     const float (&dA)[2][4], float2 dD, float2 dbias) {
  const int64_t row = part * p.E + at.channel;
#pragma unroll
  for (int c = 0; c < 2; c++) {
    if (c >= at.channels) continue;
    reinterpret_cast<float4*>(p.dA_sums + (row + c) * kGradStates)[at.q] = {dA[c][0], dA[c][1], dA[c][2], dA[c][3]};
  }
  dD = {quad_sum(dD.x), quad_sum(dD.y)};
  dbias = {quad_sum(dbias.x), quad_sum(dbias.y)};
  if (at.q != 0) return;
  store_pair(p.dD_sums + row, dD, at.channels);
  store_pair(p.bias_sums + row, dbias, at.channels);
}

template <class T>
__device__ __forceinline__ void store_state_gradient(const ScanGradArgs<T>& p, const GradLane& at, int64_t b,
                                                     const float (&g)[2][4]) {
#pragma unroll
  for (int c = 0; c < 2; c++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (c < at.channels && at.state + i < p.N) {
        p.dstate.data[(b * p.E + at.channel + c) * p.dstate.stride + at.state + i] = g[c][i];
      }
    }
  }
}

// Warps of a block, each with its own channels.
int scan_grad_warps(const Props& props);
template <class T>
Status launch_scan_grad_main(const ScanGradArgs<T>& args, int warps, cudaStream_t stream);
template <class T>
Status launch_scan_grad_pieces(const ScanGradArgs<T>& args, cudaStream_t stream);

}  // namespace mb::cuda
