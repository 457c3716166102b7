// Loads and stores of several neighbouring elements by one thread, 16 bytes an instruction where they lie aligned, and
// the launch shapes of kernels that walk rows.
#pragma once
#include <algorithm>
#include <cstdint>

#include "dtype.cuh"

namespace mb::cuda {

// Bytes of the widest access for N elements of T.
template <int N, class T>
constexpr int access_bytes() {
  return N * sizeof(T) < 16 ? static_cast<int>(N * sizeof(T)) : 16;
}

template <class To, class From>
__device__ __forceinline__ void move_words(To* to, const From* from, int n) {
#pragma unroll
  for (int i = 0; i < n; i++) to[i] = from[i];
}

// p lies on a border of access_bytes<N, T>().
template <int N, class T>
__device__ __forceinline__ void load_raw(const T* p, T (&v)[N]) {
  constexpr int kBytes = N * sizeof(T);
  if constexpr (kBytes % 16 == 0) {
    move_words(reinterpret_cast<uint4*>(v), reinterpret_cast<const uint4*>(p), kBytes / 16);
  } else if constexpr (kBytes == 8) {
    move_words(reinterpret_cast<uint2*>(v), reinterpret_cast<const uint2*>(p), 1);
  } else {
    move_words(v, p, N);
  }
}

template <int N, class T>
__device__ __forceinline__ void store_raw(T* p, const T (&v)[N]) {
  constexpr int kBytes = N * sizeof(T);
  if constexpr (kBytes % 16 == 0) {
    move_words(reinterpret_cast<uint4*>(p), reinterpret_cast<const uint4*>(v), kBytes / 16);
  } else if constexpr (kBytes == 8) {
    move_words(reinterpret_cast<uint2*>(p), reinterpret_cast<const uint2*>(v), 1);
  } else {
    move_words(p, v, N);
  }
}

template <int N, class T>
__device__ __forceinline__ void load_vector(const T* p, float (&v)[N]) {
  alignas(16) T raw[N];
  load_raw<N>(p, raw);
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = to_float(raw[i]);
}

template <int N, class T>
__device__ __forceinline__ void store_vector(T* p, const float (&v)[N]) {
  alignas(16) T raw[N];
#pragma unroll
  for (int i = 0; i < N; i++) raw[i] = from_float<T>(v[i]);
  store_raw<N>(p, raw);
}

// Whether every row of t begins on a border of `bytes`. An absent operand does.
inline bool rows_aligned(const Tensor& t, int64_t bytes) {
  if (!t) return true;
  if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  return t.rows() <= 1 || t.row_stride * dtype_size(t.dtype) % bytes == 0;
}

// For N elements of t a thread.
inline bool vectors_fit(const Tensor& t, int N) {
  return rows_aligned(t, std::min<int64_t>(16, N * dtype_size(t.dtype)));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads of a block that walks rows of `units` vectors: x along the row, y over rows, 256 in all.
constexpr int kMapThreads = 256;
inline dim3 row_block(int64_t units) {
  unsigned x = 1;
  while (x < kMapThreads && x < units) x *= 2;
  return dim3(x, kMapThreads / x);
}

// The y extent of a grid is limited; kernels walk on from there.
inline dim3 row_grid(int64_t units, int64_t rows, dim3 block, int per_thread) {
  return dim3(static_cast<unsigned>(ceil_div(units, int64_t{block.x} * per_thread)),
              static_cast<unsigned>(std::min<int64_t>(ceil_div(rows, block.y), 65535)));
}

}  // namespace mb::cuda
