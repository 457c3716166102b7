// Products of a block's weight rows with all activations, on the tensor cores: weights come from the ring as the A
// operand of mma.m16n8k16, activations from L2 straight into registers as the B operand.
//
// Each activation is split into two bf16 numbers, x = high + low to 2^-17, so products are near f32 however few bits
// the weights have. With up to 4 rows (kPairs) both halves are columns of one operand: column g is the high half of row
// g, column g + 4 its low half. With more rows each half has an operand of its own.
//
// The order of k within 32 columns is free as long as both operands share it. Thread t of four takes columns 8t..8t+7,
// so that it loads 16 bytes of weights and 32 bytes of activations at once.
#pragma once
#include <cuda_bf16.h>

#include "../dtype.cuh"
#include "../reduce.cuh"
#include "ring.cuh"

namespace mb::cuda::decode {

// Warps that compute; the two that fetch do not take part.
__device__ __forceinline__ void worker_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory"); }

// Where a warp's activations come from.
struct Source {
  const uint32_t* exchange = nullptr;  // (rows, columns) with `tag`; null: rows of the embedding table
  uint32_t tag = 0;
  const void* table = nullptr;
  bool table_bf16 = false;
  const int* ids = nullptr;  // in shared memory
};

struct Fragment {
  uint32_t k[4];  // eight bf16 of one row
};

__device__ __forceinline__ void mma(float (&c)[4], const Fragment& low_row, const Fragment& high_row, const Fragment& b,
                                    int at) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(low_row.k[at]), "r"(high_row.k[at]), "r"(low_row.k[at + 1]), "r"(high_row.k[at + 1]), "r"(b.k[at]),
        "r"(b.k[at + 1]));
}
__device__ __forceinline__ void mma_both(float (&c)[4], const Fragment& low_row, const Fragment& high_row,
                                         const Fragment& b) {
  mma(c, low_row, high_row, b, 0);
  mma(c, low_row, high_row, b, 2);
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ float first_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_half(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// v = high + low
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  high = pack(a, b);
  low = pack(a - first_half(high), b - second_half(high));
}

// Four int8 as two pairs of bf16, exact: 0x43 in front of seven bits is 128 + their value, and 128 or 256, by the sign,
// is taken off.
__device__ __forceinline__ void widen(uint32_t bytes, uint32_t& first, uint32_t& second) {
  const auto pair = [](uint32_t p) {
    const uint32_t magnitude = p & 0xFF7FFF7Fu, offset = p & 0xFF80FF80u;
    const __nv_bfloat162 v = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&magnitude),
                                     *reinterpret_cast<const __nv_bfloat162*>(&offset));
    return *reinterpret_cast<const uint32_t*>(&v);
  };
  first = pair(__byte_perm(bytes, 0x43434343u, 0x4140));
  second = pair(__byte_perm(bytes, 0x43434343u, 0x4342));
}

// Eight neighbouring weights in shared memory; `i8` matters to kernels for int8 weights only, whose head may be bf16.
template <class W>
__device__ __forceinline__ Fragment load_weights(const char* from, bool i8) {
  Fragment f;
  if (sizeof(W) == 2 || !i8) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    f.k[0] = v.x, f.k[1] = v.y, f.k[2] = v.z, f.k[3] = v.w;
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    widen(v.x, f.k[0], f.k[1]);
    widen(v.y, f.k[2], f.k[3]);
  }
  return f;
}

// How a configuration of the kernel spreads a product over warps and registers.
// kPairs: at most 4 rows. kTilesB: row tiles of 8 that a warp multiplies. kGroup: 32-column chunks loaded at once.
// kSplit: warps that share the columns; the others take other rows. kOne: one row and four taps, known when compiling.
template <class W_, bool kPairs_, int kTilesB_, int kGroup_, int kSplit_, bool kOne_ = false>
struct Config {
  static constexpr bool kOne = kOne_;
  static constexpr int kSplit = kSplit_;
  using W = W_;
  static constexpr bool kPairs = kPairs_;
  static constexpr int kTilesB = kTilesB_;
  static constexpr int kGroup = kGroup_;
};

template <class C>
__device__ __forceinline__ int rows_of(const Plan& p) {
  return C::kOne ? 1 : p.rows;
}

// Eight activations for each row tile of a warp.
template <class C>
struct Activations {
  float v[C::kGroup][C::kTilesB][8];
};

