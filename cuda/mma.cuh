// Tensor-core products of bf16 on every GPU from Ampere on, and how their fragments are loaded.
#pragma once
#include "barrier.cuh"
#include "dtype.cuh"

namespace mb::cuda {

// c(16,8) += a(16,16) b(16,8). Lane l holds of a the rows l / 4 (a[0], a[2]) and l / 4 + 8 (a[1], a[3]), of b the
// column l / 4, at k = l % 4 * 2 and the next one, 8 further in a[2], a[3] and b1; of c the rows l / 4 (c[0], c[1]) and
// l / 4 + 8 (c[2], c[3]) at columns l % 4 * 2 and the next one.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbours of a row.
__device__ __forceinline__ uint32_t pair(float low, float high) {
  const __nv_bfloat162 p = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&p);
}

// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void load_matrices_turned(uint32_t (&r)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

// 16 bytes to shared memory, of which the first `bytes` come from memory and the rest are 0; on their way until the
// thread waits for them.
__device__ __forceinline__ void copy16(void* to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}

}  // namespace mb::cuda
