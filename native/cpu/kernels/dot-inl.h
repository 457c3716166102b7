// Few activation rows times many weight rows: sums[r][m] = x[r] . w[m]. Every weight row is read once, from where it
// lies (row-major, any alignment, no packing), for all activation rows; this is the work of decoding and verifying.
//
// Each (row, weight row) pair has one accumulator that runs over K in order, so a result does not depend on how many
// rows are computed together or on which thread computes it: verifying drafted bytes gives the bits of decoding them.
//
// Formats by weight dtype:
//   f32   f32 products everywhere.
//   bf16  AVX-512: activations rounded to bf16, products by vdpbf16ps. Elsewhere: weights widened, f32 products.
//   i8    AVX-512: activations quantised per row to 16-bit integers x = s (256 hi + lo), hi and lo signed bytes, s =
//         absmax / 32639; exact integer products by vpdpbusd with the weights as w + 128, the surplus 128 x taken off
//         in advance. The only error is the rounding of x to 16 bits. Elsewhere: weights widened, f32 products.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int kTileRows = 16;           // weight rows of one tile; ranges of tiles are what threads share
constexpr int kPrefetchBytes = 2048;    // how far ahead of the products weights are fetched, over all rows of a tile
constexpr int kPrefetchInOrder = 8192;  // the same where they are fetched in the order in which they lie

MB_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
MB_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
MB_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Activation rows in the form that products with one weight dtype want.
struct DotInput {
  const char* data;
  int64_t row_bytes;
  int64_t rows, k;
  const char* tiles = nullptr;  // the rows once more, as columns of matrix tiles (few_rows-inl.h)
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
  // Weight rows held at once for 1, 2 and 4 activation rows: what the registers allow.
  static constexpr int kRows1 = W == 16 ? 16 : 8, kRows2 = W == 16 ? 8 : 4, kRows4 = W == 16 ? 4 : 2;

  MB_INLINE V weights(const float* p) { return load(p); }
  MB_INLINE V weights(const uint16_t* p) { return load_bf16(p); }
  MB_INLINE V weights(const int8_t* p) { return load_i8(p); }
  MB_INLINE V weights_n(const float* p, int n) { return load_n(p, n); }
  MB_INLINE V weights_n(const uint16_t* p, int n) { return load_bf16_n(p, n); }
  MB_INLINE V weights_n(const int8_t* p, int n) { return load_i8_n(p, n); }

  MB_INLINE Acc start(const char*) { return {zero()}; }
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

  static int64_t row_bytes(int64_t) { return 0; }
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
  static constexpr int kRows1 = 16, kRows2 = 8, kRows4 = 4;

  MB_INLINE __m512i weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
  MB_INLINE __m512i weights_n(const uint16_t* p, int n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(first_n64(n)), p);
  }
  MB_INLINE Acc start(const char*) { return {_mm512_setzero_ps()}; }
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
  MB_INLINE float scale(const char*) { return 1.0f; }

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

// acc + groups of four products, u unsigned by x signed bytes. In assembly because GCC 12 wraps the intrinsic in
// copies of the accumulator that cost more than the product.
MB_INLINE void dot_bytes(__m512i& acc, __m512i u, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(x));
}

struct DotI8 {
  using Elem = int8_t;
  using Weights = __m512i;
  struct Acc {
    __m512i high, low;
  };
  static constexpr int kStep = 64;
  static constexpr int kRows1 = 8, kRows2 = 4, kRows4 = 2;
  // A prepared row: the negated surplus of every lane for hi and lo (64 bytes each), the scale (64 bytes), then hi and
  // lo bytes by turns, 64 each.
  static constexpr int64_t kHead = 192;

