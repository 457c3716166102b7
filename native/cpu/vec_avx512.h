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

// join(fold(rows), fold(rows + kFold), ...) has in lane i the sum of the lanes of rows[i].
constexpr int kFold = 4;
MB_INLINE V fold(const V* r) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(r[0].v, r[1].v), _mm512_unpackhi_ps(r[0].v, r[1].v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(r[2].v, r[3].v), _mm512_unpackhi_ps(r[2].v, r[3].v));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return {_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)))};
}
// Adds kFold registers in the order in which fold adds kFold lanes.
MB_INLINE V fold_lanes(const V* lane) { return add(add(lane[0], lane[2]), add(lane[1], lane[3])); }
MB_INLINE __m512 join_two(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
MB_INLINE V join(const V* f) { return {join_two(join_two(f[0].v, f[1].v), join_two(f[2].v, f[3].v))}; }
// W rows of W.
MB_INLINE void transpose(V* r) {
  __m512 q[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), b = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m512 c = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v), d = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    q[i] = _mm512_shuffle_ps(a, c, 0x44);
    q[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
    q[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
    q[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  // q[4 g + j] holds, in 128-bit lane m, rows 4 g .. 4 g + 3 of column 4 m + j.
  for (int j = 0; j < 4; j++) {
    const __m512 a = _mm512_shuffle_f32x4(q[j], q[4 + j], 0x88), b = _mm512_shuffle_f32x4(q[j], q[4 + j], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0xdd);
    r[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[8 + j].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[4 + j].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[12 + j].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
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
MB_INLINE V load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MB_INLINE V load_f16_n(const uint16_t* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_n(n), p))}; }
MB_INLINE void store_f16(uint16_t* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
MB_INLINE V load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
MB_INLINE V load_i8_n(const int8_t* p, int n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_n(n), p)))};
}

}  // namespace mb::cpu::MB_TARGET
