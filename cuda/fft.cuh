// FFT of n complex numbers in shared memory by one block, n a power of two from 4 on. The forward transform decimates
// in frequency and leaves bit-reversed order, the inverse decimates in time and takes it, so that nothing is permuted
// (Cooley & Tukey 1965; Gentleman & Sande 1966). Radix 4.
#pragma once
#include "complex.cuh"

namespace mb::cuda {

// Where element i lies: a gap after every 16 keeps the strides of the passes off one bank.
__device__ __forceinline__ int fft_at(int i) { return i + (i >> 4); }
constexpr int fft_bytes(int n) { return (n + n / 16) * static_cast<int>(sizeof(Complex<float>)); }

__device__ __forceinline__ bool fft_odd_power(int n) { return (__ffs(n) - 1) % 2 != 0; }

// exp(-2 pi i j / n), its square and its cube.
struct Turns {
  Complex<float> one, two, three;
  __device__ __forceinline__ Turns(int j, int n) {
    sincospif(-2.0f * static_cast<float>(j) / static_cast<float>(n), &one.im, &one.re);
    two = one * one;
    three = two * one;
  }
};

// Transforms of 2, the smallest ones where n is an odd power of two.
__device__ __forceinline__ void fft_pairs(Complex<float>* x, int n) {
  for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
    const Complex<float> a = x[fft_at(2 * i)], b = x[fft_at(2 * i + 1)];
    x[fft_at(2 * i)] = a + b;
    x[fft_at(2 * i + 1)] = a - b;
  }
  __syncthreads();
}

// All threads of the block; x is written before and read after it without another barrier.
__device__ __forceinline__ void fft(Complex<float>* x, int n) {
  __syncthreads();
  for (int size = n; size >= 4; size /= 4) {
    const int q = size / 4;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
      const int j = i & (q - 1), first = 4 * (i - j) + j;
      const Complex<float> a = x[fft_at(first)], b = x[fft_at(first + q)];
      const Complex<float> c = x[fft_at(first + 2 * q)], d = x[fft_at(first + 3 * q)];
      const Complex<float> even = a + c, odd = b + d, left = a - c, right = turned(b - d);
      const Turns turns(j, size);
      x[fft_at(first)] = even + odd;
      x[fft_at(first + q)] = (even - odd) * turns.two;
      x[fft_at(first + 2 * q)] = (left - right) * turns.one;
      x[fft_at(first + 3 * q)] = (left + right) * turns.three;
    }
    __syncthreads();
  }
  if (fft_odd_power(n)) fft_pairs(x, n);
}

// n times the inverse of fft.
__device__ __forceinline__ void fft_inverse(Complex<float>* x, int n) {
  __syncthreads();
  const bool odd_power = fft_odd_power(n);
  if (odd_power) fft_pairs(x, n);
  for (int size = odd_power ? 8 : 4; size <= n; size *= 4) {
    const int q = size / 4;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
      const int j = i & (q - 1), first = 4 * (i - j) + j;
      const Turns turns(j, size);
      const Complex<float> a = x[fft_at(first)], b = times_conj(x[fft_at(first + q)], turns.two);
      const Complex<float> c = times_conj(x[fft_at(first + 2 * q)], turns.one);
      const Complex<float> d = times_conj(x[fft_at(first + 3 * q)], turns.three);
      const Complex<float> even = a + b, odd = a - b, left = c + d, right = turned(c - d);
      x[fft_at(first)] = even + left;
      x[fft_at(first + q)] = odd + right;
      x[fft_at(first + 2 * q)] = even - left;
      x[fft_at(first + 3 * q)] = odd - right;
    }
    __syncthreads();
  }
}

}  // namespace mb::cuda
