// The decode kernel for int8 weights with a scale per row.
#include "kernel.cuh"
#include "kernels.h"

namespace mb::cuda::decode {

const void* kernel_i8(int rows, int taps, int m_tiles) {
  if (is_one(rows, taps)) return reinterpret_cast<const void*>(decode<Config<int8_t, true, kGroups, kMaxTiles>>);
  if (partials_for(rows, m_tiles) == kGroups) {
    if (m_tiles <= 2) return reinterpret_cast<const void*>(decode<Config<int8_t, false, kGroups, 2>>);
    return reinterpret_cast<const void*>(decode<Config<int8_t, false, kGroups, kMaxTiles>>);
  }
  if (m_tiles <= 2) return reinterpret_cast<const void*>(decode<Config<int8_t, false, kQuads, 2>>);
  return reinterpret_cast<const void*>(decode<Config<int8_t, false, kQuads, kMaxTiles>>);
}

}  // namespace mb::cuda::decode
