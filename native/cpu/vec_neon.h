// 4 floats in a NEON register (64-bit ARM). Included by vec.h only.
#pragma once
#include <arm_neon.h>

namespace mb::cpu::MB_TARGET {

constexpr int W = 4;
struct V {
  float32x4_t v;
};

MB_INLINE V set1(float x) { return {vdupq_n_f32(x)}; }
MB_INLINE V zero() { return {vdupq_n_f32(0.0f)}; }
MB_INLINE V load(const float* p) { return {vld1q_f32(p)}; }
MB_INLINE void store(float* p, V a) { vst1q_f32(p, a.v); }
MB_INLINE V load_n(const float* p, int n) {
  float part[4] = {};
  if (n > 0) memcpy(part, p, 4 * static_cast<size_t>(n < 4 ? n : 4));
  return load(part);
}
MB_INLINE void store_n(float* p, V a, int n) {
  float part[4];
  store(part, a);
  if (n > 0) memcpy(p, part, 4 * static_cast<size_t>(n < 4 ? n : 4));
}

MB_INLINE V add(V a, V b) { return {vaddq_f32(a.v, b.v)}; }
MB_INLINE V sub(V a, V b) { return {vsubq_f32(a.v, b.v)}; }
MB_INLINE V mul(V a, V b) { return {vmulq_f32(a.v, b.v)}; }
MB_INLINE V div(V a, V b) { return {vdivq_f32(a.v, b.v)}; }
MB_INLINE V fma(V a, V b, V c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// Both give b when either is NaN, as the x86 instructions do.
MB_INLINE V max(V a, V b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
MB_INLINE V min(V a, V b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
MB_INLINE V sqrt(V a) { return {vsqrtq_f32(a.v)}; }
MB_INLINE V round(V a) { return {vrndnq_f32(a.v)}; }

MB_INLINE float reduce_add(V a) { return vaddvq_f32(a.v); }
MB_INLINE float reduce_max(V a) { return vmaxvq_f32(a.v); }

// join(fold(rows), fold(rows + kFold), ...) has in lane i the sum of the lanes of rows[i].
constexpr int kFold = 4;
MB_INLINE V fold(const V* r) { return {vpaddq_f32(vpaddq_f32(r[0].v, r[1].v), vpaddq_f32(r[2].v, r[3].v))}; }
// Adds kFold registers in the order in which fold adds kFold lanes.
MB_INLINE V fold_lanes(const V* lane) { return add(add(lane[0], lane[1]), add(lane[2], lane[3])); }
MB_INLINE V join(const V* folds) { return folds[0]; }
// W rows of W.
MB_INLINE void transpose(V* r) {
  const float32x4x2_t a = vtrnq_f32(r[0].v, r[1].v), b = vtrnq_f32(r[2].v, r[3].v);
  r[0].v = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1].v = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2].v = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3].v = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

MB_INLINE float32x4_t power_of_two(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
// p * 2^n for whole n in [-252, 254], in two factors so that neither leaves the range. A NaN in n comes with a NaN in
// p.
MB_INLINE V scale_by_power(V p, V n) {
  const int32x4_t whole = vcvtq_s32_f32(n.v), half = vshrq_n_s32(whole, 1);
  return {vmulq_f32(vmulq_f32(p.v, power_of_two(half)), power_of_two(vsubq_s32(whole, half)))};
}
// The same for n in [-127, 128] in one factor: 0 at -127, inf at 128.
MB_INLINE V scale_by_power_fast(V p, V n) { return {vmulq_f32(p.v, power_of_two(vcvtq_s32_f32(n.v)))}; }

MB_INLINE V load_bf16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))}; }
MB_INLINE V load_bf16_n(const uint16_t* p, int n) {
  uint16_t part[4] = {};
  if (n > 0) memcpy(part, p, 2 * static_cast<size_t>(n < 4 ? n : 4));
  return load_bf16(part);
}
MB_INLINE void store_bf16(uint16_t* p, V a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t picked = vbslq_u32(vceqq_f32(a.v, a.v), rounded, quiet);
  vst1_u16(p, vshrn_n_u32(picked, 16));
}
MB_INLINE V load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
MB_INLINE V load_f16_n(const uint16_t* p, int n) {
  uint16_t part[4] = {};
  if (n > 0) memcpy(part, p, 2 * static_cast<size_t>(n < 4 ? n : 4));
  return load_f16(part);
}
MB_INLINE void store_f16(uint16_t* p, V a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
MB_INLINE V load_i8(const int8_t* p) {
  int8_t part[8] = {};
  memcpy(part, p, 4);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(part)))))};
}
MB_INLINE V load_i8_n(const int8_t* p, int n) {
  int8_t part[8] = {};
  if (n > 0) memcpy(part, p, static_cast<size_t>(n < 4 ? n : 4));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(part)))))};
}

}  // namespace mb::cpu::MB_TARGET
