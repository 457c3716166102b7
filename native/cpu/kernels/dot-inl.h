// Few activation rows times many weight rows: sums[r][m] = x[r] . w[m]. Every weight row is read once, from where it
// lies (row-major, any alignment, no packing), for all activation rows; this is the work of decoding and verifying.
//
// Each (row, weight row) pair has one accumulator that runs over K in order, so a result does not depend on how many
// rows are computed together or on which thread computes it: verifying drafted bytes gives the bits of decoding them.
//
// Formats by weight dtype:
//   f32   f32 products everywhere.
//   bf16  AVX-512: activations rounded to bf16, products by vdpbf16ps. Elsewhere: weights widened, f32 products.
//   i8    AVX-512: exact sums of activations quantised to 16 bits (dot_bytes-inl.h). Elsewhere: weights widened, f32
//         products.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int kTileRows = 16;  // weight rows of one tile; ranges of tiles are what threads share
// How far ahead of the products weights are fetched: into the first-level cache along the rows, all rows of a tile
// together; and into the second in the order in which they lie, since memory gives soonest what lies in order, but at
// least two groups of rows ahead.
constexpr int kPrefetchBytes = 2048, kPrefetchFar = 16384;

MB_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
MB_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
MB_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Activation rows in the form that products with one weight dtype want.
struct DotInput {
  const char* data;
  int64_t row_bytes;
  int64_t rows, k;
  const char* columns = nullptr;  // the rows once more, as columns (dot_bytes-inl.h)
};

// sums[m] = the sum of the lanes of parts[m].
#if MB_LEVEL == MB_LEVEL_avx512
template <class Add>
MB_INLINE __m512 sum_sixteen(const __m512 (&parts)[16], const Add& add) {
  __m512 pair[8], quad[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    const __m512 a = parts[2 * i], b = parts[2 * i + 1];
    pair[i] = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
    quad[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto fold_two = [&](__m512 a, __m512 b) __attribute__((always_inline)) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return fold_two(fold_two(quad[0], quad[1]), fold_two(quad[2], quad[3]));
}
MB_INLINE void sum_lanes(const V (&parts)[16], float* sums) {
  __m512 v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) v[i] = parts[i].v;
  const auto add = [](__m512 a, __m512 b) __attribute__((always_inline)) { return _mm512_add_ps(a, b); };
  _mm512_storeu_ps(sums, sum_sixteen(v, add));
}
MB_INLINE __m512i sum_lanes(const __m512i (&parts)[16]) {
  __m512 v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) v[i] = _mm512_castsi512_ps(parts[i]);
  const auto add = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  };
  return _mm512_castps_si512(sum_sixteen(v, add));
}
#elif MB_LEVEL == MB_LEVEL_avx2
MB_INLINE void sum_lanes(const V (&parts)[16], float* sums) {
  for (int h = 0; h < 16; h += 8) {
    const auto quad = [&](int i) __attribute__((always_inline)) {
      return _mm256_hadd_ps(_mm256_hadd_ps(parts[i].v, parts[i + 1].v), _mm256_hadd_ps(parts[i + 2].v, parts[i + 3].v));
    };
    const __m256 a = quad(h), b = quad(h + 4);
    _mm256_storeu_ps(sums + h, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
  }
}
#else
MB_INLINE void sum_lanes(const V (&parts)[16], float* sums) {
  for (int i = 0; i < 16; i++) sums[i] = reduce_add(parts[i]);
}
#endif

// Products in f32 of weights widened on the way; the activations stay as they are.
template <class E>
struct DotWiden {
  using Elem = E;
  using Weights = V;
  struct Acc {
    V sum;
  };
  static constexpr int kStep = W;
  // Weight rows held at once for 1, 2, 4 and 8 activation rows: what the registers allow.
  static constexpr int kRows1 = W == 16 ? 16 : 8, kRows2 = W == 16 ? 8 : 4, kRows4 = W == 16 ? 4 : 2;
  static constexpr int kRows8 = W == 16 ? 2 : 1;

  MB_INLINE V weights(const float* p) { return load(p); }
  MB_INLINE V weights(const uint16_t* p) { return load_bf16(p); }
  MB_INLINE V weights(const int8_t* p) { return load_i8(p); }
  MB_INLINE V weights_n(const float* p, int n) { return load_n(p, n); }
  MB_INLINE V weights_n(const uint16_t* p, int n) { return load_bf16_n(p, n); }
  MB_INLINE V weights_n(const int8_t* p, int n) { return load_i8_n(p, n); }

  MB_INLINE Acc start() { return {zero()}; }
  MB_INLINE void step(Acc& acc, V w, const char* x, int64_t j) {
    acc.sum = fma(load(reinterpret_cast<const float*>(x) + j), w, acc.sum);
  }
  MB_INLINE void step_n(Acc& acc, V w, const char* x, int64_t j, int n) {
    acc.sum = fma(load_n(reinterpret_cast<const float*>(x) + j, n), w, acc.sum);
  }
  MB_INLINE void sum_tile(const Acc (&acc)[16], const char*, float* sums) {
    V parts[16];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) parts[m] = acc[m].sum;
    sum_lanes(parts, sums);
  }

  static DotInput prepare(const float* x, int64_t stride, int64_t rows, int64_t k, char*) {
    return {reinterpret_cast<const char*>(x), stride * 4, rows, k};
  }
};

