// The decode kernel for bf16 weights.
#include "kernel.cuh"
#include "kernels.h"

namespace mb::cuda::decode {

const void* kernel_bf16(int rows, int taps, int m_tiles) {
  if (is_one(rows, taps)) return reinterpret_cast<const void*>(decode<Config<bf16, true, kGroups, kMaxTiles>>);
  if (partials_for(rows, m_tiles) == kGroups) {
    if (m_tiles <= 2) return reinterpret_cast<const void*>(decode<Config<bf16, false, kGroups, 2>>);
    return reinterpret_cast<const void*>(decode<Config<bf16, false, kGroups, kMaxTiles>>);
  }
  if (m_tiles <= 2) return reinterpret_cast<const void*>(decode<Config<bf16, false, kQuads, 2>>);
  return reinterpret_cast<const void*>(decode<Config<bf16, false, kQuads, kMaxTiles>>);
}

}  // namespace mb::cuda::decode
