// Forward selective scan for 16 states and long sequences: a block owns 16 channels of one sequence, its warps take
// segments of 8 steps in turn, and only the 16 x 16 states travel from segment to segment. u, delta, z, y(B,T,E),
// B, C(B,T,16). Derivation: docs/math/selective-scan.md, equations (5) to (8).
#pragma once
#include "copy.cuh"
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda::chain {

constexpr int kStates = 16;
constexpr int kChannels = 16;  // of a block
constexpr int kSteps = 8;      // of a segment
constexpr int kPairs = 8;      // (channel, state) pairs of a lane: 2 channels by 4 states

// How a segment uses the state that it receives.
// local: its own end state is ready before, so passing the state on takes one product a state: the shortest chain
// walk: its steps are run through then: the least work; for when other blocks fill the waits
enum class Mode { local, walk };

template <class T>
struct Args {
  const T *u, *delta, *z, *B, *C;  // z may be null
  T* y;
  const float *A, *D, *delta_bias, *state;  // all but A may be null
  const int32_t* lengths;                   // steps of a sequence from which on dt is 0; null: all count
  float *state_out, *chunks;                // may be null; chunks has 16-byte aligned rows
  int64_t u_stride, delta_stride, z_stride, B_stride, C_stride, y_stride;
  int64_t u_step, delta_step, z_step, B_step, C_step, y_step;  // bytes from a warp's segment to its next
  int64_t A_stride, state_stride, state_out_stride, chunks_stride;
  int T_steps, E;
  int groups;       // ceil(E / 16)
  int chunk_shift;  // a chunk is 2^chunk_shift segments
  bool softplus;
};

// Where a lane is, in two roles. At the edges (memory, softplus, gate) it owns step `row` and the 4 channels (or
// states) from 4 quad; in the core channels 2 row and the next, and the 4 states from 4 quad. The lane's number has
// row's lowest bit in front of quad's two: what is read by row alone or by quad alone is then the same for neighbours
// or next-but-ones, which shared memory serves twice as fast.
struct Lane {
  int lane, row, quad;
  __device__ __forceinline__ explicit Lane(int number)
      : lane(number), row(number / 8 * 2 + number % 2), quad(number / 2 % 4) {}
};

// dt or dt u of two steps (outer) and two channels. The gap lets a lane's neighbours write without sharing a bank.
using StepPairs = float[kSteps / 2][kChannels / 2 + 1][4];

template <class T>
struct alignas(16) Shared {
  // [lane]: a lane reads what it has copied.
  struct Ends {
    T u[32][4], z[32][4];
  };
  struct Inputs {
    T delta[32][4], B[32][4], C[32][4];
  };
  struct Steps {
    StepPairs dt, dtu;
    float B[kSteps][kStates];
    float C[kSteps][kStates];
  };
  Ends ends[3];       // of the warp's segment before, this one and the next, in turn
  Inputs inputs;      // of the next
  Steps steps[2];     // of this one and the next
  float A[2][32][4];  // log2(e) A, [channel][lane][state]
  float bias[kChannels], D[kChannels];
  float y[4][kSteps * kChannels + 8];  // partial sums over 4 states; the gap spreads the four over the banks
};

__device__ __forceinline__ void widen(const float (&from)[4], float (&v)[4]) {
  const float4 q = *reinterpret_cast<const float4*>(from);
  v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
}
// One instruction an element: a bf16 is the upper half of a float.
__device__ __forceinline__ void widen(const bf16 (&from)[4], float (&v)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  v[0] = __uint_as_float(words.x << 16);
  v[1] = __uint_as_float(words.x & 0xFFFF0000u);
  v[2] = __uint_as_float(words.y << 16);
  v[3] = __uint_as_float(words.y & 0xFFFF0000u);
}
__device__ __forceinline__ void store4(float* to, const float (&v)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
}

// Copies the first `count` of 4 to shared memory (all of them where Vec and count > 0) without waiting for them, and
// leaves the rest as they are.
template <bool Vec, class T>
__device__ __forceinline__ void copy4(const char* bytes, int count, T (&to)[4]) {
  if constexpr (Vec) {
    if (count <= 0) return;
    copy_async<sizeof(T) * 4, true>(to, bytes);
  } else {
    const T* from = reinterpret_cast<const T*>(bytes);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) to[i] = from[i];
    }
  }
}