#if MB_LEVEL == MB_LEVEL_avx512

MB_INLINE __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }
// 32 floats to bf16 in order, to nearest even.
MB_INLINE __m512i pack_bf16(V low, V high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)); }
MB_INLINE __mmask64 first_n64(int64_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

struct DotBf16 {
  using Elem = uint16_t;
  using Weights = __m512i;
  struct Acc {
    __m512 sum;
  };
  static constexpr int kStep = 32;
  static constexpr int64_t kHead = 0;  // bytes before a prepared row's columns
  static constexpr int kRows1 = 16, kRows2 = 8, kRows4 = 4, kRows8 = 2;

  MB_INLINE __m512i weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
  MB_INLINE __m512i weights_n(const uint16_t* p, int n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(first_n64(n)), p);
  }
  MB_INLINE Acc start() { return {_mm512_setzero_ps()}; }
  MB_INLINE void step(Acc& acc, __m512i w, const char* x, int64_t j) {
    acc.sum = _mm512_dpbf16_ps(acc.sum, as_bf16(w), as_bf16(_mm512_loadu_si512(x + 2 * j)));
  }
  MB_INLINE void step_n(Acc& acc, __m512i w, const char* x, int64_t j, int) { step(acc, w, x, j); }
  MB_INLINE void sum_tile(const Acc (&acc)[16], const char*, float* sums) {
    V parts[16];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) parts[m] = {acc[m].sum};
    sum_lanes(parts, sums);
  }

  // Rows are padded with zeros to whole steps.
  static int64_t row_bytes(int64_t k) { return round_up(k, kStep) * 2; }
  static DotInput prepare(const float* x, int64_t stride, int64_t rows, int64_t k, char* to) {
    const int64_t bytes = row_bytes(k);
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t j = 0; j < k; j += kStep) {
        const float* p = x + r * stride + j;
        const int n = static_cast<int>(min64(k - j, kStep));
        const V low = n >= 16 ? load(p) : load_n(p, n), high = n > 16 ? load_n(p + 16, n - 16) : zero();
        _mm512_storeu_si512(to + r * bytes + 2 * j, pack_bf16(low, high));
      }
    }
    return {to, bytes, rows, k};
  }
};

#else
using DotBf16 = DotWiden<uint16_t>;
#endif
using DotF32 = DotWiden<float>;

