// Products of a block's weight rows, which come from the ring, with all activations, which come from L2, on the tensor
// cores (mma.m16n8k16).
//
// Each activation is split into two bf16 numbers, x = high + low to 2^-17, so products are near f32 however few bits
// the weights have. Each half has an accumulator of its own; both are added at the end.
//
// A row's bits do not depend on the other rows. The columns of a product are cut into kGroups ranges; within one the
// chunks of 32 columns follow each other in the accumulators. The sums of four neighbouring ranges are added in order,
// then those of the four quads. Moments of norms have an order of their own (RowSums). A single row has code of its
// own, with the same order: there both halves are columns of the B operand, and a thread prepares eight columns and
// passes them on through shared memory. With more rows activations are the A operand, eight rows' high halves above
// their low ones, and a thread prepares what itself will multiply.
//
// The order of k within 32 columns is free as long as both operands share it. Thread t of four takes columns 8t..8t+7,
// so that it loads 16 bytes of weights and 32 bytes of activations at once.
#pragma once
#include <type_traits>

#include "../mma.cuh"
#include "../reduce.cuh"
#include "../vector.cuh"
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

// v = high + low
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  high = pair(a, b);
  low = pair(__fsub_rn(a, first_half(high)), __fsub_rn(b, second_half(high)));
}

// Eight neighbouring weights in shared memory; `i8` matters to kernels for int8 weights only, whose head may be bf16.
template <class W>
__device__ __forceinline__ Fragment load_weights(const char* from, bool i8) {
  if (sizeof(W) == 2 || !i8) return fragment_at(reinterpret_cast<const bf16*>(from));
  return fragment_at(reinterpret_cast<const int8_t*>(from));
}

// A configuration of the kernel. kOne: one row and four taps, known when compiling. kSplit: warps that share the
// columns of a product; the others take other rows. kMTiles: 16-row tiles of a matrix that a block owns at most.
template <class W_, bool kOne_, int kSplit_, int kMTiles_>
struct Config {
  using W = W_;
  static constexpr bool kOne = kOne_;
  static constexpr int kSplit = kSplit_;
  static constexpr int kRowGroups = kWarps / kSplit;
  static constexpr int kMTiles = kMTiles_;
};

template <class C>
__device__ __forceinline__ int rows_of(const Plan& p) {
  return C::kOne ? 1 : p.rows;
}

// This thread's place in products.
template <class C>
struct Place {
  int lane, g, t;        // g: row of a fragment, t: quarter of its columns
  int split, row_group;  // of the warp
  __device__ __forceinline__ explicit Place(int thread) {
    const int warp = thread / 32;
    lane = thread % 32;
    g = lane / 4;
    t = lane % 4;
    split = warp % C::kSplit;
    row_group = warp / C::kSplit;
  }
};

// `groups` terms that lie `stride` apart.
template <int kUnroll>
__device__ __forceinline__ float sum_groups(const float* from, int groups, int stride) {
  float sum = 0.0f;
#pragma unroll kUnroll
  for (int k = 0; k < groups; k++) sum += from[k * stride];
  return sum;
}

// Chunks of 32 columns in a group.
struct Range {
  int begin, end;
  __device__ __forceinline__ Range(const Stream& s, int group) {
    const int chunks = s.columns / 32;
    begin = min(group * s.share, chunks);
    end = min(begin + s.share, chunks);
  }
};

// The slices of a product in the ring, as one warp passes through them. Every warp lets go of every slice, once.
//
// A warp may let go of a slice that it has no use for before it has come, unless the product has more slices than the
// ring has stages: then it would get to a stage's second slice while the first is still on its way, and there a wait
// sees only the parity of the phase, which is that of the slice two before. So it waits for every slice.
struct Slices {
  const Plan& p;
  Barriers& bars;
  Cursor& cursor;
  const Stream& stream;
  int per_slice;  // chunks of 32 columns
  int bound;      // first chunk behind the slice at the cursor
  __device__ __forceinline__ Slices(const Plan& plan, const Stream& s, Barriers& barriers, Cursor& at)
      : p(plan), bars(barriers), cursor(at), stream(s), per_slice(s.slice / 32), bound(per_slice) {}
  // Whether also for slices that it has no use for.
  __device__ __forceinline__ bool waits() const { return stream.slices > p.stages; }
  __device__ __forceinline__ void release(int lane) {
    if (waits()) barrier_wait(&bars.full[cursor.stage], cursor.phase);
    __syncwarp();
    if (lane == 0) barrier_arrive(&bars.empty[cursor.stage]);
    cursor.next(p.stages);
    bound += per_slice;
  }
  __device__ __forceinline__ void release_before(int chunk, int lane) {
#pragma unroll 1
    while (chunk >= bound) release(lane);
  }
  // As many of them as take no waiting, for while the activations are not there.
  __device__ __forceinline__ void release_early(int chunk, int lane) {
#pragma unroll 1
    while (chunk >= bound) {
      if (waits() && !__all_sync(kFullWarp, barrier_passed(&bars.full[cursor.stage], cursor.phase))) return;
      release(lane);
    }
  }
  __device__ __forceinline__ void release_all(int lane) { release_before(stream.slices * per_slice, lane); }
};