  MB_INLINE __m512i biased(__m512i w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  MB_INLINE __m512i weights(const int8_t* p) { return biased(_mm512_loadu_si512(p)); }
  MB_INLINE __m512i weights_n(const int8_t* p, int n) { return biased(_mm512_maskz_loadu_epi8(first_n64(n), p)); }
  MB_INLINE Acc start(const char* x) { return {_mm512_loadu_si512(x), _mm512_loadu_si512(x + 64)}; }
  MB_INLINE void step(Acc& acc, __m512i w, const char* x, int64_t j) {
    dot_bytes(acc.high, w, _mm512_loadu_si512(x + kHead + 2 * j));
    dot_bytes(acc.low, w, _mm512_loadu_si512(x + kHead + 2 * j + 64));
  }
  MB_INLINE void step_n(Acc& acc, __m512i w, const char* x, int64_t j, int) { step(acc, w, x, j); }
  MB_INLINE V join_parts(__m512i high, __m512i low) {
    return {_mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(low))};
  }
  // Lanes are summed as integers, exactly, as matrix tiles do.
  MB_INLINE void sum_tile(const Acc (&acc)[16], const char* x, float* sums) {
    __m512i high[16], low[16];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) {
      high[m] = acc[m].high;
      low[m] = acc[m].low;
    }
    store(sums, join_parts(sum_lanes(high), sum_lanes(low)) * set1(scale(x)));
  }
  MB_INLINE float scale(const char* x) {
    float s;
    memcpy(&s, x + 128, 4);
    return s;
  }

  static int64_t row_bytes(int64_t k) { return kHead + 2 * round_up(k, kStep); }
  static DotInput prepare(const float* x, int64_t stride, int64_t rows, int64_t k, char* to) {
    const int64_t bytes = row_bytes(k);
    for (int64_t r = 0; r < rows; r++) prepare_row(x + r * stride, k, to + r * bytes);
    return {to, bytes, rows, k};
  }

  static void prepare_row(const float* x, int64_t k, char* to) {
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
    const V inverse = set1(absmax > 1e-30f ? 32639.0f / absmax : 0.0f);
    const float scale = absmax / 32639.0f + reduce_add(poison);
    __m512i sum_high = _mm512_setzero_si512(), sum_low = _mm512_setzero_si512();
    for (int64_t j = 0; j < k; j += kStep) {
      __m512i q[4];
      const bool whole = k - j >= kStep;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const float* p = x + j + 16 * i;
        const V v = whole ? load(p) : load_n(p, static_cast<int>(max64(0, min64(k - j - 16 * i, 16))));
        q[i] = _mm512_cvtps_epi32((v * inverse).v);
      }
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
    _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_setzero_si512(), sum_high));
    _mm512_storeu_si512(to + 64, _mm512_sub_epi32(_mm512_setzero_si512(), sum_low));
    memcpy(to + 128, &scale, 4);
  }
};

#else
using DotBf16 = DotWiden<uint16_t>;
using DotI8 = DotWiden<int8_t>;
#endif
using DotF32 = DotWiden<float>;

