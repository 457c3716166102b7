// linear for many rows on Intel's matrix tiles: y(R,M) = scale * (x(R,K) weight(M,K)^T) + bias + add with x and the
// weights in bf16 and sums in f32. One tile product adds (16 rows x 32) times (32 x 16 columns).
//
// x is packed by all threads into tiles [32 rows][32 of k]; then each thread packs the 32 weight rows of a task into
// tiles [16 pairs of k][16 columns] of its own and runs them past all of x, four tiles of sums at a time.
#pragma once
#include "dot_amx-inl.h"
#include "gemm-inl.h"

#ifdef MB_TILES
namespace mb::cpu::MB_TARGET {

constexpr int64_t kAmxSide = 32;                  // rows and columns of one task's sums: 2 x 2 tiles
constexpr int64_t kAmxDepth = 32;                 // k of one tile product
constexpr int64_t kAmxCached = int64_t{1} << 20;  // bytes of packed x that stay in the second-level cache

struct AmxSizes {
  int64_t depths, row_block, packed_x, own_bytes;
  AmxSizes(int64_t rows, int64_t k) {
    depths = (k + kAmxDepth - 1) / kAmxDepth;
    const int64_t row_bytes = depths * kAmxDepth * 2;
    row_block = min64(round_up(rows, kAmxSide), max64(kAmxSide, kAmxCached / row_bytes / kAmxSide * kAmxSide));
    packed_x = row_block * row_bytes;
    own_bytes = kAmxSide * row_bytes + 4 * kAmxTile;
  }
};

static int64_t amx_scratch(int64_t rows, int64_t k, int threads) {
  const AmxSizes s(rows, k);
  return s.packed_x + threads * s.own_bytes;
}

// sums: four tiles of 16 x 16, [row half][column half].
__attribute__((target("amx-tile,amx-bf16"), noinline)) static void amx_sums(const char* x, const char* w,
                                                                            int64_t depths, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < depths; i++) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + kAmxTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + kAmxTile, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    x += 2 * kAmxTile;
    w += 2 * kAmxTile;
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// 32 rows of x from `first`: [depth][row][32 of k]; rows from `rows` on are 0.
MB_INLINE void amx_pack_x(const ReadPairsF32& read, int64_t first, int64_t rows, int64_t depths, char* to) {
  for (int64_t r = 0; r < kAmxSide; r++) {
    for (int64_t i = 0; i < depths; i++) {
      const V v = r < rows ? read(first + r, i * kAmxDepth / 2, W) : zero();
      store(reinterpret_cast<float*>(to + i * 2 * kAmxTile + r * 64), v);
    }
  }
}

// 32 weight rows from `first`: [depth][column half][pair of k][column]; rows from `cols` on are 0.
template <class Read>
MB_INLINE void amx_pack_weight(const Read& read, int64_t first, int64_t cols, int64_t depths, char* to) {
  for (int64_t half = 0; half < 2; half++) {
    for (int64_t i = 0; i < depths; i++) {
      V t[W];
#pragma GCC unroll 16
      for (int c = 0; c < W; c++) {
        const int64_t col = half * W + c;
        t[c] = col < cols ? read(first + col, i * kAmxDepth / 2, W) : zero();
      }
      transpose(t);
      float* tile = reinterpret_cast<float*>(to + (2 * i + half) * kAmxTile);
#pragma GCC unroll 16
      for (int c = 0; c < W; c++) store(tile + c * W, t[c]);
    }
  }
}

MB_INLINE void amx_store(const GemmOutput& out, const float* sums, int64_t row, int64_t rows, int64_t col,
                         int64_t cols) {
  for (int64_t half = 0; half < 2; half++) {
    const int64_t m = col + half * W;
    const int n = static_cast<int>(min64(W, cols - half * W));
    if (n <= 0) break;
    const V scale = out.scale ? load_n(out.scale + m, n) : set1(1.0f);
    const V bias = out.bias ? load_n(out.bias + m, n) : zero();
    for (int64_t r = 0; r < rows; r++) {
      const float* sum = sums + (r / W * 2 + half) * 256 + r % W * W;
      const V start = out.add ? bias + load_n(out.add + (row + r) * out.add_stride + m, n) : bias;
      store_n(out.c + (row + r) * out.stride + m, fma(scale, load(sum), start), n);
    }
  }
}

template <class Read>
MB_INLINE void amx_linear(const Team& team, int64_t rows, int64_t cols, int64_t k, const ReadPairsF32& x,
                          const Read& weight, const GemmOutput& out) {
  const AmxSizes s(rows, k);
  char* packed_x = team.scratch;
  char* packed_w = packed_x + s.packed_x + team.index * s.own_bytes;
  float* sums = reinterpret_cast<float*>(packed_w + s.depths * 2 * kAmxTile);
  const int64_t panel = s.depths * 2 * kAmxTile;
  const Team::Range tasks = team.share((cols + kAmxSide - 1) / kAmxSide);
  amx_begin(0, 16);
  for (int64_t r0 = 0; r0 < rows; r0 += s.row_block) {
    const int64_t some = min64(s.row_block, rows - r0), panels = (some + kAmxSide - 1) / kAmxSide;
    if (r0) team.barrier();
    const Team::Range mine = team.share(panels);
    for (int64_t p = mine.begin; p < mine.end; p++) {
      amx_pack_x(x, r0 + p * kAmxSide, some - p * kAmxSide, s.depths, packed_x + p * panel);
    }
    team.barrier();
    for (int64_t t = tasks.begin; t < tasks.end; t++) {
      const int64_t col = t * kAmxSide, some_cols = min64(kAmxSide, cols - col);
      amx_pack_weight(weight, col, some_cols, s.depths, packed_w);
      for (int64_t p = 0; p < panels; p++) {
        amx_sums(packed_x + p * panel, packed_w, s.depths, sums);
        amx_store(out, sums, r0 + p * kAmxSide, min64(kAmxSide, some - p * kAmxSide), col, some_cols);
      }
    }
  }
  amx_end();
}

}  // namespace mb::cpu::MB_TARGET
#endif
