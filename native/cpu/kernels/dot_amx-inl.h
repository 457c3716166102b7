// Few activation rows times many weight rows on Intel's matrix tiles. 16 weight rows by 64 bytes are a tile as they lie
// in memory, so nothing is packed but the activations: their tiles hold one 32-bit group of k (two bf16 or four bytes)
// a row and one activation row a column. i8 weights take two columns an activation row, hi and lo of DotBytes.
#pragma once
#include "dot_bytes-inl.h"

#ifdef MB_TILES
namespace mb::cpu::MB_TARGET {

constexpr int64_t kAmxTile = 1024;  // bytes of a full tile
constexpr int64_t kAmxSums = 256;   // values of a full tile of sums

struct alignas(64) AmxConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Every tile has 16 rows; those whose bit is set in `narrow` have `cols` 32-bit columns, the others 16.
__attribute__((target("amx-tile"), noinline)) static void amx_begin(int narrow, int cols) {
  AmxConfig config;
  for (int i = 0; i < 8; i++) {
    config.row_bytes[i] = static_cast<uint16_t>(narrow >> i & 1 ? 4 * cols : 64);
    config.rows[i] = 16;
  }
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic names only the address of the 64 bytes
  _tile_loadconfig(&config);
}
__attribute__((target("amx-tile"), noinline)) static void amx_end() { _tile_release(); }

// Tiles of activation rows, of which there may be 1, 2 or 4. One of i8 has the hi parts of its eight rows in the first
// eight columns, the lo parts in the others.
static DotColumns amx_columns(DType weight, int64_t count, int64_t k) {
  const bool bytes = weight == DType::i8;
  const int64_t most = bytes ? 8 : 16, in_depth = 64 / dtype_size(weight), rows = bytes ? most : min64(count, most);
  const int64_t tiles = count <= most ? 1 : count <= 2 * most ? 2 : 4;
  return {(k + in_depth - 1) / in_depth, rows, tiles, bytes ? 16 : rows};
}

// Products fit when whole tiles of weight rows do and the columns fill at most four tiles. Tiles add bf16 products in
// an order of their own, so they take any number of rows or none; i8 sums are exact, and for up to four rows, which
// leave most columns of a tile empty, vector dot products are faster.
static bool amx_few(const Tensor& weight, int64_t rows) {
  if (weight.rows() < kTileRows || rows > 32 || has_short_rows(weight)) return false;
  return weight.dtype == DType::bf16 || (weight.dtype == DType::i8 && rows >= 5);
}

static int64_t amx_few_bytes(DType weight, int64_t rows, int64_t k) {
  const int64_t row = weight == DType::bf16 ? DotBf16::row_bytes(k) : DotBytes::row_bytes(k);
  return rows * row + amx_columns(weight, rows, k).bytes();
}

static DotInput amx_prepare(DType weight, const float* x, int64_t stride, int64_t rows, int64_t k, char* to) {
  const DotColumns s = amx_columns(weight, rows, k);
  char* columns = to + rows * (weight == DType::bf16 ? DotBf16::row_bytes(k) : DotBytes::row_bytes(k));
  DotInput input;
  if (weight == DType::bf16) {
    input = DotBf16::prepare(x, stride, rows, k, to);
    if (rows == 1) {
      columns = to;  // one column: groups of k in order, as they are
    } else {
      pack_columns<DotBf16, 1>(input, s, columns);
    }
  } else {
    input = DotBytes::prepare(x, stride, rows, k, to);
    pack_columns<DotBytes, 2>(input, s, columns);
  }
  input.columns = columns;
  return input;
}

// Rows of weights that fill no whole tile: past the end of a row may lie anything, NaN included, or nothing.
static void amx_copy_end(const char* w, int64_t stride, int64_t bytes, char* to) {
  for (int r = 0; r < 16; r++) {
    _mm512_store_si512(to + 64 * r, _mm512_maskz_loadu_epi8(first_n64(bytes), w + r * stride));
  }
  asm volatile("" : : "r"(to) : "memory");  // the tile loads name only addresses
}

// 16 lines of weights that are wanted later, in the order in which they lie: memory gives those soonest.
MB_INLINE void amx_fetch(const char* p) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) prefetch_far(p + 64 * i);
}

