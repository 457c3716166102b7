// Philox4x32-10, the counter-based random numbers of sampling and initialisation: the same words on every backend.
//
// philox4x32(counter[4], key[2]) -> 4 words. Draw number `counter` of a seed has a word of its own for every class v:
//   word v % 4 at key = (seed low, seed high), counter = (counter low, counter high, v / 4 + 1, 0).
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define MB_HOST_DEVICE __host__ __device__
#else
#define MB_HOST_DEVICE
#endif

namespace mb {

struct PhiloxWords {
  uint32_t word[4];
};

// Internal linkage (here and in sample_row.h): the header is compiled once per instruction set, and the linker must not
// merge those copies.
MB_HOST_DEVICE static inline PhiloxWords philox4x32(PhiloxWords c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The words of classes 4 group .. 4 group + 3 in draw `counter`.
MB_HOST_DEVICE static inline PhiloxWords philox_draw(uint64_t seed, uint64_t counter, uint32_t group) {
  return philox4x32({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), group + 1, 0u}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The word of class v in draw `counter`.
MB_HOST_DEVICE static inline uint32_t philox_word(uint64_t seed, uint64_t counter, int v) {
  const PhiloxWords words = philox_draw(seed, counter, static_cast<uint32_t>(v / 4));
  const uint32_t low = v & 1 ? words.word[1] : words.word[0], high = v & 1 ? words.word[3] : words.word[2];
  return v & 2 ? high : low;
}

}  // namespace mb
