// The decode kernel's configurations, compiled in files of their own.
#pragma once
#include "shape.h"

namespace mb::cuda::decode {

// A __global__ function of (Plan, Launch) for weights of that type, so many rows and convolution taps.
const void* kernel_bf16(int rows, int taps);
const void* kernel_i8(int rows, int taps);

// How the warps of a kernel for so many rows share its products.
struct Split {
  int k_groups, row_groups;
};
inline Split split_for(int rows) {
  if (rows <= 16) return {kWarps, 1};
  return rows <= 32 ? Split{kWarps / 2, 2} : Split{kWarps / 4, 4};
}

}  // namespace mb::cuda::decode
