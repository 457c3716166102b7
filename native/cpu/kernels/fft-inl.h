// FFTs of W channels side by side: element i of every channel is one vector, so nothing moves across lanes. Real and
// imaginary parts lie apart, [n][W] each, n a power of two. The forward transform decimates in frequency and leaves its
// result in bit-reversed order, the inverse decimates in time and takes that order, so that between them nothing is
// permuted (Cooley & Tukey 1965; Gentleman & Sande 1966). Radix 4; quarters are transformed one after another, so that
// what no longer fits a cache does so a level or two deeper.
#pragma once

namespace mb::cpu::MB_TARGET {

// Smallest power of two that is at least n.
MB_INLINE int64_t fft_size(int64_t n) {
  int64_t size = 1;
  while (size < n) size *= 2;
  return size;
}

struct Signal {
  float *re, *im;
  // Between the parts there is a line more than their size, since equal places of both are always read together.
  static int64_t floats(int64_t n) { return 2 * n * W + 32; }
  static Signal at(float* p, int64_t n) { return {p, p + n * W + 16}; }
  VC get(int64_t i) const { return {load(re + i * W), load(im + i * W)}; }
  void set(int64_t i, VC z) const {
    store(re + i * W, z.re);
    store(im + i * W, z.im);
  }
  Signal from(int64_t i) const { return {re + i * W, im + i * W}; }
};

// turns[2 j], [2 j + 1]: cosine and sine of -2 pi j / n, for j < 3 n / 4, [begin, end) of them.
static void fft_turns(float* turns, int64_t n, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j++) {
    const double angle = -6.283185307179586 * static_cast<double>(j) / static_cast<double>(n);
    turns[2 * j] = static_cast<float>(__builtin_cos(angle));
    turns[2 * j + 1] = static_cast<float>(__builtin_sin(angle));
  }
}
MB_INLINE int64_t fft_turn_count(int64_t n) { return n < 4 ? 0 : 3 * n / 4; }

MB_INLINE VC fft_turn(const float* turns, int64_t i) { return {set1(turns[2 * i]), set1(turns[2 * i + 1])}; }

// Splits n elements into four interleaved transforms of n / 4; `step` entries of `turns` are one n-th turn.
static void fft_split(const Signal& x, int64_t n, const float* turns, int64_t step) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; j++) {
    const VC a = x.get(j), b = x.get(j + q), c = x.get(j + 2 * q), d = x.get(j + 3 * q);
    const VC even = a + c, odd = b + d, left = a - c, right = turned(b - d);
    const VC one = fft_turn(turns, j * step), two = fft_turn(turns, 2 * j * step),
             three = fft_turn(turns, 3 * j * step);
    x.set(j, even + odd);
    x.set(j + q, (even - odd) * two);
    x.set(j + 2 * q, (left - right) * one);
    x.set(j + 3 * q, (left + right) * three);
  }
}

// Undoes fft_split, times 4.
static void fft_join(const Signal& x, int64_t n, const float* turns, int64_t step) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; j++) {
    const VC one = fft_turn(turns, j * step), two = fft_turn(turns, 2 * j * step),
             three = fft_turn(turns, 3 * j * step);
    const VC p = x.get(j), r = times_conj(x.get(j + q), two);
    const VC s = times_conj(x.get(j + 2 * q), one), t = times_conj(x.get(j + 3 * q), three);
    const VC even = p + r, odd = p - r, left = s + t, right = turned(s - t);
    x.set(j, even + left);
    x.set(j + q, odd + right);
    x.set(j + 2 * q, even - left);
    x.set(j + 3 * q, odd - right);
  }
}

static void fft_pair(const Signal& x) {
  const VC a = x.get(0), b = x.get(1);
  x.set(0, a + b);
  x.set(1, a - b);
}

static void fft(const Signal& x, int64_t n, const float* turns, int64_t step = 1) {
  if (n == 2) fft_pair(x);
  if (n < 4) return;
  fft_split(x, n, turns, step);
  for (int64_t i = 0; i < 4 && n > 4; i++) fft(x.from(i * n / 4), n / 4, turns, 4 * step);
}

// n times the inverse.
static void fft_inverse(const Signal& x, int64_t n, const float* turns, int64_t step = 1) {
  if (n == 2) fft_pair(x);
  if (n < 4) return;
  for (int64_t i = 0; i < 4 && n > 4; i++) fft_inverse(x.from(i * n / 4), n / 4, turns, 4 * step);
  fft_join(x, n, turns, step);
}

}  // namespace mb::cpu::MB_TARGET