// Eight floats of shared memory.
__device__ __forceinline__ void load8(const float* from, float (&to)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// What a norm must know of a row: the sum of its values (LayerNorm only), and of their squares.
struct Moments {
  float sum = 0.0f, squares = 0.0f;
};

// The norm before a product W h. A row's mean and factor are known only when all of it has been seen, so they are
// applied to the result: with h = (x - mean) factor w + b,
//   W h = factor (W (w x) - mean W w) + W b
// and the product takes w x, while W w and W b, which no activation enters, are found once (constants.cu). With RMSNorm
// mean and b are zero.
struct Norm {
  const float* weight = nullptr;  // in shared memory; null: no norm

  // Eight columns times the weight, and their moments before.
  __device__ __forceinline__ void apply(float (&v)[8], int column, Moments& moments) const {
    float w[8];
    load8(weight + column, w);
    moments.sum = 0.0f;
    moments.squares = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      moments.sum += v[k];
      moments.squares = fmaf(v[k], v[k], moments.squares);
      v[k] = __fmul_rn(v[k], w[k]);
    }
  }
};

// Eight neighbouring columns of a row as they were read, which may not have come yet. Columns of the embedding come as
// other blocks would hand them over.
struct Words {
  uint4 a = {}, b = {};
  __device__ __forceinline__ void read(const Source& from, int element) {
    if (from.exchange) {
      a = peek4(from.exchange + element);
      b = peek4(from.exchange + element + 4);
      return;
    }
    float v[8];
    if (from.table_bf16) {
      load_vector<8>(static_cast<const bf16*>(from.table) + element, v);
    } else {
      load_vector<8>(static_cast<const float*>(from.table) + element, v);
    }
    const auto word = [&](int i) { return tagged(v[i], from.tag); };
    a = {word(0), word(1), word(2), word(3)};
    b = {word(4), word(5), word(6), word(7)};
  }
  __device__ __forceinline__ bool there(const Source& from) const {
    return !(missing(a, from.tag) | missing(b, from.tag));
  }
  __device__ __forceinline__ void values(float (&v)[8]) const {
    const uint32_t all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = untagged(all[k]);
  }
};
// Where a row begins.
__device__ __forceinline__ int row_start(const Source& from, int columns, int r) {
  return (from.exchange ? r : from.ids[r]) * columns;
}

// One row: eight columns for each thread that is active, zeros for the others.
__device__ __forceinline__ void gather_columns(const Source& from, int columns, int column, bool active,
                                               float (&v)[8]) {
  Words words;
  const int element = row_start(from, columns, 0) + column;
#pragma unroll 1
  for (unsigned turn = 0;; turn++) {
    if (active) words.read(from, element);
    if (__all_sync(kFullWarp, !active || words.there(from))) break;
    give_up_after(turn);
  }
  words.values(v);
}

// Values of one accumulator tile by weight row m and activation row r, high and low halves added: of columns g and
// g + 4 of the operand.
template <class C, class Fn>
__device__ __forceinline__ void each_result(const Place<C>& at, float (&v)[4], int tile_row, int first_row, int m_rows,
                                            int rows, Fn fn) {
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] += __shfl_xor_sync(kFullWarp, v[i], 2);
  if (at.t >= 2) return;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int m = tile_row + at.g + (i & 2 ? 8 : 0), r = first_row + at.t * 2 + (i & 1);
    if (m < m_rows && r < rows) fn(m, r, v[i]);
  }
}

// The same of a tile of eight activation rows by eight weight rows, of which a thread has its row's high and low
// halves.
template <class C, class Fn>
__device__ __forceinline__ void each_of_tile(const Place<C>& at, const float (&v)[4], int first_m, int first_row,
                                             int m_rows, int rows, Fn fn) {
  const int r = first_row + at.g;
  if (r >= rows) return;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int m = first_m + at.t * 2 + i;
    if (m < m_rows) fn(m, r, v[i] + v[2 + i]);
  }
}

template <class C>
struct Accumulators {
  float v[C::kMTiles][4] = {};
};

