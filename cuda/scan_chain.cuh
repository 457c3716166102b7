// Forward selective scan for 16 states and long sequences: a block owns 16 channels of one sequence, its warps take
// segments of 8 steps in turn, and only the 16 x 16 states travel from segment to segment. u, delta, z, y(B,T,E),
// B, C(B,T,16). Derivation: docs/math/selective-scan.md, equations (5) to (8).
#pragma once
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda::chain {

constexpr int kStates = 16;
constexpr int kChannels = 16;  // of a block
constexpr int kSteps = 8;      // of a segment
constexpr int kPairs = 8;      // (channel, state) pairs of a lane: 2 channels by 4 states

template <class T>
struct Args {
  const T *u, *delta, *z, *B, *C;  // z may be null
  T* y;
  const float *A, *D, *delta_bias, *state;  // all but A may be null
  float *state_out, *chunks;                // may be null; chunks has 16-byte aligned rows
  int64_t u_stride, delta_stride, z_stride, B_stride, C_stride, y_stride;
  int64_t u_step, delta_step, z_step, B_step, C_step, y_step;  // bytes from a warp's segment to its next
  int64_t A_stride, state_stride, state_out_stride, chunks_stride;
  int T_steps, E;
  int groups;       // ceil(E / 16)
  int chunk_shift;  // a chunk is 2^chunk_shift segments
  bool softplus;
};

// A lane has two roles. At the edges (memory, softplus, gate) it owns step lane / 4 and the 4 channels (or states) from
// 4 (lane % 4). In the core it owns channels 2 (lane / 4) and the next, and the 4 states from 4 (lane % 4).
struct Shared {
  float dt[kSteps / 2][kChannels / 2][4];   // of two steps (outer) and two channels
  float dtu[kSteps / 2][kChannels / 2][4];  // dt u
  float B[kSteps][kStates];
  float C[kSteps][kStates];
  float y[4][kSteps * kChannels + 8];  // partial sums over 4 states; the gap spreads the four over the banks
};

template <class T>
struct Raw {
  alignas(4 * sizeof(T)) T v[4];
};

__device__ __forceinline__ void widen(const Raw<float>& from, float (&v)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = from.v[i];
}
// One instruction an element: a bf16 is the upper half of a float.
__device__ __forceinline__ void widen(const Raw<bf16>& from, float (&v)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from.v);
  v[0] = __uint_as_float(words.x << 16);
  v[1] = __uint_as_float(words.x & 0xFFFF0000u);
  v[2] = __uint_as_float(words.y << 16);
  v[3] = __uint_as_float(words.y & 0xFFFF0000u);
}

// Loads the first `count` of 4 (all of them where Vec and count > 0) and leaves the rest as they are.
template <bool Vec, class T>
__device__ __forceinline__ void load4(const char* bytes, int count, Raw<T>& to) {
  const T* from = reinterpret_cast<const T*>(bytes);
  if constexpr (Vec) {
    if (count > 0) load_raw<4>(from, to.v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) to.v[i] = from[i];
    }
  }
}

// What a lane reads of a segment in its edge role, and where it lies; beyond the end the last values stay.
template <class T>
struct Edge {
  Raw<T> u, delta, z, B, C;
};
struct Cursor {
  const char *u, *delta, *z, *B, *C;
};

template <class T>
__device__ __forceinline__ Cursor cursor_at(const Args<T>& p, int64_t row, int channel, int quad) {
  const auto bytes = [](const T* at) { return reinterpret_cast<const char*>(at); };
  return {bytes(p.u + row * p.u_stride + channel), bytes(p.delta + row * p.delta_stride + channel),
          bytes(p.z + (p.z ? row * p.z_stride + channel : 0)), bytes(p.B + row * p.B_stride + 4 * quad),
          bytes(p.C + row * p.C_stride + 4 * quad)};
}

template <bool Vec, class T>
__device__ __forceinline__ void load_edge(const Args<T>& p, Cursor& at, bool inside, int count, Edge<T>& to) {
  if (inside) {
    load4<Vec>(at.u, count, to.u);
    load4<Vec>(at.delta, count, to.delta);
    if (p.z) load4<Vec>(at.z, count, to.z);
    load4<Vec>(at.B, 4, to.B);
    load4<Vec>(at.C, 4, to.C);
  }
  at.u += p.u_step;
  at.delta += p.delta_step;
  at.z += p.z_step;
  at.B += p.B_step;
  at.C += p.C_step;
}

