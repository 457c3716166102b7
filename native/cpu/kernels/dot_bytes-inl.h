// Few activation rows times rows of i8 weights on AVX-512, exactly.
//
// Activations are quantised per row to 16-bit integers, x = s q, s = absmax / 32639, and their products with the
// weights are summed as integers. The only errors are the rounding of x to 16 bits and one of the sum, so that all ways
// to it give the same bits, here and on matrix tiles (dot_amx-inl.h).
//
// vpdpbusd adds four products of bytes in each lane. It takes one operand without sign: so q is taken as two signed
// bytes, 256 hi + lo, and weights as w + 128; the surplus 128 q is taken off at the end.
//
// For one or two activation rows lanes are groups of columns, as they lie. For more, lanes are 16 weight rows: bytes
// are turned in registers, 16 x 16 of them at a time, so that a lane has four neighbouring columns of its row, and all
// lanes take the same four of an activation row, which come straight from memory. Nothing is left to sum over lanes
// then, and the turning fits in beside the products.
#pragma once
#include "dot-inl.h"

#if MB_LEVEL == MB_LEVEL_avx512
namespace mb::cpu::MB_TARGET {

constexpr int64_t kAlongRows = 2;       // up to so many activation rows lanes are columns
constexpr int64_t kColumnsAhead = 128;  // how far ahead of the products columns are fetched into the first-level cache

// acc + groups of four products, u unsigned by x signed bytes. In assembly because GCC 12 wraps the intrinsics in
// copies of the accumulator that cost more than the product.
MB_INLINE void dot_bytes(__m512i& acc, __m512i u, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(x));
}
// The same with four bytes at x for all lanes.
MB_INLINE void dot_bytes(__m512i& acc, __m512i u, const char* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*reinterpret_cast<const char(*)[4]>(x)));
}

MB_INLINE __m512 rounded(__m512d first, __m512d second) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(first)), _mm512_cvtpd_ps(second), 1);
}

// How a row is taken as 16-bit integers.
struct DotScale {
  float scale, inverse;
  static DotScale of(const float* x, int64_t k) {
    V largest = zero(), poison = zero();
    const auto weigh = [&](V v) __attribute__((always_inline)) {
      largest = max({_mm512_abs_ps(v.v)}, largest);
      poison = fma(v, zero(), poison);  // NaN once any value is not finite
    };
    const int64_t even = k - k % W;
    for (int64_t j = 0; j < even; j += W) weigh(load(x + j));
    if (even < k) weigh(load_n(x + even, static_cast<int>(k - even)));
    const float absmax = reduce_max(largest);
    // 127 * 256 + 127, so that hi stays a signed byte. Rows smaller than 1e-30 count as zero: 1 / s would overflow.
    return {absmax / 32639.0f + reduce_add(poison), absmax > 1e-30f ? 32639.0f / absmax : 0.0f};
  }
};
// 64 numbers, or the n that are left and zeros, as integers.
MB_INLINE void quantize64(const float* x, int64_t n, const DotScale& s, __m512i (&q)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const V v = n >= 64 ? load(x + 16 * i) : load_n(x + 16 * i, static_cast<int>(max64(0, min64(n - 16 * i, 16))));
    q[i] = _mm512_cvtps_epi32((v * set1(s.inverse)).v);
  }
}

struct DotBytes {
  using Elem = int8_t;
  using Weights = __m512i;
  struct Acc {
    __m512i high, low;
  };
  static constexpr int kStep = 64;
  static constexpr int kRows1 = 8, kRows2 = 4;
  // A prepared row: the scale and the negated surplus of hi and of lo (4 bytes each), then hi and lo by turns, 64 each.
  static constexpr int64_t kHead = 64;