// acc += the block's `rows` weight rows, as they come through the ring, times the one row of activations; `moments` of
// the thread's columns, which with a norm are one pass.
template <class C>
__device__ __forceinline__ void multiply_one(const Plan& p, const Place<C>& at, const Stream& s, bool i8, int rows,
                                             const Source& from, const Norm& norm, Barriers& bars, const char* ring,
                                             char* room, Cursor& cursor, Moments& moments, Accumulators<C>& acc) {
  using W = typename C::W;
  const int element = sizeof(W) == 2 || !i8 ? 2 : 1;
  const Range own(s, at.split);
  Slices slices(p, s, bars, cursor);
  char* prepared = room + at.split * 2 * kRoomPitch;
  slices.release_early(min(own.begin, s.columns / 32 - 1), at.lane);
#pragma unroll 1
  for (int first = own.begin; first < own.end; first += kPass) {
    const int count = min(own.end - first, kPass), column = first * 32 + at.lane * 8;
    const bool active = at.lane < count * 4;
    float v[8];
    gather_columns(from, s.columns, column, active, v);
    if (active) {
      if (norm.weight) norm.apply(v, column, moments);
      uint4 high, low;
      split(v[0], v[1], high.x, low.x);
      split(v[2], v[3], high.y, low.y);
      split(v[4], v[5], high.z, low.z);
      split(v[6], v[7], high.w, low.w);
      *reinterpret_cast<uint4*>(prepared + at.lane * 16) = high;
      *reinterpret_cast<uint4*>(prepared + kRoomPitch + at.lane * 16) = low;
    }
    __syncwarp();
    const char* b_row = prepared + at.g / 4 * kRoomPitch + at.t * 16;
#pragma unroll 1
    for (int i = 0; i < count;) {
      slices.release_before(first + i, at.lane);
      barrier_wait(&bars.full[cursor.stage], cursor.phase);
      const int behind = min(count, slices.bound - first);
      const char* stage = ring + cursor.stage * p.stage_bytes +
                          ((first + i - slices.bound + slices.per_slice) * 32 + at.t * 8) * element;
#pragma unroll 1
      for (; i < behind; i++) {
        const uint4 v = *reinterpret_cast<const uint4*>(b_row + i * 64);
        Fragment b;
        b.k[0] = v.x, b.k[1] = v.y, b.k[2] = v.z, b.k[3] = v.w;
#pragma unroll
        for (int m = 0; m < C::kMTiles; m++) {
          if (m * 16 >= rows) break;
          const Fragment low_row = load_weights<W>(stage + min(m * 16 + at.g, rows - 1) * s.pitch, i8);
          const Fragment high_row = load_weights<W>(stage + min(m * 16 + 8 + at.g, rows - 1) * s.pitch, i8);
          multiply_add(acc.v[m], low_row, high_row, b);
        }
        stage += 32 * element;
      }
    }
    __syncwarp();
  }
  slices.release_all(at.lane);
}

constexpr int kTileRows = 8;  // of activations: with both halves the rows of the A operand
__device__ __forceinline__ int row_tiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// Sums over a group's columns of one row, whose chunks a thread adds in turn, in the order of a single row, where lane
// 4 c + t has those of chunk c and warp_sum adds lanes 16, 8, 4, 2 and 1 apart.
struct RowSums {
  float of[4] = {};  // chunks c and c + 4; turned by one place with each chunk, which the total does not see
  __device__ __forceinline__ void add(float v) {
    const float first = of[0] + v;
    of[0] = of[1], of[1] = of[2], of[2] = of[3], of[3] = first;
  }
  __device__ __forceinline__ float total() const {
    float sum = (of[0] + of[2]) + (of[1] + of[3]);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    return sum + __shfl_xor_sync(kFullWarp, sum, 1);
  }
};

constexpr unsigned kPause = 20;  // ns between looks for rows, which many warps take turns at

// What a lane reads of a product's activations: eight columns of each chunk of row g of a tile.
template <class C>
struct Reader {
  const Plan& p;
  const Place<C>& at;
  const Source& from;
  int columns;  // of a row
  Range own;    // of the warp
  __device__ __forceinline__ bool active(int tile, int chunk) const {
    return tile * kTileRows + at.g < rows_of<C>(p) && chunk < own.end;
  }
  __device__ __forceinline__ void read(int tile, int chunk, Words& words) const {
    if (!active(tile, chunk)) {
      words = {};
      return;
    }
    words.read(from, row_start(from, columns, tile * kTileRows + at.g) + chunk * 32 + at.t * 8);
  }
  // The values behind `words`, read again until they have come; 0 where there are none.
  __device__ __forceinline__ void values(int tile, int chunk, Words& words, float (&v)[8]) const {
    const bool some = active(tile, chunk);
#pragma unroll 1
    for (unsigned turn = 0; !__all_sync(kFullWarp, !some || words.there(from)); turn++) {
      give_up_after(turn);
      read(tile, chunk, words);
    }
    words.values(v);
  }
};