// Where a lane's inputs of its warp's next segment lie.
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
__device__ __forceinline__ void fetch(const Args<T>& p, Cursor& at, bool inside, int count, int lane,
                                      typename Shared<T>::Ends& ends, typename Shared<T>::Inputs& to) {
  if (inside) {
    copy4<Vec>(at.u, count, ends.u[lane]);
    copy4<Vec>(at.delta, count, to.delta[lane]);
    if (p.z) copy4<Vec>(at.z, count, ends.z[lane]);
    copy4<Vec>(at.B, 4, to.B[lane]);
    copy4<Vec>(at.C, 4, to.C[lane]);
  }
  at.u += p.u_step;
  at.delta += p.delta_step;
  at.z += p.z_step;
  at.B += p.B_step;
  at.C += p.C_step;
}

// What the edge makes of a segment's inputs: dt and dt u of 4 channels, B and C of 4 states, at one step.
struct Staged {
  float dt[4], dtu[4], B[4], C[4];
};

// dt and dt u are 0 beyond the end and the sequence's length, which leaves the state as it is. There are no branches
// here or in `finish`, so that both lie in the shadow of the core's exponentials.
template <class T>
__device__ __forceinline__ Staged stage(const Shared<T>& s, const typename Shared<T>::Ends& ends, bool softplus,
                                        bool inside, const Lane& at) {
  Staged v;
  float u[4], bias[4];
  widen(s.inputs.delta[at.lane], v.dt);
  widen(ends.u[at.lane], u);
  widen(s.inputs.B[at.lane], v.B);
  widen(s.inputs.C[at.lane], v.C);
  widen(reinterpret_cast<const float(&)[4]>(s.bias[4 * at.quad]), bias);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float w = v.dt[i] + bias[i], soft = softplus_fast(w), dt = softplus ? soft : w;
    v.dt[i] = inside ? dt : 0.0f;
    v.dtu[i] = u[i] * v.dt[i];
  }
  return v;
}

template <class Steps>
__device__ __forceinline__ void leave(const Staged& v, Steps& to, const Lane& at) {
  const auto [lane, row, quad] = at;
  store4(&to.B[row][4 * quad], v.B);
  store4(&to.C[row][4 * quad], v.C);
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int pair = 2 * quad + i / 2, half = row % 2 * 2;
    *reinterpret_cast<float2*>(&to.dt[row / 2][pair][half]) = make_float2(v.dt[i], v.dt[i + 1]);
    *reinterpret_cast<float2*>(&to.dtu[row / 2][pair][half]) = make_float2(v.dtu[i], v.dtu[i + 1]);
  }
}

// Sums the partial sums, adds D u, gates and stores 4 channels of one step.
template <bool Vec, class T>
__device__ __forceinline__ void finish(const Shared<T>& s, const typename Shared<T>::Ends& ends, bool gated, char* to,
                                       int count, const Lane& at) {
  const auto [lane, row, quad] = at;
  float v[4], q[4];
  widen(ends.u[lane], v);
  widen(reinterpret_cast<const float(&)[4]>(s.D[4 * quad]), q);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] *= q[i];
#pragma unroll
  for (int g = 0; g < 4; g++) {
    widen(reinterpret_cast<const float(&)[4]>(s.y[g][row * kChannels + 4 * quad]), q);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += q[i];
  }
  widen(ends.z[lane], q);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = gated ? v[i] * (q[i] * sigmoid_fast(q[i])) : v[i];
  T* y = reinterpret_cast<T*>(to);
  if constexpr (Vec) {
    if (count > 0) store_vector<4>(y, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) y[i] = from_float<T>(v[i]);
    }
  }
}

