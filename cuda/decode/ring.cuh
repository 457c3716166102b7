// A ring of shared-memory stages that one warp fills with bulk copies far ahead of the warps that read them.
#pragma once
#include <cstdint>

#include "../copy.cuh"
#include "exchange.cuh"
#include "shape.h"

namespace mb::cuda::decode {

__device__ __forceinline__ bool barrier_passed(uint64_t* bar, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(passed)
      : "r"(shared_address(bar)), "r"(parity)
      : "memory");
  return passed != 0;
}
__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
  for (unsigned turn = 0; !barrier_passed(bar, parity); turn++) give_up_after(turn);
}

// Position in the ring: the stage in use, and the parity of its barriers' current phase.
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
  uint64_t small_full[2], small_empty[2];
  volatile int quit;
};

// Streamed once, so it should not push the states and exchanges out of L2.
__device__ __forceinline__ uint64_t read_once_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void bulk_copy(void* to, const void* from, int bytes, uint64_t* full, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
      : "memory");
#endif
}
// The same, and announces the bytes; somebody else arrives at the barrier later.
__device__ __forceinline__ void bulk_fetch(void* to, const void* from, int bytes, uint64_t* full, uint64_t policy) {
  barrier_announce(full, bytes);
  bulk_copy(to, from, bytes, full, policy);
}
// A warp copies `bytes`, all of it in flight when this returns; bytes and addresses are multiples of 4.
__device__ __forceinline__ void async_copy(char* to, const void* from, int bytes, int lane) {
  const char* source = static_cast<const char*>(from);
  const uint32_t low =
      static_cast<uint32_t>(reinterpret_cast<uintptr_t>(source)) | shared_address(to) | static_cast<uint32_t>(bytes);
  if (low % 16 == 0) {
#pragma unroll 1
    for (int i = lane * 16; i < bytes; i += 512) copy_async<16>(to + i, source + i);
  } else if (low % 8 == 0) {
#pragma unroll 1
    for (int i = lane * 8; i < bytes; i += 256) copy_async<8>(to + i, source + i);
  } else {
#pragma unroll 1
    for (int i = lane * 4; i < bytes; i += 128) copy_async<4>(to + i, source + i);
  }
}
__device__ __forceinline__ void async_arrive(uint64_t* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}

}  // namespace mb::cuda::decode