// parts[r][m] for MR weight rows and RR activation rows.
template <class F, int MR, int RR, bool kFetch>
MB_INLINE void dot_rows(const typename F::Elem* w, int64_t stride, const char* x, int64_t x_bytes, int64_t k,
                        const char* fetch, typename F::Acc (*parts)[kTileRows]) {
  using Elem = typename F::Elem;
  // Four rows share a pointer, so that 16 rows fit the integer registers.
  constexpr int kGroup = MR < 4 ? MR : 4, kGroups = MR / kGroup;
  typename F::Acc acc[RR][MR];
#pragma GCC unroll 16
  for (int r = 0; r < RR; r++) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[r][m] = F::start();
  }
  const Elem* p[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; g++) p[g] = w + g * kGroup * stride;

  const int64_t whole = k - k % F::kStep;
  constexpr int64_t kAhead = kPrefetchBytes / MR / sizeof(Elem), kStepBytes = F::kStep * sizeof(Elem);
  // Near the end of the rows the fetches go on at the head of the next tile.
  const int64_t turn = whole - kAhead, wrapped = kAhead + MR * stride - k;
  fetch += max64(kPrefetchFar, 2 * MR * stride * static_cast<int64_t>(sizeof(Elem)));
  for (int64_t j = 0; j < whole; j += F::kStep) {
    const int64_t ahead = j < turn ? kAhead : wrapped;
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; g++) {
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; i++) {
        const typename F::Weights weights = F::weights(p[g] + i * stride);
        if constexpr (kFetch && kStepBytes >= 32) {
          prefetch(p[g] + i * stride + ahead);
          if constexpr (kStepBytes == 64) prefetch_far(fetch + (g * kGroup + i) * kStepBytes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < RR; r++) F::step(acc[r][g * kGroup + i], weights, x + r * x_bytes, j);
      }
      p[g] += F::kStep;
    }
    fetch += MR * kStepBytes;
  }
  if (whole < k) {
    const int n = static_cast<int>(k - whole);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const typename F::Weights weights = F::weights_n(w + m * stride + whole, n);
#pragma GCC unroll 16
      for (int r = 0; r < RR; r++) F::step_n(acc[r][m], weights, x + r * x_bytes, whole, n);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < RR; r++) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) parts[r][m] = acc[r][m];
  }
}

// sums[r][0 .. 16) for RR activation rows and 16 weight rows.
template <class F, int MR, int RR, bool kFetch>
__attribute__((noinline)) void dot_tile(const typename F::Elem* w, int64_t stride, const char* x, int64_t x_bytes,
                                        int64_t k, float (*sums)[kTileRows]) {
  typename F::Acc parts[RR][kTileRows];
#pragma GCC unroll 16
  for (int m = 0; m < kTileRows; m += MR) {
    typename F::Acc some[RR][kTileRows];
    const char* fetch = reinterpret_cast<const char*>(w + m * stride);
    dot_rows<F, MR, RR, kFetch>(w + m * stride, stride, x, x_bytes, k, fetch, some);
#pragma GCC unroll 16
    for (int r = 0; r < RR; r++) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) parts[r][m + i] = some[r][i];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < RR; r++) F::sum_tile(parts[r], x + r * x_bytes, sums[r]);
}

// As many activation rows from r on as go together; returns how many those are.
template <class F>
MB_INLINE int64_t dot_next_rows(const typename F::Elem* w, int64_t stride, const DotInput& x, int64_t r,
                                float (*sums)[kTileRows]) {
  const char* row = x.data + r * x.row_bytes;
  const int64_t left = x.rows - r;
  if (left >= 8) {
    if (r == 0) {
      dot_tile<F, F::kRows8, 8, true>(w, stride, row, x.row_bytes, x.k, sums);
    } else {
      dot_tile<F, F::kRows8, 8, false>(w, stride, row, x.row_bytes, x.k, sums);
    }
    return 8;
  }
  if (left >= 4) {
    dot_tile<F, F::kRows4, 4, true>(w, stride, row, x.row_bytes, x.k, sums);
    return 4;
  }
  if (left >= 2) {
    dot_tile<F, F::kRows2, 2, true>(w, stride, row, x.row_bytes, x.k, sums);
    return 2;
  }
  dot_tile<F, F::kRows1, 1, true>(w, stride, row, x.row_bytes, x.k, sums);
  return 1;
}

