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
__device__ __forceinline__ float first_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_half(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Eight neighbours of a row. Which k a lane holds does not matter as long as both factors agree, so lane l takes
// columns l % 4 * 8 to l % 4 * 8 + 7 of 32: 16 bytes of bf16 at once.
struct Fragment {
  uint32_t k[4];
};

// c(16,8) += a(16,32) b(32,8), where top and bottom are the rows l / 4 and l / 4 + 8 of a, and b its column l / 4.
__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& top, const Fragment& bottom,
                                             const Fragment& b) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    mma(c, {top.k[i], bottom.k[i], top.k[i + 1], bottom.k[i + 1]}, b.k[i], b.k[i + 1]);
  }
}

// Four int8 as two pairs of bf16, exact: 0x43 in front of seven bits is 128 + their value, and 128 or 256, by the sign,
// is taken off.
__device__ __forceinline__ void widen(uint32_t bytes, uint32_t& first, uint32_t& second) {
  const auto pair = [](uint32_t p) {
    const uint32_t magnitude = p & 0xFF7FFF7Fu, offset = p & 0xFF80FF80u;
    const __nv_bfloat162 v = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&magnitude),
                                     *reinterpret_cast<const __nv_bfloat162*>(&offset));
    return *reinterpret_cast<const uint32_t*>(&v);
  };
  first = pair(__byte_perm(bytes, 0x43434343u, 0x4140));
  second = pair(__byte_perm(bytes, 0x43434343u, 0x4342));
}

__device__ __forceinline__ Fragment fragment_at(const bf16* p) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ __forceinline__ Fragment fragment_at(const int8_t* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  Fragment f;
  widen(v.x, f.k[0], f.k[1]);
  widen(v.y, f.k[2], f.k[3]);
  return f;
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

}  // namespace mb::cuda