// parts[r][m] for MR weight rows and RR activation rows.
template <class F, int MR, int RR, bool kFetch>
MB_INLINE void dot_rows(const typename F::Elem* w, int64_t stride, const char* x, int64_t x_bytes, int64_t k,
                        typename F::Acc (*parts)[kTileRows]) {
  using Elem = typename F::Elem;
  // Four rows share a pointer, so that 16 rows fit the integer registers.
  constexpr int kGroup = MR < 4 ? MR : 4, kGroups = MR / kGroup;
  typename F::Acc acc[RR][MR];
#pragma GCC unroll 16
  for (int r = 0; r < RR; r++) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[r][m] = F::start(x + r * x_bytes);
  }
  const Elem* p[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; g++) p[g] = w + g * kGroup * stride;

  const int64_t whole = k - k % F::kStep;
  constexpr int64_t kAhead = kPrefetchBytes / MR / sizeof(Elem), kStepBytes = F::kStep * sizeof(Elem);
  // Near the end of the rows the fetches go on at the head of the next tile.
  const int64_t turn = whole - kAhead, wrapped = kAhead + MR * stride - k;
  // Memory gives soonest what lies in order. Rows of bytes are so short that the rows behind these can be fetched like
  // that; of wider weights as many would not fit the first-level cache.
  const char* fetch = reinterpret_cast<const char*>(w) + kPrefetchInOrder;
  for (int64_t j = 0; j < whole; j += F::kStep) {
    const int64_t ahead = j < turn ? kAhead : wrapped;
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; g++) {
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; i++) {
        const typename F::Weights weights = F::weights(p[g] + i * stride);
        if constexpr (kFetch && kStepBytes >= 32) {
          if constexpr (sizeof(Elem) == 1) prefetch(fetch + (g * kGroup + i) * kStepBytes);
          if constexpr (sizeof(Elem) > 1) prefetch(p[g] + i * stride + ahead);
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
    dot_rows<F, MR, RR, kFetch>(w + m * stride, stride, x, x_bytes, k, some);
#pragma GCC unroll 16
    for (int r = 0; r < RR; r++) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) parts[r][m + i] = some[r][i];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < RR; r++) {
    F::sum_tile(parts[r], x + r * x_bytes, sums[r]);
  }
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
// Weight rows of kBytes = 16 or 32 bytes that lie without gaps (dt_proj of small models) fill a register several at a
// time; `repeat` gives the activations in the same arrangement.
MB_INLINE __m512i repeat(const char* p, int bytes) {
  if (bytes == 16) return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <int kBytes>
MB_INLINE V narrow_products(const uint16_t* w, const char* x) {
  return {_mm512_dpbf16_ps(_mm512_setzero_ps(), as_bf16(DotBf16::weights(w)), as_bf16(repeat(x, kBytes)))};
}
template <int kBytes>
MB_INLINE V narrow_products(const int8_t* w, const char* x) {
  DotI8::Acc acc{repeat(x, kBytes), repeat(x + 64, kBytes)};
  const __m512i weights = DotI8::weights(w);
  dot_bytes(acc.high, weights, repeat(x + DotI8::kHead, kBytes));
  dot_bytes(acc.low, weights, repeat(x + DotI8::kHead + 64, kBytes));
  return DotI8::join_parts(acc.high, acc.low);
}

template <class F, int kBytes>
MB_INLINE void narrow_tile(const typename F::Elem* w, const char* x, float* sums) {
  constexpr int kVectors = kBytes / 4, kStep = 64 / sizeof(*w);
  V parts[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; i++) parts[i] = narrow_products<kBytes>(w + i * kStep, x);
  V y = fold(parts);  // lane 4 j + i: the sum of the j-th quarter of parts[i]
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if constexpr (kBytes == 32) {
    y = {join_two(y.v, fold(parts + 4).v)};
    order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  }
  store(sums, V{_mm512_permutexvar_ps(order, y.v)} * set1(F::scale(x)));
}

// Bytes of a row where narrow_tile fits, else 0.
static int narrow_bytes(const Tensor& weight) {
  const int64_t bytes = weight.cols() * dtype_size(weight.dtype);
  const bool tight = weight.row_stride == weight.cols() && weight.rows() >= kTileRows;
  return weight.dtype != DType::f32 && tight && (bytes == 16 || bytes == 32) ? static_cast<int>(bytes) : 0;
}

template <class F, int kBytes>
static void dot_narrow(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  for (int64_t m = begin; m < end; m += kTileRows) {
    const int64_t from = min64(m, weight.rows() - kTileRows);
    for (int64_t r = 0; r < x.rows; r++) {
      float sums[kTileRows];
      narrow_tile<F, kBytes>(weight.row<typename F::Elem>(from), x.data + r * x.row_bytes, sums);
      dot_store(out, sums + (m - from), r, m, min64(kTileRows, end - m));
    }
  }
}
#endif

template <class F>
__attribute__((noinline)) void dot_range(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end,
                                         const DotOutput& out) {
  using Elem = typename F::Elem;
#if MB_LEVEL == MB_LEVEL_avx512
  if constexpr (sizeof(Elem) < 4) {
    const int narrow = narrow_bytes(weight);
    if (narrow == 16) return dot_narrow<F, 16>(weight, x, begin, end, out);
    if (narrow == 32) return dot_narrow<F, 32>(weight, x, begin, end, out);
  }
#endif
  const int64_t m_count = weight.rows(), stride = weight.row_stride;
  for (int64_t m = begin; m < end; m += kTileRows) {
    const int64_t n = min64(kTileRows, end - m);
    // A short tile is moved back to whole rows; a matrix of fewer rows is computed row by row (stride 0 repeats it).
    const int64_t from = m_count >= kTileRows ? min64(m, m_count - kTileRows) : m;
    for (int64_t one = 0; one < (m_count >= kTileRows ? 1 : n); one++) {
      const Elem* w = weight.row<Elem>(from + one);
      const int64_t s = m_count >= kTileRows ? stride : 0;
      float sums[4][kTileRows];
      for (int64_t r = 0; r < x.rows;) {
        const char* xr = x.data + r * x.row_bytes;
        int64_t done = 1;
        if (x.rows - r >= 4) {
          done = 4;
          if (r == 0) {
            dot_tile<F, F::kRows4, 4, true>(w, s, xr, x.row_bytes, x.k, sums);
          } else {
            dot_tile<F, F::kRows4, 4, false>(w, s, xr, x.row_bytes, x.k, sums);
          }
        } else if (x.rows - r >= 2) {
          done = 2;
          dot_tile<F, F::kRows2, 2, true>(w, s, xr, x.row_bytes, x.k, sums);
        } else {
          dot_tile<F, F::kRows1, 1, true>(w, s, xr, x.row_bytes, x.k, sums);
        }
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

}  // namespace mb::cpu::MB_TARGET