// Where the sums go: y[r * stride + m] = scale[m] * sum + bias[m] + add[r * add_stride + m]; the last three may be
// null.
struct DotOutput {
  float* y;
  int64_t stride;
  const float* bias;
  const float* scale;
  const float* add;
  int64_t add_stride;
};

// Weight rows [begin, begin + n) of `sums`, n <= 16, whose first column is `first`.
MB_INLINE void dot_store(const DotOutput& out, const float* sums, int64_t r, int64_t begin, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    const int c = static_cast<int>(min64(W, n - i));
    const int64_t m = begin + i;
    V v = load_n(sums + i, c);
    if (out.scale) v = v * load_n(out.scale + m, c);
    if (out.bias) v = v + load_n(out.bias + m, c);
    if (out.add) v = v + load_n(out.add + r * out.add_stride + m, c);
    store_n(out.y + r * out.stride + m, v, c);
  }
}

#if MB_LEVEL == MB_LEVEL_avx512
// t[g]: bytes 4 g to 4 g + 3 of the 16 rows at w + m * row_bytes, a row a lane.
MB_INLINE void turn_rows(const char* w, int64_t row_bytes, __m512i* t) {
  __m512i four[4];  // 128 bits l of four[i]: row 4 l + i
  MB_UNROLL
  for (int i = 0; i < 4; i++) {
    const auto row = [&](int l) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + (4 * l + i) * row_bytes));
    };
    // Loads with a mask need no shuffle, inserts do.
    four[i] = _mm512_castsi128_si512(row(0));
    four[i] = _mm512_mask_broadcast_i32x4(four[i], 0x00f0, row(1));
    four[i] = _mm512_mask_broadcast_i32x4(four[i], 0x0f00, row(2));
    four[i] = _mm512_mask_broadcast_i32x4(four[i], 0xf000, row(3));
  }
  const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpacklo_epi32(four[2], four[3]);
  const __m512i c = _mm512_unpackhi_epi32(four[0], four[1]), d = _mm512_unpackhi_epi32(four[2], four[3]);
  t[0] = _mm512_unpacklo_epi64(a, b);
  t[1] = _mm512_unpackhi_epi64(a, b);
  t[2] = _mm512_unpacklo_epi64(c, d);
  t[3] = _mm512_unpackhi_epi64(c, d);
}

// Short bf16 weight rows (dt_proj): summing the lanes of a register would take longer than the products. So lanes are
// 16 weight rows, and a register holds one pair of columns of each.
#ifdef MB_TILES
constexpr int64_t kShortColumns = 16;  // longer ones are for matrix tiles
#else
constexpr int64_t kShortColumns = 64;
#endif
static bool has_short_rows(const Tensor& weight) {
  return weight.dtype == DType::bf16 && weight.cols() <= kShortColumns && weight.cols() % 8 == 0 &&
         weight.rows() >= kTileRows;
}

// sums[r][m] for kRows activation rows; even and odd pairs of columns are summed apart.
template <int kRows>
MB_INLINE void short_sums(const __m512i* pairs, int64_t k, const char* x, int64_t x_bytes, float (*sums)[kTileRows]) {
  __m512 even[kRows], odd[kRows];
  MB_UNROLL
  for (int r = 0; r < kRows; r++) even[r] = odd[r] = _mm512_setzero_ps();
  const auto pair_of = [&](int r, int64_t j) __attribute__((always_inline)) {
    int32_t bits;
    memcpy(&bits, x + r * x_bytes + 2 * j, 4);
    return as_bf16(_mm512_set1_epi32(bits));
  };
  for (int64_t j = 0; j < k; j += 4) {
    MB_UNROLL
    for (int r = 0; r < kRows; r++) {
      even[r] = _mm512_dpbf16_ps(even[r], as_bf16(pairs[j / 2]), pair_of(r, j));
      odd[r] = _mm512_dpbf16_ps(odd[r], as_bf16(pairs[j / 2 + 1]), pair_of(r, j + 2));
    }
  }
  MB_UNROLL
  for (int r = 0; r < kRows; r++) _mm512_storeu_ps(sums[r], _mm512_add_ps(even[r], odd[r]));
}

