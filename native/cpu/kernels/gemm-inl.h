// Packed matrix product for many rows: C(rows, cols) = init + scale * A(rows, k) B(k, cols), as BLIS (Van Zee & van de
// Geijn 2015) blocks it. k is counted in steps: one f32, or a pair of bf16, per 32-bit lane.
//
// For every block of kBlockK steps A is packed into panels of kPanelRows rows ([step][row]) and B into panels of
// kPanelCols columns ([step][column]), and then every thread computes its share of the tiles (one panel of A by one of
// B). The blocks and tiles are fixed by the shape, so results are the same bits for any number of threads.
#pragma once
#include "dot-inl.h"

namespace mb::cpu::MB_TARGET {

constexpr int kPanelRows = W == 16 ? 14 : W == 8 ? 6 : 4;
constexpr int kPanelVectors = 2;
constexpr int kPanelCols = kPanelVectors * W;
constexpr int64_t kBlockK = 256;                 // a panel of B then fits the first-level cache
constexpr int64_t kBlockRows = 2016;             // rows of A packed at once; bounds the scratch
constexpr int64_t kCacheRows = 32 * kPanelRows;  // rows of packed A that stay in the second-level cache

// Row-major f32 rows with a distance between them.
struct Rows {
  const float* data;
  int64_t stride;
};

// Packs `rows` rows of a matrix whose rows run along k: to[step][width]. read(row, step, n) gives n steps of a row.
template <class Read>
MB_INLINE void pack_across(const Read& read, int64_t first, int64_t rows, int width, int64_t begin, int64_t end,
                           float* to) {
  for (int64_t r = 0; r < width; r += W) {
    const int wide = static_cast<int>(min64(W, width - r));
    for (int64_t s = begin; s < end; s += W) {
      const int steps = static_cast<int>(min64(W, end - s));
      V t[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) t[i] = r + i < rows ? read(first + r + i, s, steps) : zero();
      transpose(t);
      for (int i = 0; i < steps; i++) store_n(to + (s - begin + i) * width + r, t[i], wide);
    }
  }
}

// Packs `cols` columns of a matrix whose rows are the steps: a copy.
MB_INLINE void pack_along(const Rows& m, int64_t first, int64_t cols, int width, int64_t begin, int64_t end,
                          float* to) {
  for (int64_t s = begin; s < end; s++) {
    const float* from = m.data + s * m.stride + first;
    float* row = to + (s - begin) * width;
    for (int64_t j = 0; j < width; j += W) {
      const int n = static_cast<int>(max64(0, min64(W, cols - j)));
      const int wide = static_cast<int>(min64(W, width - j));
      const V v = n == W ? load(from + j) : n ? load_n(from + j, n) : zero();
      if (wide == W) {
        store(row + j, v);
      } else {
        store_n(row + j, v, wide);
      }
    }
  }
}

// Readers of operands, a vector of steps at a time.
template <class E>
struct ReadWide {
  const E* data;
  int64_t stride, k;
  MB_INLINE V get(const float* p, int n) { return n == W ? load(p) : load_n(p, n); }
  MB_INLINE V get(const uint16_t* p, int n) { return n == W ? load_bf16(p) : load_bf16_n(p, n); }
  MB_INLINE V get(const int8_t* p, int n) { return n == W ? load_i8(p) : load_i8_n(p, n); }
  V operator()(int64_t row, int64_t step, int n) const { return get(data + row * stride + step, n); }
};

struct MacF32 {
  using B = V;
  MB_INLINE V load_b(const float* p) { return load(p); }
  MB_INLINE V load_a(const float* p) { return set1(*p); }
  MB_INLINE V mac(V a, V b, V acc) { return fma(a, b, acc); }
};

#if MB_LEVEL == MB_LEVEL_avx512
MB_INLINE V as_floats(__m512i v) { return {_mm512_castsi512_ps(v)}; }

struct ReadPairsF32 {
  const float* data;
  int64_t stride, k;
  V operator()(int64_t row, int64_t step, int) const {
    const float* p = data + row * stride + 2 * step;
    const int64_t n = k - 2 * step;
    if (n >= 32) return as_floats(pack_bf16(load(p), load(p + 16)));
    return as_floats(pack_bf16(load_n(p, static_cast<int>(min64(n, 16))),
                               n > 16 ? load_n(p + 16, static_cast<int>(n - 16)) : zero()));
  }
};

struct ReadPairsBf16 {
  const uint16_t* data;
  int64_t stride, k;
  V operator()(int64_t row, int64_t step, int) const {
    const __mmask32 mask = static_cast<__mmask32>(first_n64(k - 2 * step));
    return as_floats(_mm512_maskz_loadu_epi16(mask, data + row * stride + 2 * step));
  }
};

struct MacBf16 {
  MB_INLINE V load_b(const float* p) { return load(p); }
  MB_INLINE V load_a(const float* p) { return set1(*p); }
  MB_INLINE V mac(V a, V b, V acc) {
    return {_mm512_dpbf16_ps(acc.v, as_bf16(_mm512_castps_si512(a.v)), as_bf16(_mm512_castps_si512(b.v)))};
  }
};
#endif

// C and what its first block starts from: bias + add, C itself (accumulate), or 0.
struct GemmOutput {
  float* c;
  int64_t stride;
  const float* bias;
  const float* scale;
  const float* add;
  int64_t add_stride;
  bool accumulate;
};

// One tile: MR rows of packed A by one panel of packed B.
template <class Mac, int MR>
__attribute__((noinline)) void gemm_tile(int64_t steps, const float* a, const float* b, const GemmOutput& out,
                                         int64_t row, int64_t col, int64_t cols, bool first) {
  V acc[MR][kPanelVectors];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; j++) acc[i][j] = zero();
  }
  for (int64_t s = 0; s < steps; s++) {
    V bv[kPanelVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; j++) bv[j] = Mac::load_b(b + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const V av = Mac::load_a(a + i);
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; j++) acc[i][j] = Mac::mac(av, bv[j], acc[i][j]);
    }
    a += MR;
    b += kPanelCols;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kPanelVectors; j++) {
    const int n = static_cast<int>(max64(0, min64(W, cols - j * W)));
    if (n == 0) break;
    const int64_t m = col + j * W;
    const V scale = out.scale ? load_n(out.scale + m, n) : set1(1.0f);
    const V bias = first && out.bias ? load_n(out.bias + m, n) : zero();
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      float* c = out.c + (row + i) * out.stride + m;
      V v = bias;
      if (!first || out.accumulate) {
        v = load_n(c, n);
      } else if (out.add) {
        v = v + load_n(out.add + (row + i) * out.add_stride + m, n);
      }
      store_n(c, fma(scale, acc[i][j], v), n);
    }
  }
}

