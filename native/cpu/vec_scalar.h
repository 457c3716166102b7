// The plain C++ vector: one float. Included by vec.h only.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int W = 1;
struct V {
  float v;
};

MB_INLINE V set1(float x) { return {x}; }
MB_INLINE V zero() { return {0.0f}; }
MB_INLINE V load(const float* p) { return {*p}; }
MB_INLINE void store(float* p, V a) { *p = a.v; }
MB_INLINE V load_n(const float* p, int n) { return {n > 0 ? *p : 0.0f}; }
MB_INLINE void store_n(float* p, V a, int n) {
  if (n > 0) *p = a.v;
}

MB_INLINE V add(V a, V b) { return {a.v + b.v}; }
MB_INLINE V sub(V a, V b) { return {a.v - b.v}; }
MB_INLINE V mul(V a, V b) { return {a.v * b.v}; }
MB_INLINE V div(V a, V b) { return {a.v / b.v}; }
MB_INLINE V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
// Both give b when either is NaN, as the x86 instructions do.
MB_INLINE V max(V a, V b) { return {a.v > b.v ? a.v : b.v}; }
MB_INLINE V min(V a, V b) { return {a.v < b.v ? a.v : b.v}; }
MB_INLINE V sqrt(V a) { return {__builtin_sqrtf(a.v)}; }
// To the nearest whole number, ties to even, for |a| < 2^22.
MB_INLINE V round(V a) { return {(a.v + 12582912.0f) - 12582912.0f}; }

MB_INLINE float reduce_add(V a) { return a.v; }
MB_INLINE float reduce_max(V a) { return a.v; }

// join(fold(rows), fold(rows + kFold), ...) has in lane i the sum of the lanes of rows[i].
constexpr int kFold = 1;
MB_INLINE V fold(const V* rows) { return rows[0]; }
// Adds kFold registers in the order in which fold adds kFold lanes.
MB_INLINE V fold_lanes(const V* lane) { return lane[0]; }
MB_INLINE V join(const V* folds) { return folds[0]; }
// W rows of W.
MB_INLINE void transpose(V*) {}

MB_INLINE float power_of_two(int32_t n) { return float_of(static_cast<uint32_t>(n + 127) << 23); }
// p * 2^n for whole n in [-252, 254], in two factors so that neither leaves the range.
MB_INLINE V scale_by_power(V p, V n) {
  if (!(n.v == n.v)) return p;
  const int32_t whole = static_cast<int32_t>(n.v), half = whole >> 1;
  return {p.v * power_of_two(half) * power_of_two(whole - half)};
}
// The same for n in [-127, 128] in one factor: 0 at -127, inf at 128.
MB_INLINE V scale_by_power_fast(V p, V n) { return n.v == n.v ? V{p.v * power_of_two(static_cast<int32_t>(n.v))} : p; }

MB_INLINE V load_bf16(const uint16_t* p) { return {float_from_bf16(*p)}; }
MB_INLINE V load_bf16_n(const uint16_t* p, int n) { return n > 0 ? load_bf16(p) : zero(); }
MB_INLINE void store_bf16(uint16_t* p, V a) { *p = bf16_from_float(a.v); }
// IEEE binary16. Below 2^-14 it is a multiple of 2^-24, which is counted: as f32 bits such a number would be denormal
// too and be flushed.
MB_INLINE V load_f16(const uint16_t* p) {
  const uint32_t sign = (*p & 0x8000u) << 16, size = *p & 0x7fffu;
  if (size < 0x400u) return {(sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(size)};
  return {float_of(sign | ((size << 13) + (size < 0x7c00u ? 0x38000000u : 0x70000000u)))};
}
MB_INLINE V load_f16_n(const uint16_t* p, int n) { return n > 0 ? load_f16(p) : zero(); }
MB_INLINE void store_f16(uint16_t* p, V a) {
  const uint32_t bits = bits_of(a.v);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  if (size < 0x38800000u) half = static_cast<uint32_t>(round({__builtin_fabsf(a.v) * 0x1p24f}).v);
  if (size >= 0x477ff000u) half = 0x7c00u;
  if (size > 0x7f800000u) half = 0x7e00u;
  *p = static_cast<uint16_t>(sign | half);
}
MB_INLINE V load_i8(const int8_t* p) { return {static_cast<float>(*p)}; }
MB_INLINE V load_i8_n(const int8_t* p, int n) { return n > 0 ? load_i8(p) : zero(); }

}  // namespace mb::cpu::MB_TARGET