// This thread's place in products.
template <class C>
struct Place {
  int lane, g, t;          // g: row of a fragment, t: quarter of its columns
  int k_group, row_group;  // of the warp
  int rows[C::kTilesB];    // activation rows that the thread loads
  __device__ __forceinline__ Place(const Plan& p, int thread) {
    const int warp = thread / 32;
    lane = thread % 32;
    g = lane / 4;
    t = lane % 4;
    k_group = warp % C::kSplit;
    row_group = warp / C::kSplit;
#pragma unroll
    for (int j = 0; j < C::kTilesB; j++) {
      const int row = C::kPairs ? g & 3 : (row_group * C::kTilesB + j) * 8 + g;
      rows[j] = min(row, rows_of<C>(p) - 1);
    }
  }
};

// Loads `count` chunks of 32 columns, waiting until they have been written.
template <class C>
__device__ __forceinline__ void gather(const Plan& p, const Place<C>& at, const Source& from, int columns, int first,
                                       int count, Activations<C>& to) {
  if (!from.exchange) {
#pragma unroll
    for (int i = 0; i < C::kGroup; i++) {
      if (i >= count) break;
#pragma unroll
      for (int j = 0; j < C::kTilesB; j++) {
        const long long element = static_cast<long long>(from.ids[at.rows[j]]) * columns + (first + i) * 32 + at.t * 8;
        if (from.table_bf16) {
          const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(from.table) + element);
          const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int k = 0; k < 4; k++) {
            to.v[i][j][2 * k] = first_half(pairs[k]);
            to.v[i][j][2 * k + 1] = second_half(pairs[k]);
          }
        } else {
          const auto* v = reinterpret_cast<const float4*>(static_cast<const float*>(from.table) + element);
          const float4 a = v[0], b = v[1];
          const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
          for (int k = 0; k < 8; k++) to.v[i][j][k] = all[k];
        }
      }
    }
    return;
  }
  // Blocks write their rows in order, so only the last one is watched; reading all of them again and again would keep
  // L2 busy.
  if (at.g < count) {
    const uint32_t* last = from.exchange + (static_cast<long long>(rows_of<C>(p) - 1) * columns + (first + at.g) * 32);
#pragma unroll 1
    for (unsigned turn = 0; missing(peek4(last + at.t * 8 + 4), from.tag); turn++) give_up_after(turn);
  }
  __syncwarp();
  const uint32_t* words[C::kTilesB];
#pragma unroll
  for (int j = 0; j < C::kTilesB; j++) {
    words[j] = from.exchange + (static_cast<long long>(at.rows[j]) * columns + first * 32 + at.t * 8);
  }
#pragma unroll 1
  for (unsigned turn = 0;; turn++) {
    uint32_t waiting = 0;
#pragma unroll
    for (int i = 0; i < C::kGroup; i++) {
      if (i >= count) break;
#pragma unroll
      for (int j = 0; j < C::kTilesB; j++) {
        const uint4 a = peek4(words[j] + i * 32), b = peek4(words[j] + i * 32 + 4);
        waiting |= missing(a, from.tag) | missing(b, from.tag);
        const uint32_t all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int k = 0; k < 8; k++) to.v[i][j][k] = __uint_as_float(all[k]);
      }
    }
    if (!__any_sync(kFullWarp, waiting != 0)) return;
    give_up_after(turn);
  }
}

// The norm before a product. RMSNorm's factor is the same for a whole row, so it is applied to the result: the product
// only adds up the squares. LayerNorm's mean and factor are found in two passes before.
template <class C>
struct Normalise {
  const float* weight = nullptr;  // in shared memory; null: no norm
  const float* bias = nullptr;    // given: LayerNorm
  float mean[C::kTilesB] = {}, factor[C::kTilesB] = {}, squares[C::kTilesB] = {};

  __device__ __forceinline__ void apply(float (&v)[8], int j, int column) {
    const float4 w0 = *reinterpret_cast<const float4*>(weight + column);
    const float4 w1 = *reinterpret_cast<const float4*>(weight + column + 4);
    const float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
    if (bias) {
#pragma unroll
      for (int k = 0; k < 8; k++) v[k] = fmaf((v[k] - mean[j]) * factor[j], w[k], bias[column + k]);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) {
        squares[j] = fmaf(v[k], v[k], squares[j]);
        v[k] *= w[k];
      }
    }
  }
};

// Adds a value of every column's owner up over the four threads that share a row, and leaves it in squares(k_group,
// row).
template <class C>
__device__ __forceinline__ void store_squares(const Plan& p, const Place<C>& at, float (&v)[C::kTilesB],
                                              float* squares) {
#pragma unroll
  for (int j = 0; j < C::kTilesB; j++) {
    v[j] += __shfl_xor_sync(kFullWarp, v[j], 1);
    v[j] += __shfl_xor_sync(kFullWarp, v[j], 2);
    const int row = C::kPairs ? at.g : (at.row_group * C::kTilesB + j) * 8 + at.g;
    if (at.t == 0 && row < rows_of<C>(p)) squares[at.k_group * rows_of<C>(p) + row] = v[j];
  }
}