// dt and dt u of 4 channels; both 0 beyond the end, which leaves the state as it is.
template <class T>
__device__ __forceinline__ void stage(Shared& s, const Edge<T>& e, const float (&bias)[4], bool softplus, bool inside,
                                      int row, int quad) {
  float u[4], delta[4], B[4], C[4], dt[4], dtu[4];
  widen(e.u, u);
  widen(e.delta, delta);
  widen(e.B, B);
  widen(e.C, C);
  // Branches lie around the loops, so that the four chains of dependent instructions run side by side.
#pragma unroll
  for (int i = 0; i < 4; i++) dt[i] = delta[i] + bias[i];
  if (softplus) {
#pragma unroll
    for (int i = 0; i < 4; i++) dt[i] = softplus_fast(dt[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    dt[i] = inside ? dt[i] : 0.0f;
    dtu[i] = dt[i] * u[i];
  }
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int pair = 2 * quad + i / 2, at = row % 2 * 2;
    *reinterpret_cast<float2*>(&s.dt[row / 2][pair][at]) = make_float2(dt[i], dt[i + 1]);
    *reinterpret_cast<float2*>(&s.dtu[row / 2][pair][at]) = make_float2(dtu[i], dtu[i + 1]);
  }
  *reinterpret_cast<float4*>(&s.B[row][4 * quad]) = make_float4(B[0], B[1], B[2], B[3]);
  *reinterpret_cast<float4*>(&s.C[row][4 * quad]) = make_float4(C[0], C[1], C[2], C[3]);
}

// Sums the partial sums, adds D u, gates and stores 4 channels of one step.
template <bool Vec, class T>
__device__ __forceinline__ void finish(const Args<T>& p, const Shared& s, const Raw<T>& u, const Raw<T>& z,
                                       const float (&D)[4], char* bytes, int count, int step, int quad) {
  T* to = reinterpret_cast<T*>(bytes);
  float v[4];
  widen(u, v);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] *= D[i];
#pragma unroll
  for (int g = 0; g < 4; g++) {
    const float4 q = *reinterpret_cast<const float4*>(&s.y[g][step * kChannels + 4 * quad]);
    v[0] += q.x;
    v[1] += q.y;
    v[2] += q.z;
    v[3] += q.w;
  }
  if (p.z) {
    float gate[4];
    widen(z, gate);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] *= gate[i] * sigmoid_fast(gate[i]);
  }
  if constexpr (Vec) {
    if (count > 0) store_vector<4>(to, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) to[i] = from_float<T>(v[i]);
    }
  }
}

