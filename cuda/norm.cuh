// What the norms and their gradients share: a row belongs to a warp, or where it is wide to a block of 4 warps.
#pragma once
#include "reduce.cuh"

namespace mb::cuda {

constexpr int kNormThreads = 128;

// Sums over the `Group` threads of a row: a warp, or the whole block. Rooms alternate, so that one barrier a sum is
// enough.
template <int Group>
struct GroupSum {
  float (*room)[kNormThreads / 32];  // 2 rooms
  int turn = 0;
  __device__ __forceinline__ float operator()(float v) {
    if constexpr (Group == 32) {
      return warp_sum(v);
    } else {
      turn ^= 1;
      return block_sum<kNormThreads>(v, room[turn]);
    }
  }
};

}  // namespace mb::cuda