// `groups` terms that lie `stride` apart.
template <int kUnroll>
__device__ __forceinline__ float sum_groups(const float* from, int groups, int stride) {
  float sum = 0.0f;
#pragma unroll kUnroll
  for (int k = 0; k < groups; k++) sum += from[k * stride];
  return sum;
}

// Mean and factor of LayerNorm for the thread's rows: two passes over the activations.
template <class C>
__device__ void layer_norm_rows(const Plan& p, const Place<C>& at, const Source& from, int columns, float eps,
                                float* squares, Normalise<C>& norm) {
  const int begin = at.k_group * p.streams[0].share, end = min(begin + p.streams[0].share, columns / 32);
#pragma unroll 1
  for (int pass = 0; pass < 2; pass++) {
    float sum[C::kTilesB] = {};
#pragma unroll 1
    for (int first = begin; first < end; first += C::kGroup) {
      Activations<C> x = {};
      const int count = min(end - first, C::kGroup);
      gather<C>(p, at, from, columns, first, count, x);
#pragma unroll
      for (int i = 0; i < C::kGroup; i++) {
        if (i >= count) break;
#pragma unroll
        for (int j = 0; j < C::kTilesB; j++) {
#pragma unroll
          for (int k = 0; k < 8; k++) {
            const float v = x.v[i][j][k] - norm.mean[j];
            sum[j] += pass == 0 ? v : v * v;
          }
        }
      }
    }
    store_squares<C>(p, at, sum, squares);
    worker_barrier();
#pragma unroll
    for (int j = 0; j < C::kTilesB; j++) {
      const float total = sum_groups<4>(squares + at.rows[j], C::kSplit, rows_of<C>(p)) * p.inverse_D;
      if (pass == 0) {
        norm.mean[j] = total;
      } else {
        norm.factor[j] = rsqrtf(total + eps);
      }
    }
    worker_barrier();
  }
}

template <class C>
struct Accumulators {
  float v[kMaxTiles][C::kTilesB][4] = {};
};

// acc += the block's `rows` weight rows, as they come through the ring, times the activations. Each warp takes a range
// of columns, so most slices concern a few warps only; every warp lets go of every slice.
template <class C>
__device__ __forceinline__ void multiply(const Plan& p, const Place<C>& at, const Stream& s, bool i8, int rows,
                                         const Source& from, Normalise<C>& norm, Barriers& bars, const char* ring,
                                         Cursor& cursor, Accumulators<C>& acc) {
  using W = typename C::W;
  const int element = sizeof(W) == 2 || !i8 ? 2 : 1, per_slice = s.slice / 32;
  const int begin = at.k_group * s.share, end = min(begin + s.share, s.columns / 32);
#pragma unroll 1
  for (int slice = 0; slice < s.slices; slice++) {
    const int slice_end = min(end, (slice + 1) * per_slice);
#pragma unroll 1
    for (int first = max(begin, slice * per_slice); first < slice_end; first += C::kGroup) {
      Activations<C> x = {};
      const int count = min(slice_end - first, C::kGroup);
      gather<C>(p, at, from, s.columns, first, count, x);
      barrier_wait(&bars.full[cursor.stage], cursor.phase);
      const char* stage = ring + cursor.stage * p.stage_bytes + ((first - slice * per_slice) * 32 + at.t * 8) * element;
#pragma unroll 1
      for (int i = 0; i < count; i++) {
        Fragment high[C::kTilesB], low[C::kTilesB];
#pragma unroll
        for (int j = 0; j < C::kTilesB; j++) {
          float(&v)[8] = x.v[0][j];
          if (norm.weight) norm.apply(v, j, (first + i) * 32 + at.t * 8);
#pragma unroll
          for (int k = 0; k < 4; k++) split(v[2 * k], v[2 * k + 1], high[j].k[k], low[j].k[k]);
          if (C::kPairs && at.g >= 4) high[j] = low[j];
            // The next chunk moves up: one copy of this code takes less time to fetch than the moves.
#pragma unroll
          for (int next = 1; next < C::kGroup; next++) {
#pragma unroll
            for (int k = 0; k < 8; k++) x.v[next - 1][j][k] = x.v[next][j][k];
          }
        }
#pragma unroll
        for (int m = 0; m < kMaxTiles; m++) {
          if (m * 16 >= rows) break;
          const Fragment a = load_weights<W>(stage + min(m * 16 + at.g, rows - 1) * s.pitch, i8);
          const Fragment b = load_weights<W>(stage + min(m * 16 + 8 + at.g, rows - 1) * s.pitch, i8);
#pragma unroll
          for (int j = 0; j < C::kTilesB; j++) {
            mma_both(acc.v[m][j], a, b, high[j]);
            if (!C::kPairs) mma_both(acc.v[m][j], a, b, low[j]);
          }
        }
        stage += 32 * element;
      }
    }
    __syncwarp();
    if (at.lane == 0) barrier_arrive(&bars.empty[cursor.stage]);
    cursor.next(p.stages);
  }
}

