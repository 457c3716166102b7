// What LayerNorm before a product adds that no activation enters (Norm in product.cuh): the matrix (rows, columns),
// bf16 or int8 without its scales, times the norm's weight, and times its bias.
#pragma once
#include <cuda_runtime.h>

namespace mb::cuda::decode {

void launch_norm_constants(const void* matrix, bool i8, int rows, int columns, const float* weight, const float* bias,
                           float* times_weight, float* times_bias, cudaStream_t stream);

}  // namespace mb::cuda::decode
