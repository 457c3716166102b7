// The two warps that fetch: one streams the rows of a block's matrices into the ring, one the small parameters of the
// next layer. Neither waits for the computation, only for room, so memory keeps busy while blocks wait for each other,
// across layers and steps.
#pragma once
#include <cstddef>

#include "../reduce.cuh"
#include "ring.cuh"

namespace mb::cuda::decode {

// n / d by a multiplication, for n * d < 2^32.
struct Divider {
  uint32_t d, magic;
  __device__ void set(int by) {
    d = static_cast<uint32_t>(by);
    magic = by > 1 ? 0xFFFFFFFFu / d + 1 : 0;
  }
  __device__ __forceinline__ int quotient(int n, int& rest) const {
    const uint32_t q = magic ? __umulhi(static_cast<uint32_t>(n), magic) : static_cast<uint32_t>(n);
    rest = n - static_cast<int>(q * d);
    return static_cast<int>(q);
  }
};

// What a block owns. Kept in shared memory.
struct Share {
  int e0, channels;  // of E
  int d0, d_rows;    // of D, rows of out_proj
  int v0, v_rows;    // of V, rows of the head
  int quad0, quads;  // groups of four words of (rows, S) that the block adds up
  Divider by_channels, by_d_rows, by_v_rows, by_S, by_steps, by_before, by_x_tiles;
  __device__ void set(const Plan& p) {
    const int b = blockIdx.x;
    e0 = b * p.channels;
    channels = min(p.channels, p.E - e0);
    const auto cut = [&](int n, int at) { return static_cast<int>(static_cast<long long>(n) * at / p.blocks); };
    d0 = cut(p.D, b);
    d_rows = cut(p.D, b + 1) - d0;
    v0 = cut(p.V, b);
    v_rows = cut(p.V, b + 1) - v0;
    const int all = p.rows * p.S / 4;
    quad0 = cut(all, b);
    quads = cut(all, b + 1) - quad0;
    by_channels.set(channels);
    by_d_rows.set(d_rows);
    by_v_rows.set(v_rows);
    by_S.set(p.S);
    by_steps.set(p.steps);
    by_before.set(p.K - 1);
    by_x_tiles.set((p.S + 15) / 16);
  }
};

class MatrixStreamer {
 public:
  __device__ MatrixStreamer(const Plan& p, Barriers& bars, char* ring)
      : p_(p), bars_(bars), ring_(ring), policy_(read_once_policy()), lane_(threadIdx.x % 32) {}

  // rows [0, split) of the block's share begin at `first`, the others at `second`.
  __device__ __forceinline__ bool matrix(const Stream& s, int element, const char* first, int split, const char* second,
                                         int rows) {
    const long long row_bytes = static_cast<long long>(s.columns) * element;
#pragma unroll 1
    for (int i = 0; i < s.slices; i++) {
      if (!room()) return false;
      const int columns = min(s.slice, s.columns - i * s.slice);
      const int bytes = columns * element;
      char* to = ring_ + at_.stage * p_.stage_bytes;
      uint64_t* full = &bars_.full[at_.stage];
      if (lane_ == 0) barrier_expect(full, rows * bytes);
      __syncwarp();
      const long long skip = static_cast<long long>(i) * s.slice * element;
#pragma unroll 1
      for (int r = lane_; r < rows; r += 32) {
        const char* from = (r < split ? first + r * row_bytes : second + (r - split) * row_bytes) + skip;
        bulk_copy(to + r * s.pitch, from, bytes, full, policy_);
      }
      at_.next(p_.stages);
      issued_++;
    }
    return true;
  }

  // Shared memory may not be given back while copies are on their way into it.
  __device__ void drain() {
    const int last = static_cast<int>(min(issued_, static_cast<long long>(p_.stages)));
#pragma unroll 1
    for (int i = 0; i < last; i++) {
      at_.stage = at_.stage == 0 ? p_.stages - 1 : at_.stage - 1;
      if (at_.stage == p_.stages - 1) at_.phase ^= 1;
      barrier_wait(&bars_.full[at_.stage], at_.phase);
    }
  }

 private:
  // Waits until the stage is free; false: the run has ended.
  __device__ bool room() {
    for (unsigned turn = 0; !__all_sync(kFullWarp, barrier_passed(&bars_.empty[at_.stage], at_.phase ^ 1)); turn++) {
      if (__any_sync(kFullWarp, bars_.quit)) return false;
      give_up_after(turn);
    }
    return true;
  }