// A warp waits at the barrier of the warp before for its states, and arrives at its own once it has left new ones.
// Before a warp writes over what it left, the next warp has read it: it read before it arrived, and from that arrival
// on each warp has waited for another, all around the block. (racecheck does not follow order through several barriers
// and reports these reads and writes.)
__device__ __forceinline__ void arrive(int barrier) { asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void wait(int barrier) { asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory"); }

// Both channels of one step; two neighbouring steps come with one load.
__device__ __forceinline__ float2 pair_at(const StepPairs& from, int t, int pair) {
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

template <class T, bool Vec, Mode M, int Warps, int Blocks>
__global__ void __launch_bounds__(32 * Warps, Blocks) scan(const Args<T> p) {
  extern __shared__ __align__(16) char shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const Lane place(threadIdx.x % 32);
  const auto [lane, row, quad] = place;
  float4* const carry = reinterpret_cast<float4*>(shared);  // [warps][2][32]
  Shared<T>& s = reinterpret_cast<Shared<T>*>(shared + warps * 64 * sizeof(float4))[warp];

  const int b = blockIdx.x / p.groups, first_channel = (blockIdx.x % p.groups) * kChannels;
  const int edge_channel = first_channel + 4 * quad, core_channel = first_channel + 2 * row;
  const int64_t first_row = int64_t{b} * p.T_steps;
  const int segments = (p.T_steps + kSteps - 1) / kSteps, length = p.lengths ? min(p.lengths[b], p.T_steps) : p.T_steps;

  const int count = p.E - edge_channel;
  Cursor at = cursor_at(p, first_row + warp * kSteps + row, edge_channel, quad);
  char* y_at = reinterpret_cast<char*>(p.y + (first_row + warp * kSteps + row) * p.y_stride + edge_channel);
  for (int i = lane; i < static_cast<int>((sizeof(s.ends) + sizeof(s.inputs)) / 4); i += 32) {
    reinterpret_cast<int*>(&s)[i] = 0;
  }
  __syncwarp();
  fetch<Vec>(p, at, warp * kSteps + row < p.T_steps, count, lane, s.ends[0], s.inputs);

  // Each lane of a warp hands its states to the same lane of the next one, so a lane's own writes need no barrier.
  const int before = warp == 0 ? warps - 1 : warp - 1;
  float h[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; i++) {
    const int e = core_channel + i / 4;
    h[i] = warp == 0 && p.state && e < p.E ? p.state[(int64_t{b} * p.E + e) * p.state_stride + 4 * quad + i % 4] : 0.0f;
    s.A[i / 4][lane][i % 4] = e < p.E ? p.A[e * p.A_stride + 4 * quad + i % 4] * kLog2e : 0.0f;
  }
  if (warp == 0) store8(carry + before * 64 + lane, h);
  if (lane < kChannels) {
    const bool inside = first_channel + lane < p.E;
    s.bias[lane] = inside && p.delta_bias ? p.delta_bias[first_channel + lane] : 0.0f;
    s.D[lane] = inside && p.D ? p.D[first_channel + lane] : 0.0f;
  }
  __syncwarp();
  wait_for_copies();
  leave(stage(s, s.ends[0], p.softplus, warp * kSteps + row < length, place), s.steps[0], place);
  const int stride = warps * kSteps;  // steps from a warp's segment to its next
  fetch<Vec>(p, at, warp * kSteps + stride + row < p.T_steps, count, lane, s.ends[1], s.inputs);
  __syncwarp();

  // The end of the warp's segment before and the beginning of its next one run beside a segment's exponentials, which
  // leave the rest of the machine idle.
  int turn = 0, half = 0;  // of this segment: ends[turn], steps[half]
  for (int segment = warp; segment < segments; segment += warps) {
    const int t0 = segment * kSteps;
    typename Shared<T>::Ends &ends_before = s.ends[turn == 0 ? 2 : turn - 1],
                             &next_ends = s.ends[turn == 2 ? 0 : turn + 1];
    typename Shared<T>::Steps &steps = s.steps[half], &next_steps = s.steps[half ^ 1];
    wait_for_copies();
    finish<Vec>(s, ends_before, p.z != nullptr, y_at, segment < warps ? 0 : count, place);
    if (segment >= warps) y_at += p.y_step;
    const Staged staged = stage(s, next_ends, p.softplus, t0 + stride + row < length, place);

    // After which step the next segment's beginning goes to shared memory: early where registers are scarcest.
    constexpr int kLeave = M == Mode::local ? 1 : kSteps - 1;
    float a[kSteps][kPairs];  // exp(dt A); mode walk: then the states
    float end[kPairs];
    float A[kPairs], total[2];
    load8(reinterpret_cast<const float4*>(s.A[0][lane]), A);
#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      const float2 dt = pair_at(steps.dt, t, row);
#pragma unroll
      for (int i = 0; i < kPairs; i++) {
        const float x = (i < 4 ? dt.x : dt.y) * A[i];
        a[t][i] = exp2_fast(x);
      }
      if constexpr (M == Mode::local) {
        const float2 dtu = pair_at(steps.dtu, t, row);
        float B[4];
        widen(reinterpret_cast<const float(&)[4]>(steps.B[t][4 * quad]), B);
        total[0] = t == 0 ? dt.x : total[0] + dt.x;
        total[1] = t == 0 ? dt.y : total[1] + dt.y;
#pragma unroll
        for (int i = 0; i < kPairs; i++) {
          const float input = (i < 4 ? dtu.x : dtu.y) * B[i % 4];
          end[i] = t == 0 ? input : fmaf(a[t][i], end[i], input);
        }
      }
      if (t == kLeave) leave(staged, next_steps, place);
    }
    if constexpr (M == Mode::local) {
#pragma unroll
      for (int i = 0; i < kPairs; i++) A[i] = exp2_fast(total[i / 4] * A[i]);
    }

    // The assembler moves arithmetic across barriers, which would put the exponentials between this segment's wait and
    // its arrival, on the chain; it does not move any across the branch in `fetch`.
    fetch<Vec>(p, at, t0 + 2 * stride + row < p.T_steps, count, lane, ends_before, s.inputs);
    __syncwarp();

    if (warps > 1 && segment > 0) wait(before);
    load8(carry + before * 64 + lane, h);
    if constexpr (M == Mode::local) {
#pragma unroll
      for (int i = 0; i < kPairs; i++) end[i] = fmaf(A[i], h[i], end[i]);
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
    if constexpr (M == Mode::walk) {
#pragma unroll
      for (int t = 0; t < kSteps; t++) {
        const float2 dtu = pair_at(steps.dtu, t, row);
        float B[4];
        widen(reinterpret_cast<const float(&)[4]>(steps.B[t][4 * quad]), B);
#pragma unroll
        for (int i = 0; i < kPairs; i++) {
          h[i] = fmaf(a[t][i], h[i], (i < 4 ? dtu.x : dtu.y) * B[i % 4]);
          a[t][i] = h[i];
        }
      }
      store8(carry + warp * 64 + lane, h);
      if (warps > 1 && segment + 1 < segments) arrive(warp);
    }

    // A store of y holds back the loads behind it, so each step's loads stand before the stores of the two before.
    struct Operands {
      float2 dtu;
      float B[4], C[4];
    } in[kSteps];
    const auto load = [&](int t) {
      if constexpr (M == Mode::local) {
        in[t].dtu = pair_at(steps.dtu, t, row);
        widen(reinterpret_cast<const float(&)[4]>(steps.B[t][4 * quad]), in[t].B);
      }
      widen(reinterpret_cast<const float(&)[4]>(steps.C[t][4 * quad]), in[t].C);
    };
    load(0), load(1);
#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      if (t % 2 == 0 && t + 2 < kSteps) load(t + 2), load(t + 3);
      const auto& [dtu, B, C] = in[t];
      float y[2];
#pragma unroll
      for (int i = 0; i < kPairs; i++) {
        if constexpr (M == Mode::local) h[i] = fmaf(a[t][i], h[i], (i < 4 ? dtu.x : dtu.y) * B[i % 4]);
        const float state = M == Mode::walk ? a[t][i] : h[i];
        y[i / 4] = i % 4 == 0 ? C[0] * state : fmaf(C[i % 4], state, y[i / 4]);
      }
      *reinterpret_cast<float2*>(&s.y[quad][t * kChannels + 2 * row]) = make_float2(y[0], y[1]);
    }
    __syncwarp();
    turn = turn == 2 ? 0 : turn + 1;
    half ^= 1;
  }
  const int last_row = (segments - 1 - warp) / warps * stride + warp * kSteps + row;
  finish<Vec>(s, s.ends[turn == 0 ? 2 : turn - 1], p.z != nullptr, y_at, last_row < p.T_steps ? count : 0, place);
  if (p.state_out && (segments - 1) % warps == warp) {
    load8(carry + warp * 64 + lane, h);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const int e = core_channel + i / 4;
      if (e < p.E) p.state_out[(int64_t{b} * p.E + e) * p.state_out_stride + 4 * quad + i % 4] = h[i];
    }
  }
}

template <class T>
int shared_bytes(int warps) {
  return warps * static_cast<int>(64 * sizeof(float4) + sizeof(Shared<T>));
}

}  // namespace mb::cuda::chain