// Tiles of weight rows that are multiplied at once with kTiles column tiles.
constexpr int amx_side(int tiles) { return tiles == 4 ? 1 : 2; }

// sums[weight tile][column tile][weight row][column] for amx_side(kTiles) tiles of weight rows, each at its own
// address.
template <bool kInt, int kTiles>
__attribute__((target("amx-tile,amx-bf16,amx-int8"), noinline)) static void amx_few_sums(
    const char* const (&w)[2], int64_t stride, int64_t row_bytes, const char* x, int64_t tile_bytes, float* sums) {
#define MB_DOT(sum, a, b)      \
  if constexpr (kInt) {        \
    _tile_dpbssd(sum, a, b);   \
  } else {                     \
    _tile_dpbf16ps(sum, a, b); \
  }
  constexpr int kSide = amx_side(kTiles);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTiles > 1) _tile_zero(2);
  if constexpr (kTiles > 1) _tile_zero(3);
  const int64_t x_stride = tile_bytes / 16;
  alignas(64) char last[kSide][kAmxTile];
  const char* fetch = w[0] + kSide * kTileRows * stride;
  for (int64_t at = 0; at < row_bytes; at += 64) {
    const char* from[kSide];
    const bool whole = row_bytes - at >= 64;
    const int64_t from_stride = whole ? stride : 64;
    for (int i = 0; i < kSide; i++) {
      from[i] = whole ? w[i] + at : last[i];
      if (!whole) amx_copy_end(w[i] + at, stride, row_bytes - at, last[i]);
      amx_fetch(fetch);
      fetch += kAmxTile;
    }
    if constexpr (kTiles == 1) {
      _tile_loadd(5, x, x_stride);
      _tile_loadd(4, from[0], from_stride);
      MB_DOT(0, 4, 5)
      _tile_loadd(7, from[1], from_stride);
      MB_DOT(1, 7, 5)
    } else if constexpr (kTiles == 2) {
      _tile_loadd(5, x, x_stride);
      _tile_loadd(4, from[0], from_stride);
      MB_DOT(0, 4, 5)
      _tile_loadd(6, x + tile_bytes, x_stride);
      MB_DOT(1, 4, 6)
      _tile_loadd(7, from[1], from_stride);
      MB_DOT(2, 7, 5)
      MB_DOT(3, 7, 6)
    } else {
      _tile_loadd(4, from[0], from_stride);
      _tile_loadd(5, x, x_stride);
      MB_DOT(0, 4, 5)
      _tile_loadd(6, x + tile_bytes, x_stride);
      MB_DOT(1, 4, 6)
      _tile_loadd(7, x + 2 * tile_bytes, x_stride);
      MB_DOT(2, 4, 7)
      _tile_loadd(5, x + 3 * tile_bytes, x_stride);
      MB_DOT(3, 4, 5)
    }
    x += kTiles * tile_bytes;
  }
#undef MB_DOT
  _tile_stored(0, sums, x_stride);
  _tile_stored(1, sums + kAmxSums, x_stride);
  if constexpr (kTiles > 1) _tile_stored(2, sums + 2 * kAmxSums, x_stride);
  if constexpr (kTiles > 1) _tile_stored(3, sums + 3 * kAmxSums, x_stride);
}

// One tile of sums [weight row][column] of bf16 to sums of activation rows, 16 weight rows each.
MB_INLINE void amx_bf16_store(const float* tile, const DotColumns& s, const DotInput& x, int64_t first_row,
                              int64_t skip, const DotOutput& out, int64_t begin, int64_t n) {
  if (s.cols == 1) return dot_store(out, tile + skip, first_row, begin, n);
  V t[W];
  for (int m = 0; m < 16; m++) t[m] = load_n(tile + m * s.cols, static_cast<int>(s.cols));
  transpose(t);
  const int64_t rows = min64(s.rows, x.rows - first_row);
  for (int64_t r = 0; r < rows; r++) {
    float sums[W];
    store(sums, t[r]);
    dot_store(out, sums + skip, first_row + r, begin, n);
  }
}

