// Complex numbers in double for what is computed once per state and sequence, and in vectors for what is not.
#pragma once

namespace mb::cpu::MB_TARGET {

struct Complex {
  double re, im;
};
MB_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
MB_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
MB_INLINE Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
MB_INLINE Complex operator*(double a, Complex b) { return {a * b.re, a * b.im}; }
MB_INLINE Complex operator/(Complex a, Complex b) {
  const double size = 1 / (b.re * b.re + b.im * b.im);
  return {(a.re * b.re + a.im * b.im) * size, (a.im * b.re - a.re * b.im) * size};
}
MB_INLINE Complex conj(Complex a) { return {a.re, -a.im}; }
MB_INLINE Complex pair_at(const float* p, int64_t i) { return {p[2 * i], p[2 * i + 1]}; }
MB_INLINE void set_pair(float* p, int64_t i, Complex z) {
  p[2 * i] = static_cast<float>(z.re), p[2 * i + 1] = static_cast<float>(z.im);
}

// A vector of complex numbers.
struct VC {
  V re, im;
};
MB_INLINE VC operator+(VC a, VC b) { return {a.re + b.re, a.im + b.im}; }
MB_INLINE VC operator-(VC a, VC b) { return {a.re - b.re, a.im - b.im}; }
MB_INLINE VC operator*(VC a, VC b) { return {fma(a.re, b.re, neg(a.im * b.im)), fma(a.re, b.im, a.im * b.re)}; }
// a conj(b)
MB_INLINE VC times_conj(VC a, VC b) { return {fma(a.re, b.re, a.im * b.im), fma(a.im, b.re, neg(a.re * b.im))}; }
// i a
MB_INLINE VC turned(VC a) { return {neg(a.im), a.re}; }

}  // namespace mb::cpu::MB_TARGET