// With few rows a thread prepares eight columns of one row, so that no two threads prepare the same, and passes them on
// through shared memory: `room` holds, for each warp and row, the high and the low halves of 256 columns.
constexpr int kPairColumns = 256;
constexpr int kPairPitch = kPairColumns * 2 + 64;  // bytes; both halves of a row lie in different banks
constexpr int pair_bytes(int rows) { return rows * 2 * kPairPitch; }

// Eight columns of row r, for the threads that are active.
__device__ __forceinline__ void gather_columns(const Source& from, int columns, int r, int column, bool active,
                                               float (&v)[8]) {
  if (!from.exchange) {
    if (!active) return;
    const long long element = static_cast<long long>(from.ids[r]) * columns + column;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      v[k] = from.table_bf16 ? to_float(static_cast<const bf16*>(from.table)[element + k])
                             : static_cast<const float*>(from.table)[element + k];
    }
    return;
  }
  const uint32_t* words = from.exchange + (r * columns + column);
#pragma unroll 1
  for (unsigned turn = 0;; turn++) {
    uint4 a, b;
    if (active) a = peek4(words), b = peek4(words + 4);
    const bool waiting = active && (missing(a, from.tag) | missing(b, from.tag));
    if (!__any_sync(kFullWarp, waiting)) {
      if (!active) return;
      const uint32_t all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int k = 0; k < 8; k++) v[k] = __uint_as_float(all[k]);
      return;
    }
    give_up_after(turn);
  }
}

// The norm before multiply_pairs; see Normalise.
struct RowNorm {
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* moments = nullptr;  // LayerNorm's mean and factor of each row, in shared memory
  float squares[4] = {};
};

// Mean and factor of each row into moments(row, 2), for LayerNorm.
template <class C>
__device__ void layer_norm_moments(const Plan& p, const Place<C>& at, const Source& from, float eps, float* sums,
                                   float* moments) {
  const int begin = at.k_group * p.streams[0].share, end = min(begin + p.streams[0].share, p.D / 32);
#pragma unroll 1
  for (int pass = 0; pass < 2; pass++) {
#pragma unroll 1
    for (int r = 0; r < rows_of<C>(p); r++) {
      float sum = 0.0f;
      const float mean = pass == 0 ? 0.0f : moments[r * 2];
#pragma unroll 1
      for (int first = begin; first < end; first += kPairColumns / 32) {
        float v[8] = {};
        const bool active = first * 4 + at.lane < end * 4;
        gather_columns(from, p.D, r, first * 32 + at.lane * 8, active, v);
#pragma unroll
        for (int k = 0; k < 8; k++) {
          const float d = active ? v[k] - mean : 0.0f;
          sum += pass == 0 ? d : d * d;
        }
      }
      sum = warp_sum(sum);
      if (at.lane == 0) sums[at.k_group * rows_of<C>(p) + r] = sum;
    }
    worker_barrier();
    if (at.k_group == 0 && at.lane < rows_of<C>(p)) {
      const float mean = sum_groups<4>(sums + at.lane, C::kSplit, rows_of<C>(p)) * p.inverse_D;
      moments[at.lane * 2 + pass] = pass == 0 ? mean : rsqrtf(mean + eps);
    }
    worker_barrier();
  }
}