__device__ __forceinline__ void arrive(int barrier) { asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void wait(int barrier) { asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory"); }

// Both channels of one step; two neighbouring steps come with one load.
__device__ __forceinline__ float2 pair_at(const float (&from)[kSteps / 2][kChannels / 2][4], int t, int pair) {
  const float4 v = *reinterpret_cast<const float4*>(from[t / 2][pair]);
  return t % 2 ? make_float2(v.z, v.w) : make_float2(v.x, v.y);
}

__device__ __forceinline__ void load8(const float4* from, float (&v)[8]) {
  const float4 a = from[0], b = from[32];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void store8(float4* to, const float (&v)[8]) {
  to[0] = make_float4(v[0], v[1], v[2], v[3]);
  to[32] = make_float4(v[4], v[5], v[6], v[7]);
}

// Local: the segment's own end state is computed before the state arrives, so that passing it on takes one product a
// state (few blocks: the chain of segments decides). Otherwise the steps are run through when it arrives.
template <class T, bool Vec, bool Local, int Warps, int Blocks, int Polynomials = 0>
__global__ void __launch_bounds__(32 * Warps, Blocks) scan(const Args<T> p) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float4* const carry = reinterpret_cast<float4*>(shared);  // [warps][2][32]
  Shared& s = reinterpret_cast<Shared*>(shared + warps * 64 * sizeof(float4))[warp];

  const int b = blockIdx.x / p.groups, first_channel = (blockIdx.x % p.groups) * kChannels;
  const int quad = lane % 4, row = lane / 4;
  const int edge_channel = first_channel + 4 * quad, core_channel = first_channel + 2 * row;
  const int64_t first_row = int64_t{b} * p.T_steps;
  const int segments = (p.T_steps + kSteps - 1) / kSteps;

  // Each lane of a warp hands its states to the same lane of the next one, so a lane's own writes need no barrier.
  const int before = warp == 0 ? warps - 1 : warp - 1;
  if (warp == 0) {
    float h[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const int e = core_channel + i / 4;
      h[i] = p.state && e < p.E ? p.state[(int64_t{b} * p.E + e) * p.state_stride + 4 * quad + i % 4] : 0.0f;
    }
    store8(carry + before * 64 + lane, h);
  }

  float A[kPairs], bias[4], D[4];
#pragma unroll
  for (int i = 0; i < kPairs; i++) {
    const int e = core_channel + i / 4;
    A[i] = e < p.E ? p.A[e * p.A_stride + 4 * quad + i % 4] * kLog2e : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const bool inside = edge_channel + i < p.E;
    bias[i] = inside && p.delta_bias ? p.delta_bias[edge_channel + i] : 0.0f;
    D[i] = inside && p.D ? p.D[edge_channel + i] : 0.0f;
  }

  const int count = p.E - edge_channel;
  Cursor at = cursor_at(p, first_row + warp * kSteps + row, edge_channel, quad);
  char* y_at = reinterpret_cast<char*>(p.y + (first_row + warp * kSteps + row) * p.y_stride + edge_channel);
  Edge<T> next = {};
  load_edge<Vec>(p, at, warp * kSteps + row < p.T_steps, count, next);
  for (int segment = warp; segment < segments; segment += warps) {
    const int t0 = segment * kSteps;
    stage(s, next, bias, p.softplus, t0 + row < p.T_steps, row, quad);
    const Raw<T> u = next.u, z = next.z;
    __syncwarp();
    load_edge<Vec>(p, at, t0 + warps * kSteps + row < p.T_steps, count, next);

    float a[kSteps][kPairs];               // exp(dt A), then without Local the states
    float in[Local ? kSteps : 1][kPairs];  // dt u B
    float h[kPairs], end[kPairs], total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      const float2 dt = pair_at(s.dt, t, row);
#pragma unroll
      for (int i = 0; i < kPairs; i++) {
        const float x = (i < 4 ? dt.x : dt.y) * A[i];
        a[t][i] = (t % 2 * kPairs + i) * Polynomials % 16 < Polynomials ? exp2_polynomial(x) : exp2_fast(x);
      }
      if constexpr (Local) {
        const float2 dtu = pair_at(s.dtu, t, row);
        const float4 B = *reinterpret_cast<const float4*>(&s.B[t][4 * quad]);
        const float Bn[4] = {B.x, B.y, B.z, B.w};
        total[0] += dt.x;
        total[1] += dt.y;
#pragma unroll
        for (int i = 0; i < kPairs; i++) {
          in[t][i] = (i < 4 ? dtu.x : dtu.y) * Bn[i % 4];
          end[i] = t == 0 ? in[t][i] : fmaf(a[t][i], end[i], in[t][i]);
        }
      }
    }
    float decay[kPairs];
    if constexpr (Local) {
#pragma unroll
      for (int i = 0; i < kPairs; i++) decay[i] = exp2_fast(total[i / 4] * A[i]);
    }

    if (warps > 1 && segment > 0) wait(before);
    load8(carry + before * 64 + lane, h);
    if constexpr (Local) {
#pragma unroll
      for (int i = 0; i < kPairs; i++) end[i] = fmaf(decay[i], h[i], end[i]);
      store8(carry + warp * 64 + lane, end);
      if (warps > 1 && segment + 1 < segments) arrive(warp);
    }
    if (p.chunks && (segment & ((1 << p.chunk_shift) - 1)) == 0) {
      const int64_t chunks = ((segments - 1) >> p.chunk_shift) + 1;
      float* to = p.chunks + (b * chunks + (segment >> p.chunk_shift)) * p.chunks_stride +
                  int64_t{core_channel} * kStates + 4 * quad;
      if (core_channel < p.E) *reinterpret_cast<float4*>(to) = make_float4(h[0], h[1], h[2], h[3]);
      if (core_channel + 1 < p.E) *reinterpret_cast<float4*>(to + kStates) = make_float4(h[4], h[5], h[6], h[7]);
    }
    if constexpr (!Local) {
#pragma unroll
      for (int t = 0; t < kSteps; t++) {
        const float2 dtu = pair_at(s.dtu, t, row);
        const float4 B = *reinterpret_cast<const float4*>(&s.B[t][4 * quad]);
        const float Bn[4] = {B.x, B.y, B.z, B.w};
#pragma unroll
        for (int i = 0; i < kPairs; i++) {
          h[i] = fmaf(a[t][i], h[i], (i < 4 ? dtu.x : dtu.y) * Bn[i % 4]);
          a[t][i] = h[i];
        }
      }
#pragma unroll
      for (int i = 0; i < kPairs; i++) end[i] = h[i];
      store8(carry + warp * 64 + lane, end);
      if (warps > 1 && segment + 1 < segments) arrive(warp);
    }

#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      const float4 C = *reinterpret_cast<const float4*>(&s.C[t][4 * quad]);
      const float Cn[4] = {C.x, C.y, C.z, C.w};
      float y[2];
#pragma unroll
      for (int i = 0; i < kPairs; i++) {
        if constexpr (Local) h[i] = fmaf(a[t][i], h[i], in[t][i]);
        const float state = Local ? h[i] : a[t][i];
        y[i / 4] = i % 4 == 0 ? Cn[0] * state : fmaf(Cn[i % 4], state, y[i / 4]);
      }
      *reinterpret_cast<float2*>(&s.y[quad][t * kChannels + 2 * row]) = make_float2(y[0], y[1]);
    }
    __syncwarp();
    if (t0 + row < p.T_steps) finish<Vec>(p, s, u, z, D, y_at, count, row, quad);
    y_at += p.y_step;
  }
  if (p.state_out && (segments - 1) % warps == warp) {
    load8(carry + warp * 64 + lane, A);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const int e = core_channel + i / 4;
      if (e < p.E) p.state_out[(int64_t{b} * p.E + e) * p.state_out_stride + 4 * quad + i % 4] = A[i];
    }
  }
}

inline int shared_bytes(int warps) { return warps * static_cast<int>(64 * sizeof(float4) + sizeof(Shared)); }

}  // namespace mb::cuda::chain
