// Sums and maxima over a warp or a block, in an order that does not depend on timing. Every thread gets the result.
#pragma once
#include <cstdint>

namespace mb::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over each `Lanes` neighbouring lanes of a warp, all of which take part.
template <int Lanes = 32, class T, class Op>
__device__ __forceinline__ T warp_reduce(T v, Op op) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step >>= 1) v = op(v, __shfl_xor_sync(kFullWarp, v, step));
  return v;
}

template <int Lanes = 32, class T>
__device__ __forceinline__ T warp_sum(T v) {
  return warp_reduce<Lanes>(v, Plus{});
}

// `shared` holds Threads / 32 values and is free again after the next barrier of the block, so a second reduction needs
// other room or a barrier in between.
template <int Threads, class T, class Op>
__device__ __forceinline__ T block_reduce(T v, T* shared, Op op) {
  constexpr int kWarps = Threads / 32;
  v = warp_reduce(v, op);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = shared[0];
#pragma unroll
    for (int w = 1; w < kWarps; w++) v = op(v, shared[w]);
  }
  return v;
}

// The largest value above 0 and the lowest place that has it; 0 and 0 where there is none.
struct Largest {
  double value = 0;
  int place = 0;
  __device__ __forceinline__ void add(double other, int at) {
    if (other > value || (other == value && at < place)) value = other, place = at;
  }
};
__device__ __forceinline__ Largest warp_largest(Largest own) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, own.value, step);
    const int at = __shfl_xor_sync(kFullWarp, own.place, step);
    own.add(other, at);
  }
  return own;
}

template <int Threads, class T>
__device__ __forceinline__ T block_sum(T v, T* shared) {
  return block_reduce<Threads>(v, shared, Plus{});
}

}  // namespace mb::cuda
