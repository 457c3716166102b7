// How blocks hand values to each other without a barrier: the lowest bit of every 32-bit word says which use of the
// buffer it belongs to, so whoever needs a word polls it until its bit flips.
//
// One buffer serves every use of a kind, because a block writes use n + 1 only after it has read something that every
// block wrote after it had read use n: partial sums follow x, y follows partial sums (or their sums), x follows y,
// logits follow the last x, drawn ids follow logits, and every block reads all of the words it waits for, through all
// of its threads, before it writes the next kind. Readers clear the bit, so a float is the same whatever use it came
// with; it loses 2^-23 of its value at most.
#pragma once
#include <cstdint>

namespace mb::cuda::decode {

// Only a defect waits so long: several seconds.
__device__ __forceinline__ void give_up_after(unsigned turn) {
  if (turn >> 24) __trap();
}

__device__ __forceinline__ uint32_t tagged(float v, uint32_t tag) { return (__float_as_uint(v) & ~1u) | tag; }
__device__ __forceinline__ float untagged(uint32_t word) { return __uint_as_float(word & ~1u); }

__device__ __forceinline__ void put_word(uint32_t* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ __forceinline__ void put(uint32_t* to, float v, uint32_t tag) { put_word(to, tagged(v, tag)); }

__device__ __forceinline__ uint4 peek4(const uint32_t* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t peek(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

// Bit 0 is set where a word does not carry the tag yet. One instruction a word; the compiler would take three.
__device__ __forceinline__ uint32_t missing(uint4 v, uint32_t tag) {
  const auto add = [tag](uint32_t so_far, uint32_t word) {  // so_far | (word ^ tag)
    asm("lop3.b32 %0, %0, %1, %2, 0xF6;" : "+r"(so_far) : "r"(word), "r"(tag));
    return so_far;
  };
  return add(add(add(v.x ^ tag, v.y), v.z), v.w) & 1u;
}

__device__ __forceinline__ uint32_t take(const uint32_t* from, uint32_t tag) {
  uint32_t v;
  for (unsigned turn = 0; ((v = peek(from)) ^ tag) & 1u; turn++) give_up_after(turn);
  return v;
}

}  // namespace mb::cuda::decode