  const Plan& p_;
  Barriers& bars_;
  char* ring_;
  uint64_t policy_;
  Cursor at_;
  long long issued_ = 0;
  int lane_;
};

template <class W>
__device__ void stream_matrices(const Plan& p, const Share& own, const Launch& launch, Barriers& bars, char* ring) {
  MatrixStreamer to(p, bars, ring);
  constexpr int kElement = sizeof(W);
  const int head_element = p.head_i8 ? 1 : 2;
  bool more = true;
#pragma unroll 1
  for (int64_t step = 0; step < launch.run_steps && more; step++) {
    // in_proj and out_proj in turn, then the head
#pragma unroll 1
    for (int i = 0; i <= 2 * p.L && more; i++) {
      const Layer& w = p.layers[i / 2];
      if (i == 2 * p.L) {
        const char* head = static_cast<const char*>(p.head_weight);
        more = to.matrix(p.streams[kHead], head_element, head + static_cast<long long>(own.v0) * p.D * head_element,
                         own.v_rows, nullptr, own.v_rows);
      } else if (i % 2 == 0) {
        const char* in = static_cast<const char*>(w.in_proj);
        const long long row = static_cast<long long>(p.D) * kElement;
        more = to.matrix(p.streams[kIn], kElement, in + own.e0 * row, own.channels, in + (p.E + own.e0) * row,
                         2 * own.channels);
      } else {
        const char* out = static_cast<const char*>(w.out_proj);
        more = to.matrix(p.streams[kOut], kElement, out + static_cast<long long>(own.d0) * p.E * kElement, own.d_rows,
                         nullptr, own.d_rows);
      }
    }
  }
  to.drain();
}

// One contiguous part of a layer's small parameters: where its pointer lies in Layer, and which bytes of it to fetch.
struct Part {
  int pointer = -1, to = 0, skip = 0, bytes = 0;
};

constexpr int kParts = 15;

// Part i of a layer, or of the head.
__device__ inline Part part_of(const Plan& p, const Share& own, int i, bool head) {
  const Small& s = p.small;
  const int e0 = own.e0 * 4, ce = own.channels * 4;
#define MB_PART(field, to, skip, bytes) \
  Part { static_cast<int>(offsetof(Layer, field)), to, skip, bytes }
// A value of each row of in_proj, first the channels' and then their gates', or of the head.
#define MB_ROWS(field) (head ? MB_PART(field, s.field, own.v0 * 4, own.v_rows * 4) : MB_PART(field, s.field, e0, ce))
#define MB_GATES(field) MB_PART(field, s.field + ce, p.E * 4 + e0, ce)
  switch (i) {
    case 0:
      return MB_PART(norm_weight, s.norm_weight, 0, p.D * 4);
    case 1:
      return MB_ROWS(norm_in);
    case 2:
      return MB_ROWS(norm_bias);
    case 3:
      return MB_ROWS(in_scale);
    case 4:
      return MB_ROWS(conv_bias);
  }
  if (head) return {};
  switch (i) {
    case 5:
      return MB_GATES(norm_in);
    case 6:
      return MB_GATES(norm_bias);
    case 7:
      return MB_GATES(in_scale);
    case 8:
      return MB_PART(dt_proj, s.dt_proj, own.e0 * p.R * 2, own.channels * p.R * 2);
    case 9:
      return MB_PART(conv_weight, s.conv_weight, e0 * p.K, ce * p.K);
    case 10:
      return MB_PART(dt_bias, s.dt_bias, e0, ce);
    case 11:
      return MB_PART(A, s.A, e0 * kStates, ce * kStates);
    case 12:
      return MB_PART(D, s.D, e0, ce);
    case 13:
      return MB_PART(x_scale, s.x_scale, 0, p.S * 4);
    case 14:
      return MB_PART(out_scale, s.out_scale, own.d0 * 4, own.d_rows * 4);
  }
#undef MB_GATES
#undef MB_ROWS
#undef MB_PART
  return {};
}

// Fetches the small parameters of one layer after the other, at most two ahead of the computation, and then of the
// head.
template <class W>
class SmallStreamer {
 public:
  __device__ SmallStreamer(const Plan& p, const Share& own, Barriers& bars, char* small)
      : p_(p),
        own_(own),
        bars_(bars),
        small_(small),
        policy_(read_once_policy()),
        lane_(threadIdx.x % 32),
        layer_part_(part_of(p, own, lane_, false)),
        head_part_(part_of(p, own, lane_, true)) {}

