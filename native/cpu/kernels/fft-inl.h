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
  // Equal places of both parts are read together, and a line of one must not look like the next line of the other,
  // which was just written: so half a page lies between them.
  static constexpr int64_t kHalfPage = 512;
  static int64_t floats(int64_t n) { return 2 * n * W + kHalfPage; }
  static Signal at(float* p, int64_t n) { return {p, p + n * W + kHalfPage}; }
  VC get(int64_t i) const { return {load(re + i * W), load(im + i * W)}; }
  void set(int64_t i, VC z) const {
    store(re + i * W, z.re);
    store(im + i * W, z.im);
  }
  Signal from(int64_t i) const { return {re + i * W, im + i * W}; }
};

// What fft_split multiplies by: for j < n / 4 the cosines and sines of -2 pi i j / n for i = 1, 2, 3; then the same for
// n / 4, ...
MB_INLINE int64_t fft_turn_floats(int64_t n) {
  int64_t floats = 0;
  for (; n > 4; n /= 4) floats += 6 * (n / 4);
  return floats;
}

// Writes this thread's share of them.
static void fft_turns(float* to, int64_t n, const Team& team) {
  for (; n > 4; to += 6 * (n / 4), n /= 4) {
    const Team::Range mine = team.share(n / 4);
    for (int64_t j = mine.begin; j < mine.end; j++) {
      for (int64_t i = 1; i < 4; i++) {
        const double angle = -6.283185307179586 * static_cast<double>(i * j) / static_cast<double>(n);
        to[6 * j + 2 * i - 2] = static_cast<float>(__builtin_cos(angle));
        to[6 * j + 2 * i - 1] = static_cast<float>(__builtin_sin(angle));
      }
    }
  }
}

MB_INLINE VC fft_turn(const float* turn) { return {set1(turn[0]), set1(turn[1])}; }

// Splits n elements into four interleaved transforms of n / 4.
static void fft_split(const Signal& x, int64_t n, const float* turn) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; j++, turn += 6) {
    const VC a = x.get(j), b = x.get(j + q), c = x.get(j + 2 * q), d = x.get(j + 3 * q);
    const VC even = a + c, odd = b + d, left = a - c, right = turned(b - d);
    x.set(j, even + odd);
    x.set(j + q, (even - odd) * fft_turn(turn + 2));
    x.set(j + 2 * q, (left - right) * fft_turn(turn));
    x.set(j + 3 * q, (left + right) * fft_turn(turn + 4));
  }
}

// Undoes fft_split, times 4.
static void fft_join(const Signal& x, int64_t n, const float* turn) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; j++, turn += 6) {
    const VC p = x.get(j), r = times_conj(x.get(j + q), fft_turn(turn + 2));
    const VC s = times_conj(x.get(j + 2 * q), fft_turn(turn));
    const VC t = times_conj(x.get(j + 3 * q), fft_turn(turn + 4));
    const VC even = p + r, odd = p - r, left = s + t, right = turned(s - t);
    x.set(j, even + left);
    x.set(j + q, odd + right);
    x.set(j + 2 * q, even - left);
    x.set(j + 3 * q, odd - right);
  }
}

// The smallest transforms, which no turn belongs to.
MB_INLINE void fft_four(const Signal& x) {
  const VC a = x.get(0), b = x.get(1), c = x.get(2), d = x.get(3);
  const VC even = a + c, odd = b + d, left = a - c, right = turned(b - d);
  x.set(0, even + odd);
  x.set(1, even - odd);
  x.set(2, left - right);
  x.set(3, left + right);
}
MB_INLINE void fft_four_inverse(const Signal& x) {
  const VC p = x.get(0), r = x.get(1), s = x.get(2), t = x.get(3);
  const VC even = p + r, odd = p - r, left = s + t, right = turned(s - t);
  x.set(0, even + left);
  x.set(1, odd + right);
  x.set(2, even - left);
  x.set(3, odd - right);
}
MB_INLINE void fft_two(const Signal& x) {
  const VC a = x.get(0), b = x.get(1);
  x.set(0, a + b);
  x.set(1, a - b);
}

static void fft(const Signal& x, int64_t n, const float* turns) {
  if (n == 2) fft_two(x);
  if (n == 4) fft_four(x);
  if (n <= 4) return;
  const int64_t q = n / 4;
  fft_split(x, n, turns);
  for (int64_t i = 0; i < n; i += q) fft(x.from(i), q, turns + 6 * q);
}

// n times the inverse.
static void fft_inverse(const Signal& x, int64_t n, const float* turns) {
  if (n == 2) fft_two(x);
  if (n == 4) fft_four_inverse(x);
  if (n <= 4) return;
  const int64_t q = n / 4;
  for (int64_t i = 0; i < n; i += q) fft_inverse(x.from(i), q, turns + 6 * q);
  fft_join(x, n, turns);
}

}  // namespace mb::cpu::MB_TARGET