  static int64_t row_bytes(int64_t k) { return kHead + 2 * round_up(k, 64); }
  static DotInput prepare(const float* x, int64_t stride, int64_t rows, int64_t k, char* to) {
    const int64_t bytes = row_bytes(k);
    for (int64_t r = 0; r < rows; r++) prepare_row(x + r * stride, k, to + r * bytes);
    return {to, bytes, rows, k};
  }
  static void prepare_row(const float* x, int64_t k, char* to) {
    const DotScale s = DotScale::of(x, k);
    __m512i sum_high = _mm512_setzero_si512(), sum_low = _mm512_setzero_si512();
    for (int64_t j = 0; j < k; j += 64) {
      __m512i q[4];
      quantize64(x + j, k - j, s, q);
      // Packing takes 128 bits of either operand by turns; the permutation puts the groups of four bytes back in order.
      const __m512i a = _mm512_packs_epi32(q[0], q[1]), b = _mm512_packs_epi32(q[2], q[3]);
      const __m512i low_a = _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8);
      const __m512i low_b = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8);
      const __m512i high_a = _mm512_srai_epi16(_mm512_sub_epi16(a, low_a), 8);
      const __m512i high_b = _mm512_srai_epi16(_mm512_sub_epi16(b, low_b), 8);
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const __m512i high = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high_a, high_b));
      const __m512i low = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low_a, low_b));
      char* block = to + kHead + 2 * j;
      _mm512_storeu_si512(block, high);
      _mm512_storeu_si512(block + 64, low);
      const __m512i surplus = _mm512_set1_epi8(-128);  // 128 as an unsigned byte
      dot_bytes(sum_high, surplus, high);
      dot_bytes(sum_low, surplus, low);
    }
    const int32_t surplus[2] = {-_mm512_reduce_add_epi32(sum_high), -_mm512_reduce_add_epi32(sum_low)};
    memcpy(to, &s.scale, 4);
    memcpy(to + 4, surplus, 8);
  }

  MB_INLINE __m512i biased(__m512i w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  MB_INLINE __m512i weights(const int8_t* p) { return biased(_mm512_loadu_si512(p)); }
  MB_INLINE __m512i weights_n(const int8_t* p, int n) { return biased(_mm512_maskz_loadu_epi8(first_n64(n), p)); }
  MB_INLINE Acc start() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  MB_INLINE void step(Acc& acc, __m512i w, const char* x, int64_t j) {
    dot_bytes(acc.high, w, _mm512_loadu_si512(x + kHead + 2 * j));
    dot_bytes(acc.low, w, _mm512_loadu_si512(x + kHead + 2 * j + 64));
  }
  MB_INLINE void step_n(Acc& acc, __m512i w, const char* x, int64_t j, int) { step(acc, w, x, j); }
  MB_INLINE void sum_tile(const Acc (&acc)[16], const char* x, float* sums) {
    __m512i high[16], low[16];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) {
      high[m] = acc[m].high;
      low[m] = acc[m].low;
    }
    store(sums, finish(sum_lanes(high), sum_lanes(low), x));
  }

  // Sums of 16 weight rows without the surplus, as numbers.
  MB_INLINE V finish(__m512i high, __m512i low, const char* row) {
    int32_t surplus[2];
    memcpy(surplus, row + 4, 8);
    return join_parts(_mm512_add_epi32(high, _mm512_set1_epi32(surplus[0])),
                      _mm512_add_epi32(low, _mm512_set1_epi32(surplus[1]))) *
           set1(scale(row));
  }
  MB_INLINE float scale(const char* row) {
    float s;
    memcpy(&s, row, 4);
    return s;
  }
  // 256 high + low, rounded once.
  MB_INLINE V join_parts(__m512i high, __m512i low) {
    const auto joined = [](__m256i h, __m256i l) __attribute__((always_inline)) {
      return _mm512_fmadd_pd(_mm512_cvtepi32_pd(h), _mm512_set1_pd(256.0), _mm512_cvtepi32_pd(l));
    };
    return {rounded(joined(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low)),
                    joined(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1)))};
  }
};

// Prepared rows once more as columns: tiles of up to `rows` rows, each with a column for every part of a row (hi, lo).
// [64 bytes of a part][tile][group of four bytes][column].
struct DotColumns {
  int64_t depths, rows, tiles, cols;
  int64_t tile_bytes() const { return 64 * cols; }
  int64_t bytes() const { return depths * tiles * tile_bytes(); }
};

// From rows prepared for F, whose chunks of 64 bytes lie kParts after another.
template <class F, int kParts>
MB_INLINE void pack_columns(const DotInput& x, const DotColumns& s, char* to) {
  for (int64_t tile = 0; tile < s.tiles; tile++) {
    const char* from[W];  // by column; null: zeros
    for (int c = 0; c < W; c++) {
      const int64_t row = tile * s.rows + c % s.rows, part = c / s.rows;
      from[c] = c < s.cols && row < x.rows ? x.data + row * x.row_bytes + F::kHead + part * 64 : nullptr;
    }
    for (int64_t i = 0; i < s.depths; i++) {
      V t[W];
      MB_UNROLL
      for (int c = 0; c < W; c++) {
        t[c] = from[c] ? load(reinterpret_cast<const float*>(from[c] + i * kParts * 64)) : zero();
      }
      transpose(t);
      float* group = reinterpret_cast<float*>(to + (i * s.tiles + tile) * s.tile_bytes());
      for (int g = 0; g < 16; g++) store_n(group + g * s.cols, t[g], static_cast<int>(s.cols));
    }
  }
}