  __device__ void run(int64_t steps) {
    bool more = true;
#pragma unroll 1
    for (int64_t step = 0; step < steps && more; step++) {
#pragma unroll 1
      for (int l = 0; l <= p_.L && more; l++) more = fetch(l);
    }
    drain();
  }

 private:
  // Lane i fetches part i, and rows i, i + 32, ... of x_proj. They are bulk copies, because what threads load comes
  // through L1 in order: other warps, which wait for words from L2, would wait for these parameters from memory first.
  __device__ bool fetch(int l) {
    if (!room()) return false;
    char* to = small_ + at_.stage * p_.small.bytes;
    uint64_t* full = &bars_.small_full[at_.stage];
    const char* layer = reinterpret_cast<const char*>(p_.layers + l);
    const Part part = l < p_.L ? layer_part_ : head_part_;
    const char* from = part.pointer < 0 ? nullptr : *reinterpret_cast<const char* const*>(layer + part.pointer);
    const char* source = from + part.skip;
    const bool fetched = from && part.bytes, bulk = aligned(source, part.to | part.bytes);
    if (fetched && bulk) bulk_fetch(to + part.to, source, part.bytes, full, policy_);
    if (lane_ == kParts) bulk_fetch(to + p_.small.layer, layer, sizeof(Layer), full, policy_);
#pragma unroll 1
    for (uint32_t others = __ballot_sync(kFullWarp, fetched && !bulk); others; others &= others - 1) {
      const int i = __ffs(static_cast<int>(others)) - 1;
      const auto address = __shfl_sync(kFullWarp, reinterpret_cast<unsigned long long>(source), i);
      const int target = __shfl_sync(kFullWarp, part.to, i), bytes = __shfl_sync(kFullWarp, part.bytes, i);
      async_copy(to + target, reinterpret_cast<const char*>(address), bytes, lane_);
    }
    if (l < p_.L) fetch_x_proj(to + p_.small.x_proj, static_cast<const char*>(p_.layers[l].x_proj), full);
    async_arrive(full);
    at_.next(2);
    issued_ = min(issued_ + 1, 2);
    return true;
  }

  // Own columns of every row.
  __device__ void fetch_x_proj(char* to, const char* x_proj, uint64_t* full) {
    constexpr int kElement = sizeof(W);
    const char* from = x_proj + own_.e0 * kElement;
    const long long stride = static_cast<long long>(p_.E) * kElement;
    const int bytes = own_.channels * kElement;
    if (aligned(from, static_cast<int>(stride) | bytes)) {
#pragma unroll 1
      for (int r = lane_; r < p_.S; r += 32) {
        bulk_fetch(to + r * p_.small.x_pitch, from + r * stride, bytes, full, policy_);
      }
    } else {
      const int units = bytes / 8;
#pragma unroll 1
      for (int i = lane_; i < p_.S * units; i += 32) {
        const int r = i / units, at = (i - r * units) * 8;
        copy_async<8>(to + r * p_.small.x_pitch + at, from + r * stride + at);
      }
    }
  }

  __device__ static bool aligned(const char* from, int sizes) {
    return ((static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from)) | static_cast<uint32_t>(sizes)) & 15) == 0;
  }

  // Waits until the stage is free; false: the run has ended.
  __device__ bool room() {
    for (unsigned turn = 0; !__all_sync(kFullWarp, barrier_passed(&bars_.small_empty[at_.stage], at_.phase ^ 1));
         turn++) {
      if (__any_sync(kFullWarp, bars_.quit)) return false;
      give_up_after(turn);
    }
    return true;
  }

  // Shared memory may not be given back while copies are on their way into it.
  __device__ void drain() {
#pragma unroll 1
    for (int i = 0; i < issued_; i++) {
      at_.stage ^= 1;
      if (at_.stage == 1) at_.phase ^= 1;
      barrier_wait(&bars_.small_full[at_.stage], at_.phase);
    }
  }

  const Plan& p_;
  const Share& own_;
  Barriers& bars_;
  char* small_;
  uint64_t policy_;
  int lane_;
  Part layer_part_, head_part_;
  Cursor at_;
  int issued_ = 0;
};

}  // namespace mb::cuda::decode