// With several tiles, waits for the last row's chunks: blocks write their rows in order, so the others are there or
// about to be. Reading the first tile again and again would keep L2 busy.
template <class C>
__device__ __forceinline__ void await_last_row(const Plan& p, const Place<C>& at, const Source& from, int columns,
                                               const Range& own) {
  const int chunk = own.begin + at.g, rows = rows_of<C>(p);
  if (rows > kTileRows && from.exchange && chunk < own.end) {
    const uint32_t* last = from.exchange + row_start(from, columns, rows - 1) + chunk * 32 + at.t * 8 + 4;
#pragma unroll 1
    for (unsigned turn = 0; missing(peek4(last), from.tag); turn++) {
      give_up_after(turn);
      __nanosleep(kPause);
    }
  }
  __syncwarp();
}

// red(partial, row, m) = the block's `rows` weight rows, as they come through the ring, times the activations;
// moments(group, row).
template <class C>
__device__ __forceinline__ void multiply_rows(const Plan& p, const Place<C>& at, const Stream& s, bool i8, int rows,
                                              const Source& from, const Norm& norm, Barriers& bars, const char* ring,
                                              Cursor& cursor, Moments* moments, float* red) {
  using W = typename C::W;
  constexpr int kSpan = kGroups / C::kSplit, kMTiles = 2 * C::kMTiles;  // of eight rows
  const int element = sizeof(W) == 2 || !i8 ? 2 : 1, all = rows_of<C>(p), tiles = row_tiles(all);
  const int own_row = at.g * s.pitch, last_row = (rows - 1) * s.pitch;
  Slices slices(p, s, bars, cursor);
#pragma unroll 1
  for (int part = 0; part < kSpan; part++) {
    const int group = at.split * kSpan + part;
    const Range own(s, group);
    const int begin = min(own.begin, s.columns / 32 - 1);
    slices.release_early(begin, at.lane);
    await_last_row<C>(p, at, from, s.columns, own);
    slices.release_before(begin, at.lane);
    const Reader<C> reader{p, at, from, s.columns, own};
    Words ahead;  // activations are read one turn ahead
    reader.read(at.row_group, own.begin, ahead);
#pragma unroll 1
    for (int tile = at.row_group; tile < tiles; tile += C::kRowGroups) {
      RowSums sums, squares;
      float acc[kMTiles][4] = {};
      // All slices of the range stay until the last tile has been through them.
      Cursor now = cursor;
      int bound = slices.bound;
      if (own.begin < own.end) barrier_wait(&bars.full[now.stage], now.phase);
#pragma unroll 1
      for (int chunk = own.begin; chunk < own.end; chunk++) {
        float v[8];
        reader.values(tile, chunk, ahead, v);
        const bool more = chunk + 1 < own.end;
        reader.read(more ? tile : tile + C::kRowGroups, more ? chunk + 1 : own.begin, ahead);
        if (norm.weight) {
          Moments columns;
          norm.apply(v, chunk * 32 + at.t * 8, columns);
          sums.add(columns.sum);
          squares.add(columns.squares);
        }
        Fragment high, low;
#pragma unroll
        for (int k = 0; k < 4; k++) split(v[2 * k], v[2 * k + 1], high.k[k], low.k[k]);
        if (chunk >= bound) {
          now.next(p.stages);
          bound += slices.per_slice;
          barrier_wait(&bars.full[now.stage], now.phase);
        }
        const char* stage =
            ring + now.stage * p.stage_bytes + ((chunk - bound + slices.per_slice) * 32 + at.t * 8) * element;
        // Without a branch for each, so that loads and products of several tiles run side by side.
        const auto add_tiles = [&](auto n) {
#pragma unroll
          for (int m = 0; m < n(); m++) {
            multiply_add(acc[m], high, low, load_weights<W>(stage + min(own_row + m * 8 * s.pitch, last_row), i8));
          }
        };
        if (rows <= 16) {
          add_tiles(std::integral_constant<int, 2>{});
        } else {
          add_tiles(std::integral_constant<int, kMTiles>{});
        }
      }
      if (norm.weight) {
        const Moments of_group{sums.total(), squares.total()};
        const int r = tile * kTileRows + at.g;
        if (at.t == 0 && r < all) moments[group * all + r] = of_group;
      }
#pragma unroll
      for (int m = 0; m < kMTiles; m++) {
        if (m * 8 >= rows) break;
        each_of_tile<C>(at, acc[m], m * 8, tile * kTileRows, rows, all, [&](int row, int r, float v) {
          float& sum = red[(at.split * all + r) * rows + row];
          sum = part == 0 ? v : sum + v;
        });
      }
    }
  }
  slices.release_all(at.lane);
}

}  // namespace mb::cuda::decode