// Calls f with `rows`, 1 .. kPanelRows, as a constant.
template <class F>
MB_INLINE void with_panel_rows(int64_t rows, const F& f) {
#define MB_TILE(n)                                                      \
  case n:                                                               \
    if constexpr (n <= kPanelRows) f(std::integral_constant<int, n>{}); \
    break;
  switch (rows) {
    MB_TILE(1)
    MB_TILE(2)
    MB_TILE(3)
    MB_TILE(4)
    MB_TILE(5)
    MB_TILE(6)
    MB_TILE(7)
    MB_TILE(8)
    MB_TILE(9)
    MB_TILE(10)
    MB_TILE(11)
    MB_TILE(12)
    MB_TILE(13)
    MB_TILE(14)
  }
#undef MB_TILE
}

static int64_t gemm_scratch(int64_t rows, int64_t cols, int64_t steps) {
  const int64_t block = min64(steps, kBlockK);
  return round_up(block * (round_up(min64(rows, kBlockRows), kPanelRows) + round_up(cols, kPanelCols)) * 4, 64);
}

// pack_a(first row, rows, begin, end, to) and pack_b(first column, columns, begin, end, to) pack one panel.
template <class Mac, class PackA, class PackB>
MB_INLINE void gemm(const Team& team, int64_t rows, int64_t cols, int64_t steps, const PackA& pack_a,
                    const PackB& pack_b, const GemmOutput& out) {
  static_assert(kBlockRows % kPanelRows == 0);
  const int64_t b_panels = (cols + kPanelCols - 1) / kPanelCols;
  const int64_t block_size = min64(steps, kBlockK);
  float* packed_b = reinterpret_cast<float*>(team.scratch);
  float* packed_a = packed_b + b_panels * kPanelCols * block_size;
  for (int64_t k0 = 0; k0 < steps; k0 += kBlockK) {
    const int64_t k1 = min64(steps, k0 + kBlockK), block = k1 - k0;
    for (int64_t r0 = 0; r0 < rows; r0 += kBlockRows) {
      const int64_t some = min64(kBlockRows, rows - r0), a_panels = (some + kPanelRows - 1) / kPanelRows;
      if (k0 || r0) team.barrier();
      if (r0 == 0) {
        const Team::Range share = team.share(b_panels);
        for (int64_t p = share.begin; p < share.end; p++) {
          pack_b(p * kPanelCols, min64(kPanelCols, cols - p * kPanelCols), k0, k1, packed_b + p * kPanelCols * block);
        }
      }
      const Team::Range share = team.share(a_panels);
      for (int64_t p = share.begin; p < share.end; p++) {
        pack_a(r0 + p * kPanelRows, min64(kPanelRows, some - p * kPanelRows), k0, k1,
               packed_a + p * kPanelRows * block);
      }
      team.barrier();
      // Tiles in the order (group of A panels, B panel, A panel in the group): the group stays in the second-level
      // cache, the B panel in the first.
      constexpr int64_t kGroup = kCacheRows / kPanelRows;
      const Team::Range tiles = team.share(a_panels * b_panels);
      for (int64_t t = tiles.begin; t < tiles.end; t++) {
        const int64_t group = t / (kGroup * b_panels), in_group = t - group * kGroup * b_panels;
        const int64_t members = min64(kGroup, a_panels - group * kGroup);
        const int64_t pb = in_group / members, pa = group * kGroup + in_group % members;
        const int64_t rows_left = min64(kPanelRows, some - pa * kPanelRows);
        with_panel_rows(
            rows_left, [&](auto height) __attribute__((always_inline)) {
              gemm_tile<Mac, height>(block, packed_a + pa * kPanelRows * block, packed_b + pb * kPanelCols * block, out,
                                     r0 + pa * kPanelRows, pb * kPanelCols, min64(kPanelCols, cols - pb * kPanelCols),
                                     k0 == 0);
            });
      }
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