MB_INLINE DotColumns byte_columns(int64_t rows, int64_t k) { return {(k + 63) / 64, 8, (rows + 7) / 8, 16}; }

static int64_t byte_input_bytes(int64_t rows, int64_t k) {
  return rows * DotBytes::row_bytes(k) + byte_columns(rows, k).bytes();
}
static DotInput byte_input(const float* x, int64_t stride, int64_t rows, int64_t k, char* to) {
  DotInput input = DotBytes::prepare(x, stride, rows, k, to);
  if (rows <= kAlongRows) return input;
  char* columns = to + rows * input.row_bytes;
  pack_columns<DotBytes, 2>(input, byte_columns(rows, k), columns);
  input.columns = columns;
  return input;
}

// sums[r][0 .. 16) of kRows activation rows from `first` on, read as columns, and 16 weight rows.
template <int kRows>
__attribute__((noinline)) void byte_sums(const int8_t* w, int64_t stride, const DotInput& x, int64_t first,
                                         float (*sums)[kTileRows]) {
  const int64_t k = x.k, depth_bytes = byte_columns(x.rows, k).tiles * 1024;
  const char* q = x.columns + first / 8 * 1024;
  const char* far = reinterpret_cast<const char*>(w) + kPrefetchFar;
  __m512i high[kRows], low[kRows];
  MB_UNROLL
  for (int r = 0; r < kRows; r++) high[r] = low[r] = _mm512_setzero_si512();
  // 16 columns of the rows at p. The lines of four rows are fetched at a time, all 16 every 64 columns.
  const auto multiply = [&](const int8_t* p, int64_t p_stride, const char* group, const int8_t* ahead)
      __attribute__((always_inline)) {
    __m512i t[4];
    turn_rows(reinterpret_cast<const char*>(p), p_stride, t);
    MB_UNROLL
    for (int g = 0; g < 4; g++) {
      prefetch_far(far + 64 * g);
      prefetch(ahead + g * stride);
      const __m512i u = DotBytes::biased(t[g]);
      MB_UNROLL
      for (int r = 0; r < kRows; r++) {
        dot_bytes(high[r], u, group + 64 * g + 4 * r);
        dot_bytes(low[r], u, group + 64 * g + 4 * r + 32);
      }
    }
    far += 256;
  };
  int64_t j = 0;
  for (; j + 64 <= k; j += 64) {
    // Near the end of the rows the fetches go on at the head of the next tile.
    const int8_t* ahead = w + j + kColumnsAhead + (j + kColumnsAhead < k ? 0 : kTileRows * stride - k);
    const char* group = q;
    for (int64_t i = 0; i < 64; i += 16) {
      multiply(w + j + i, stride, group, ahead);
      group += 256;
      ahead += 4 * stride;
    }
    q += depth_bytes;
  }
  for (; j + 16 <= k; j += 16) {
    multiply(w + j, stride, q, w + j);
    q += 256;
  }
  if (j < k) {
    // Past the end of a row may lie anything, or nothing.
    alignas(16) int8_t last[kTileRows][16];
    for (int m = 0; m < kTileRows; m++) {
      const __m128i end = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1 << (k - j)) - 1), w + m * stride + j);
      _mm_store_si128(reinterpret_cast<__m128i*>(last[m]), end);
    }
    multiply(last[0], 16, q, w + j);
  }
  MB_UNROLL
  for (int r = 0; r < kRows; r++) {
    const char* row = x.data + (first + r) * x.row_bytes;
    store(sums[r], DotBytes::finish(high[r], low[r], row));
  }
}

static void dot_bytes_run(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  using Sums = void (*)(const int8_t*, int64_t, const DotInput&, int64_t, float(*)[kTileRows]);
  static constexpr Sums by_rows[] = {nullptr,      byte_sums<1>, byte_sums<2>, byte_sums<3>, byte_sums<4>,
                                     byte_sums<5>, byte_sums<6>, byte_sums<7>, byte_sums<8>};
  const auto next = [&](const int8_t* w, int64_t stride, int64_t r, float(*sums)[kTileRows]) {
    const int64_t rows = min64(8, x.rows - r);
    if (x.columns) {
      by_rows[rows](w, stride, x, r, sums);
    } else if (rows == 1) {
      dot_tile<DotBytes, DotBytes::kRows1, 1, true>(w, stride, x.data, x.row_bytes, x.k, sums);
    } else {
      dot_tile<DotBytes, DotBytes::kRows2, 2, true>(w, stride, x.data, x.row_bytes, x.k, sums);
    }
    return rows;
  };
  dot_tiles<int8_t>(weight, begin, end, x.rows, out, next);
}

}  // namespace mb::cpu::MB_TARGET
#endif
