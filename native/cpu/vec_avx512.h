// 16 floats in an AVX-512 register (needs F, BW, DQ, VL). Included by vec.h only.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics start from a deliberately undefined register and warn about it in every caller (PR105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace mb::cpu::MB_TARGET {

constexpr int W = 16;
struct V {
  __m512 v;
};

MB_INLINE __mmask16 first_n(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << (n > 0 ? n : 0)) - 1u); }
MB_INLINE V set1(float x) { return {_mm512_set1_ps(x)}; }
MB_INLINE V zero() { return {_mm512_setzero_ps()}; }
MB_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
MB_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
MB_INLINE V load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_n(n), p)}; }
MB_INLINE void store_n(float* p, V a, int n) { _mm512_mask_storeu_ps(p, first_n(n), a.v); }

MB_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
MB_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
MB_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
MB_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
MB_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Both give b when either is NaN.
MB_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
MB_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
MB_INLINE V sqrt(V a) { return {_mm512_sqrt_ps(a.v)}; }
MB_INLINE V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

MB_INLINE float reduce_add(V a) { return _mm512_reduce_add_ps(a.v); }
MB_INLINE float reduce_max(V a) { return _mm512_reduce_max_ps(a.v); }

// Four rows to their sums within each 128-bit lane: (a b c d) four times.
MB_INLINE __m512 fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
MB_INLINE __m512 fold_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// Lane i of the result: the sum of the lanes of rows[i].
MB_INLINE V sum_each(const V* r) {
  const __m512 a = fold4(r[0].v, r[1].v, r[2].v, r[3].v), b = fold4(r[4].v, r[5].v, r[6].v, r[7].v);
  const __m512 c = fold4(r[8].v, r[9].v, r[10].v, r[11].v), d = fold4(r[12].v, r[13].v, r[14].v, r[15].v);
  return {fold_lanes(fold_lanes(a, b), fold_lanes(c, d))};
}

MB_INLINE V scale_by_power(V p, V n) { return {_mm512_scalef_ps(p.v, n.v)}; }
// a - floor(a), and p * 2^floor(a) for any a.
MB_INLINE V fraction(V a) { return {_mm512_reduce_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
MB_INLINE V scale_by_floor(V p, V a) { return {_mm512_scalef_ps(p.v, a.v)}; }

MB_INLINE V float_from_halves(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
MB_INLINE V load_bf16(const uint16_t* p) {
  return float_from_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MB_INLINE V load_bf16_n(const uint16_t* p, int n) { return float_from_halves(_mm256_maskz_loadu_epi16(first_n(n), p)); }
MB_INLINE void store_bf16(uint16_t* p, V a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i picked = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(picked, 16)));
}
MB_INLINE V load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
MB_INLINE V load_i8_n(const int8_t* p, int n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_n(n), p)))};
}

}  // namespace mb::cpu::MB_TARGET