static void dot_short(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  for (int64_t m = begin; m < end; m += kTileRows) {
    const int64_t from = min64(m, weight.rows() - kTileRows), n = min64(kTileRows, end - m);
    __m512i pairs[kShortColumns / 2];  // pairs[p]: columns 2 p and 2 p + 1
    const char* w = reinterpret_cast<const char*>(weight.row<uint16_t>(from));
    const int64_t row_bytes = 2 * weight.row_stride;
    for (int64_t at = 0; at < kTileRows * row_bytes; at += 64) prefetch(w + kPrefetchBytes + at);
    for (int64_t j = 0; j < x.k; j += 8) turn_rows(w + 2 * j, row_bytes, pairs + j / 2);
    for (int64_t r = 0; r < x.rows;) {
      float sums[8][kTileRows];
      const char* rows = x.data + r * x.row_bytes;
      const int64_t left = x.rows - r, done = left >= 8 ? 8 : left >= 4 ? 4 : 1;
      if (done == 8) short_sums<8>(pairs, x.k, rows, x.row_bytes, sums);
      if (done == 4) short_sums<4>(pairs, x.k, rows, x.row_bytes, sums);
      if (done == 1) short_sums<1>(pairs, x.k, rows, x.row_bytes, sums);
      for (int64_t i = 0; i < done; i++) dot_store(out, sums[i] + (m - from), r + i, m, n);
      r += done;
    }
  }
}
#endif

// Weight rows [begin, end) in tiles of 16: next(w, stride, r, sums) multiplies those at w with as many activation rows
// from r on as it takes together, and returns how many those are.
template <class Elem, class Next>
MB_INLINE void dot_tiles(const Tensor& weight, int64_t begin, int64_t end, int64_t rows, const DotOutput& out,
                         const Next& next) {
  const int64_t m_count = weight.rows(), stride = weight.row_stride;
  for (int64_t m = begin; m < end; m += kTileRows) {
    const int64_t n = min64(kTileRows, end - m);
    // A short tile is moved back to whole rows; a matrix of fewer rows is computed row by row (stride 0 repeats it).
    const int64_t from = m_count >= kTileRows ? min64(m, m_count - kTileRows) : m;
    for (int64_t one = 0; one < (m_count >= kTileRows ? 1 : n); one++) {
      const Elem* w = weight.row<Elem>(from + one);
      const int64_t s = m_count >= kTileRows ? stride : 0;
      float sums[8][kTileRows];
      for (int64_t r = 0; r < rows;) {
        const int64_t done = next(w, s, r, sums);
        for (int64_t i = 0; i < done; i++) {
          if (s == 0) {
            dot_store(out, sums[i], r + i, m + one, 1);
          } else {
            dot_store(out, sums[i] + (m - from), r + i, m, n);
          }
        }
        r += done;
      }
    }
  }
}

template <class F>
__attribute__((noinline)) void dot_range(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end,
                                         const DotOutput& out) {
  using Elem = typename F::Elem;
#if MB_LEVEL == MB_LEVEL_avx512
  if constexpr (sizeof(Elem) == 2) {
    if (has_short_rows(weight)) return dot_short(weight, x, begin, end, out);
  }
#endif
  const auto next = [&](const Elem* w, int64_t stride, int64_t r, float(*sums)[kTileRows]) {
    return dot_next_rows<F>(w, stride, x, r, sums);
  };
  dot_tiles<Elem>(weight, begin, end, x.rows, out, next);
}

}  // namespace mb::cpu::MB_TARGET
