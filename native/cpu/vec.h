// Vectors of W floats: the one set of primitives that every CPU kernel is written in. A target translation unit defines
// MB_TARGET (scalar, avx2, avx512 or neon) first; everything here lies in namespace mb::cpu::MB_TARGET, so that no
// instruction of one target can reach another through a shared inline function. Loads and stores take any alignment.
#pragma once
#include <cstdint>
#include <cstring>

#define MB_LEVEL_scalar 0
#define MB_LEVEL_avx2 1
#define MB_LEVEL_avx512 2
#define MB_LEVEL_neon 3
#define MB_LEVEL_amx 2  // the vectors of avx512, and MB_TILES
#define MB_JOIN_(a, b) a##b
#define MB_JOIN(a, b) MB_JOIN_(a, b)
#define MB_LEVEL MB_JOIN(MB_LEVEL_, MB_TARGET)
#define MB_INLINE static inline __attribute__((always_inline))
// Before a loop of at most 16 rounds of known number whose array then lives in registers.
#if defined(__clang__)
#define MB_UNROLL _Pragma("unroll")
#else
#define MB_UNROLL _Pragma("GCC unroll 16")
#endif

namespace mb::cpu::MB_TARGET {

MB_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
MB_INLINE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Round to nearest even; NaN stays NaN.
MB_INLINE uint16_t bf16_from_float(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
MB_INLINE float float_from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

}  // namespace mb::cpu::MB_TARGET

#if MB_LEVEL == MB_LEVEL_avx512
#include "vec_avx512.h"
#elif MB_LEVEL == MB_LEVEL_avx2
#include "vec_avx2.h"
#elif MB_LEVEL == MB_LEVEL_neon
#include "vec_neon.h"
#else
#include "vec_scalar.h"
#endif

namespace mb::cpu::MB_TARGET {

MB_INLINE V operator+(V a, V b) { return add(a, b); }
MB_INLINE V operator-(V a, V b) { return sub(a, b); }
MB_INLINE V operator*(V a, V b) { return mul(a, b); }
MB_INLINE V operator/(V a, V b) { return div(a, b); }
MB_INLINE V neg(V a) { return sub(zero(), a); }

// Lane i of the result: the sum of the lanes of rows[i].
MB_INLINE V sum_each(const V* rows) {
  V folds[W / kFold];
  MB_UNROLL
  for (int i = 0; i < W / kFold; i++) folds[i] = fold(rows + i * kFold);
  return join(folds);
}

// The sum of W registers, given the fold_lanes of each kFold of them, in the order in which sum_each adds W lanes.
MB_INLINE V join_lanes(const V* folds) {
  constexpr int kFolds = W / kFold;
  static_assert(kFolds == 1 || kFolds == 2 || kFolds == 4);
  if constexpr (kFolds == 1) return folds[0];
  if constexpr (kFolds == 2) return folds[0] + folds[1];
  if constexpr (kFolds == 4) return (folds[0] + folds[1]) + (folds[2] + folds[3]);
}

// Read ahead into every cache level.
MB_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
// Into the second level only: rows a power of two apart would throw each other out of the first.
MB_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// e^x = 2^n e^r with r = x - n ln 2 in two parts; e^r = 1 + r + r^2 q(r), q minimax for the relative error (3e-9 before
// rounding). Above the range: inf. Below it: 0 (denormal results may flush). NaN: NaN.
MB_INLINE V exp(V x) {
  const V y = max(set1(-104.0f), min(set1(89.0f), x));
  const V n = round(y * set1(1.44269504f));
  V r = fma(n, set1(-0.693359375f), y);
  r = fma(n, set1(2.12194440e-4f), r);
  V q = set1(1.3814467e-3f);
  q = fma(q, r, set1(8.3687805e-3f));
  q = fma(q, r, set1(4.166839422e-2f));
  q = fma(q, r, set1(0.16666520107f));
  q = fma(q, r, set1(0.49999993412f));
  const V p = fma(q, r * r, r) + set1(1.0f);
  return scale_by_power(p, n);
}

// x[i] <- 2^x[i] by one polynomial of degree 5, minimax for the relative error (9e-8 before rounding): the decay of the
// scan. Below 2^-126 it may flush to 0; above 2^127.5 it may saturate to inf. K results go stage by stage, because one
// alone is a chain of dependent instructions that fills the processor's queue with waiting.
template <int K>
MB_INLINE void exp2_each(V* x) {
  V r[K], q[K];
#if MB_LEVEL == MB_LEVEL_avx512
  // vreduceps and vscalefps split at the floor and take care of every special value, so r lies in [0, 1).
  constexpr float c[] = {1.8671305e-3f, 9.01702941e-3f, 5.579991376e-2f, 0.24016444997f, 0.69315131182f, 1.0f};
  MB_UNROLL
  for (int i = 0; i < K; i++) r[i] = fraction(x[i]);
#else
  constexpr float c[] = {1.32647273e-3f, 9.67151279e-3f, 5.550733744e-2f, 0.24022242083f, 0.6931469776f, 1.0f};
  V whole[K];
  MB_UNROLL
  for (int i = 0; i < K; i++) {
    x[i] = max(set1(-127.0f), min(set1(128.0f), x[i]));
    whole[i] = round(x[i]);
    r[i] = x[i] - whole[i];
  }
#endif
  MB_UNROLL
  for (int i = 0; i < K; i++) q[i] = fma(set1(c[0]), r[i], set1(c[1]));
  MB_UNROLL
  for (int k = 2; k < 6; k++) {
    MB_UNROLL
    for (int i = 0; i < K; i++) q[i] = fma(q[i], r[i], set1(c[k]));
  }
  MB_UNROLL
  for (int i = 0; i < K; i++) {
#if MB_LEVEL == MB_LEVEL_avx512
    x[i] = scale_by_floor(q[i], x[i]);
#else
    x[i] = scale_by_power_fast(q[i], whole[i]);
#endif
  }
}
MB_INLINE V exp2_fast(V x) {
  exp2_each<1>(&x);
  return x;
}

// log(1 + e) for e in [0, 1], to 2e-7 of its own value: e (1 + e q(e)).
MB_INLINE V log1p_unit(V e) {
  V q = set1(5.36481901e-3f);
  q = fma(q, e, set1(-3.006577251e-2f));
  q = fma(q, e, set1(7.92045059e-2f));
  q = fma(q, e, set1(-0.13753800046f));
  q = fma(q, e, set1(0.1915365397f));
  q = fma(q, e, set1(-0.2485716345f));
  q = fma(q, e, set1(0.33321322595f));
  q = fma(q, e, set1(-0.49999647963f));
  return fma(q * e, e, e);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): exact to rounding at both ends (the identity above 20, e^x far below 0).
MB_INLINE V softplus(V x) { return max(zero(), x) + log1p_unit(exp(min(x, neg(x)))); }
MB_INLINE V sigmoid(V x) { return set1(1.0f) / (set1(1.0f) + exp(neg(x))); }
MB_INLINE V silu(V x) { return x / (set1(1.0f) + exp(neg(x))); }

}  // namespace mb::cpu::MB_TARGET