// multiply() for few rows.
template <class C>
__device__ __forceinline__ void multiply_pairs(const Plan& p, const Place<C>& at, const Stream& s, bool i8, int rows,
                                               const Source& from, RowNorm& norm, Barriers& bars, const char* ring,
                                               char* room, Cursor& cursor, Accumulators<C>& acc) {
  using W = typename C::W;
  const int element = sizeof(W) == 2 || !i8 ? 2 : 1, per_slice = s.slice / 32;
  const int begin = at.k_group * s.share, end = min(begin + s.share, s.columns / 32);
  char* own = room + at.k_group * pair_bytes(rows_of<C>(p));
#pragma unroll 1
  for (int slice = 0; slice < s.slices; slice++) {
    const int slice_end = min(end, (slice + 1) * per_slice);
#pragma unroll 1
    for (int first = max(begin, slice * per_slice); first < slice_end; first += kPairColumns / 32) {
      const int count = min(slice_end - first, kPairColumns / 32), column = first * 32 + at.lane * 8;
      const bool active = at.lane < count * 4;
#pragma unroll 1
      for (int r = 0; r < rows_of<C>(p); r++) {
        float v[8] = {};
        gather_columns(from, s.columns, r, column, active, v);
        if (!active) continue;
        if (norm.weight) {
          const float4 w0 = *reinterpret_cast<const float4*>(norm.weight + column);
          const float4 w1 = *reinterpret_cast<const float4*>(norm.weight + column + 4);
          const float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
          if (norm.bias) {
            const float mean = norm.moments[r * 2], factor = norm.moments[r * 2 + 1];
#pragma unroll
            for (int k = 0; k < 8; k++) v[k] = fmaf((v[k] - mean) * factor, w[k], norm.bias[column + k]);
          } else {
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < 8; k++) {
              sum = fmaf(v[k], v[k], sum);
              v[k] *= w[k];
            }
#pragma unroll
            for (int k = 0; k < 4; k++) norm.squares[k] += k == r ? sum : 0.0f;
          }
        }
        uint4 high, low;
        split(v[0], v[1], high.x, low.x);
        split(v[2], v[3], high.y, low.y);
        split(v[4], v[5], high.z, low.z);
        split(v[6], v[7], high.w, low.w);
        *reinterpret_cast<uint4*>(own + r * 2 * kPairPitch + at.lane * 16) = high;
        *reinterpret_cast<uint4*>(own + (r * 2 + 1) * kPairPitch + at.lane * 16) = low;
      }
      __syncwarp();
      barrier_wait(&bars.full[cursor.stage], cursor.phase);
      const char* stage = ring + cursor.stage * p.stage_bytes + ((first - slice * per_slice) * 32 + at.t * 8) * element;
      const char* b_row = own + (min(at.g & 3, rows_of<C>(p) - 1) * 2 + at.g / 4) * kPairPitch + at.t * 16;
#pragma unroll 1
      for (int i = 0; i < count; i++) {
        const uint4 v = *reinterpret_cast<const uint4*>(b_row + i * 64);
        Fragment b;
        b.k[0] = v.x, b.k[1] = v.y, b.k[2] = v.z, b.k[3] = v.w;
#pragma unroll
        for (int m = 0; m < kMaxTiles; m++) {
          if (m * 16 >= rows) break;
          const Fragment low_row = load_weights<W>(stage + min(m * 16 + at.g, rows - 1) * s.pitch, i8);
          const Fragment high_row = load_weights<W>(stage + min(m * 16 + 8 + at.g, rows - 1) * s.pitch, i8);
          mma_both(acc.v[m][0], low_row, high_row, b);
        }
        stage += 32 * element;
      }
      __syncwarp();
    }
    __syncwarp();
    if (at.lane == 0) barrier_arrive(&bars.empty[cursor.stage]);
    cursor.next(p.stages);
  }
}

// Values of one accumulator tile by weight row m and activation row r.
template <class C, class Fn>
__device__ __forceinline__ void each_result(const Place<C>& at, float (&v)[4], int tile_row, int first_row, int m_rows,
                                            int rows, Fn fn) {
  if (C::kPairs) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += __shfl_xor_sync(kFullWarp, v[i], 2);
    if (at.t >= 2) return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int m = tile_row + at.g + (i & 2 ? 8 : 0), r = first_row + at.t * 2 + (i & 1);
    if (m < m_rows && r < rows) fn(m, r, v[i]);
  }
}

// red(k_group, row, m)
template <class C>
__device__ __forceinline__ void store_partial(const Plan& p, const Place<C>& at, int m_rows, Accumulators<C>& acc,
                                              float* red) {
#pragma unroll
  for (int m = 0; m < kMaxTiles; m++) {
    if (m * 16 >= m_rows) break;
#pragma unroll
    for (int j = 0; j < C::kTilesB; j++) {
      const int first = C::kPairs ? 0 : (at.row_group * C::kTilesB + j) * 8;
      each_result<C>(at, acc.v[m][j], m * 16, first, m_rows, rows_of<C>(p),
                     [&](int row, int r, float v) { red[(at.k_group * rows_of<C>(p) + r) * m_rows + row] = v; });
    }
  }
}

}  // namespace mb::cuda::decode
