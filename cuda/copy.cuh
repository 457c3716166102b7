// Copies to shared memory that are on their way while a thread goes on (cp.async), and lines fetched into the
// second-level cache.
#pragma once
#include "barrier.cuh"

namespace mb::cuda {

// kBytes (4, 8 or 16) to shared memory. 16 pass the first-level cache by, unless other threads read them too (kShared).
template <int kBytes, bool kShared = kBytes != 16>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  if constexpr (kShared) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
                 : "memory");
  } else {
    static_assert(kBytes == 16);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
  }
}

// The same, of which the first `bytes` come from memory and the rest are 0.
template <int kBytes, bool kShared = kBytes != 16>
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  if constexpr (kShared) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  } else {
    static_assert(kBytes == 16);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  }
}

// Puts the thread's copies since the last time into a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of the thread's copies have come.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Until at most kLeft groups of them, the latest ones, are on their way.
template <int kLeft>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

constexpr int kLine = 128;  // bytes
__device__ __forceinline__ void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

}  // namespace mb::cuda
