// The decode kernel for int8 weights with a scale per row.
#include "kernel.cuh"
#include "kernels.h"

namespace mb::cuda::decode {

const void* kernel_i8(int rows, int taps) {
  if (rows == 1 && taps == kMaxTaps) return reinterpret_cast<const void*>(decode<Config<int8_t, true, 1, 4, 16, true>>);
  if (rows <= 4) return reinterpret_cast<const void*>(decode<Config<int8_t, true, 1, 4, 16>>);
  if (rows <= 8) return reinterpret_cast<const void*>(decode<Config<int8_t, false, 1, 4, 16>>);
  if (rows <= 16) return reinterpret_cast<const void*>(decode<Config<int8_t, false, 2, 2, 16>>);
  if (rows <= 32) return reinterpret_cast<const void*>(decode<Config<int8_t, false, 2, 2, 8>>);
  return reinterpret_cast<const void*>(decode<Config<int8_t, false, 2, 2, 4>>);
}

}  // namespace mb::cuda::decode
