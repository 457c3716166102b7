// Complex numbers in float and double, and pairs of floats in memory.
#pragma once
#include <cstdint>

namespace mb::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};
template <class T>
__device__ __forceinline__ Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(T a, Complex<T> b) {
  return {a * b.re, a * b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> conj(Complex<T> a) {
  return {a.re, -a.im};
}
// a conj(b)
template <class T>
__device__ __forceinline__ Complex<T> times_conj(Complex<T> a, Complex<T> b) {
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}
// i a
template <class T>
__device__ __forceinline__ Complex<T> turned(Complex<T> a) {
  return {-a.im, a.re};
}
template <class T>
__device__ __forceinline__ Complex<T> power(Complex<T> base, int64_t exponent) {
  Complex<T> result{1, 0};
  for (; exponent > 0; exponent /= 2, base = base * base) {
    if (exponent % 2) result = result * base;
  }
  return result;
}

template <class T = float>
__device__ __forceinline__ Complex<T> pair_at(const float* p, int64_t i) {
  return {static_cast<T>(p[2 * i]), static_cast<T>(p[2 * i + 1])};
}
template <class T>
__device__ __forceinline__ void set_pair(float* p, int64_t i, Complex<T> z) {
  p[2 * i] = static_cast<float>(z.re), p[2 * i + 1] = static_cast<float>(z.im);
}

}  // namespace mb::cuda
