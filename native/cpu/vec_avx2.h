// 8 floats in an AVX register (needs AVX2, FMA and F16C). Included by vec.h only.
#pragma once
#include <immintrin.h>

namespace mb::cpu::MB_TARGET {

constexpr int W = 8;
struct V {
  __m256 v;
};

MB_INLINE __m256i first_n(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MB_INLINE V set1(float x) { return {_mm256_set1_ps(x)}; }
MB_INLINE V zero() { return {_mm256_setzero_ps()}; }
MB_INLINE V load(const float* p) { return {_mm256_loadu_ps(p)}; }
MB_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a.v); }
MB_INLINE V load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first_n(n))}; }
MB_INLINE void store_n(float* p, V a, int n) { _mm256_maskstore_ps(p, first_n(n), a.v); }

MB_INLINE V add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
MB_INLINE V sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
MB_INLINE V mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
MB_INLINE V div(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
MB_INLINE V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Both give b when either is NaN.
MB_INLINE V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
MB_INLINE V min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
MB_INLINE V sqrt(V a) { return {_mm256_sqrt_ps(a.v)}; }
MB_INLINE V round(V a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

MB_INLINE float reduce_add(V a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
MB_INLINE float reduce_max(V a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// join(fold(rows), fold(rows + kFold), ...) has in lane i the sum of the lanes of rows[i].
constexpr int kFold = 4;
MB_INLINE V fold(const V* r) {
  return {_mm256_hadd_ps(_mm256_hadd_ps(r[0].v, r[1].v), _mm256_hadd_ps(r[2].v, r[3].v))};
}
// Adds kFold registers in the order in which fold adds kFold lanes.
MB_INLINE V fold_lanes(const V* lane) { return add(add(lane[0], lane[1]), add(lane[2], lane[3])); }
MB_INLINE V join(const V* f) {
  return {_mm256_add_ps(_mm256_permute2f128_ps(f[0].v, f[1].v, 0x20), _mm256_permute2f128_ps(f[0].v, f[1].v, 0x31))};
}
// W rows of W.
MB_INLINE void transpose(V* r) {
  __m256 half[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_unpacklo_ps(r[i].v, r[i + 1].v), b = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    const __m256 c = _mm256_unpacklo_ps(r[i + 2].v, r[i + 3].v), d = _mm256_unpackhi_ps(r[i + 2].v, r[i + 3].v);
    half[i] = _mm256_shuffle_ps(a, c, 0x44);
    half[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    half[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    half[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    r[i].v = _mm256_permute2f128_ps(half[i], half[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(half[i], half[i + 4], 0x31);
  }
}

MB_INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// p * 2^n for whole n in [-252, 254], in two factors so that neither leaves the range. A NaN in n comes with a NaN in
// p.
MB_INLINE V scale_by_power(V p, V n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  return {_mm256_mul_ps(_mm256_mul_ps(p.v, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)))};
}
// The same for n in [-127, 128] in one factor: 0 at -127, inf at 128.
MB_INLINE V scale_by_power_fast(V p, V n) { return {_mm256_mul_ps(p.v, power_of_two(_mm256_cvtps_epi32(n.v)))}; }

MB_INLINE V load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
MB_INLINE V load_bf16_n(const uint16_t* p, int n) {
  uint16_t part[8] = {};
  if (n > 0) memcpy(part, p, 2 * static_cast<size_t>(n < 8 ? n : 8));
  return load_bf16(part);
}
MB_INLINE void store_bf16(uint16_t* p, V a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
MB_INLINE V load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
MB_INLINE V load_f16_n(const uint16_t* p, int n) {
  uint16_t part[8] = {};
  if (n > 0) memcpy(part, p, 2 * static_cast<size_t>(n < 8 ? n : 8));
  return load_f16(part);
}
MB_INLINE void store_f16(uint16_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
MB_INLINE V load_i8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
MB_INLINE V load_i8_n(const int8_t* p, int n) {
  int8_t part[8] = {};
  if (n > 0) memcpy(part, p, static_cast<size_t>(n < 8 ? n : 8));
  return load_i8(part);
}

}  // namespace mb::cpu::MB_TARGET
