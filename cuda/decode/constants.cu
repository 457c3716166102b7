#include "../dtype.cuh"
#include "../reduce.cuh"
#include "constants.h"

namespace mb::cuda::decode {
namespace {

constexpr int kRowsOfBlock = 8;

// A warp a row.
template <class W>
__global__ void __launch_bounds__(kRowsOfBlock * 32)
    norm_constants(const W* matrix, int rows, int columns, const float* weight, const float* bias, float* times_weight,
                   float* times_bias) {
  const int row = static_cast<int>(blockIdx.x) * kRowsOfBlock + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= rows) return;
  const W* from = matrix + static_cast<long long>(row) * columns;
  float w = 0.0f, b = 0.0f;
  for (int k = lane; k < columns; k += 32) {
    const float v = to_float(from[k]);
    w = fmaf(v, weight[k], w);
    b = fmaf(v, bias[k], b);
  }
  w = warp_sum(w);
  b = warp_sum(b);
  if (lane == 0) times_weight[row] = w, times_bias[row] = b;
}

}  // namespace

void launch_norm_constants(const void* matrix, bool i8, int rows, int columns, const float* weight, const float* bias,
                           float* times_weight, float* times_bias, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock)), block(kRowsOfBlock * 32);
  if (i8) {
    norm_constants<<<grid, block, 0, stream>>>(static_cast<const int8_t*>(matrix), rows, columns, weight, bias,
                                               times_weight, times_bias);
  } else {
    norm_constants<<<grid, block, 0, stream>>>(static_cast<const bf16*>(matrix), rows, columns, weight, bias,
                                               times_weight, times_bias);
  }
}

}  // namespace mb::cuda::decode