// One tile of sums [weight row][hi of 8 rows, lo of 8 rows] to sums of activation rows, 16 weight rows each.
MB_INLINE void amx_i8_store(const float* tile, const DotInput& x, int64_t first_row, int64_t skip, const DotOutput& out,
                            int64_t begin, int64_t n) {
  const int64_t rows = min64(8, x.rows - first_row);
  alignas(64) float scales[W] = {};
  for (int64_t r = 0; r < rows; r++) {
    scales[r] = scales[8 + r] = DotBytes::scale(x.data + (first_row + r) * x.row_bytes);
  }
  const V scale = load(scales);
  V t[8], u[8];  // eight activation rows of two weight rows each
  MB_UNROLL
  for (int i = 0; i < 8; i++) {
    const __m512i a = _mm512_load_si512(tile + 32 * i), b = _mm512_load_si512(tile + 32 * i + 16);
    t[i] = DotBytes::join_parts(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee)) * scale;
  }
  // A round takes even and odd lanes of two neighbours apart: it makes the lowest bit of the lane the highest of the
  // number, and the lowest bit of the number the highest of the lane. After three the number is the activation row.
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const auto round = [&](const V* from, V* to) __attribute__((always_inline)) {
    MB_UNROLL
    for (int i = 0; i < 4; i++) {
      to[i].v = _mm512_permutex2var_ps(from[2 * i].v, even, from[2 * i + 1].v);
      to[4 + i].v = _mm512_permutex2var_ps(from[2 * i].v, odd, from[2 * i + 1].v);
    }
  };
  round(t, u);
  round(u, t);
  round(t, u);
  alignas(64) float sums[8][W];
  MB_UNROLL
  for (int r = 0; r < 8; r++) store(sums[r], u[r]);
  for (int64_t r = 0; r < rows; r++) dot_store(out, sums[r] + skip, first_row + r, begin, n);
}

template <bool kInt, int kTiles>
static void amx_few_range(const Tensor& weight, const DotInput& x, const DotColumns& s, int64_t begin, int64_t end,
                          const DotOutput& out) {
  constexpr int kSide = amx_side(kTiles);
  const int64_t size = dtype_size(weight.dtype), stride = weight.row_stride * size;
  const char* base = weight.ptr<char>();
  // Sums and column tiles are narrow; in amx_few_sums those are 0 to 3 and, by kTiles, 5, 6 and 7.
  amx_begin(0x0f | (kTiles == 1 ? 0x20 : kTiles == 2 ? 0x60 : 0xe0), static_cast<int>(s.cols));
  alignas(64) float sums[4 * kAmxSums];
  for (int64_t m = begin; m < end; m += kSide * kTileRows) {
    const char* w[2] = {};
    int64_t from[kSide];
    for (int i = 0; i < kSide; i++) {
      from[i] = min64(m + i * kTileRows, weight.rows() - kTileRows);  // a short tile is moved back to whole rows
      w[i] = base + from[i] * stride;
    }
    amx_few_sums<kInt, kTiles>(w, stride, x.k * size, x.columns, s.tile_bytes(), sums);
    for (int i = 0; i < kSide && m + i * kTileRows < end; i++) {
      const int64_t at = m + i * kTileRows, n = min64(kTileRows, end - at);
      for (int64_t tile = 0; tile < kTiles && tile * s.rows < x.rows; tile++) {
        const float* own = sums + (i * kTiles + tile) * kAmxSums;
        if constexpr (kInt) amx_i8_store(own, x, tile * s.rows, at - from[i], out, at, n);
        if constexpr (!kInt) amx_bf16_store(own, s, x, tile * s.rows, at - from[i], out, at, n);
      }
    }
  }
  amx_end();
}

static void amx_few_run(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  const DotColumns s = amx_columns(weight.dtype, x.rows, x.k);
  if (weight.dtype == DType::bf16) {
    if (s.tiles == 1) return amx_few_range<false, 1>(weight, x, s, begin, end, out);
    return amx_few_range<false, 2>(weight, x, s, begin, end, out);
  }
  if (s.tiles == 1) return amx_few_range<true, 1>(weight, x, s, begin, end, out);
  if (s.tiles == 2) return amx_few_range<true, 2>(weight, x, s, begin, end, out);
  amx_few_range<true, 4>(weight, x, s, begin, end, out);
}

}  // namespace mb::cpu::MB_TARGET
#endif
