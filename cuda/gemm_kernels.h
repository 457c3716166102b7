// The matrix product kernels between which gemm.cc chooses.
#pragma once
#include "gemm.h"

namespace mb::cuda {

// The depth is cut into `splits` slices. With more than one, each writes f32 sums of its own into
// partials(splits, rows, cols) and reduce_partials adds them in order.
Status multiply_mma(const Product& product, int splits, float* partials, const Props& props, cudaStream_t stream);
Status multiply_f32(const Product& product, int splits, float* partials, const Props& props, cudaStream_t stream);
Status reduce_partials(const Product& product, int splits, const float* partials, cudaStream_t stream);

// Tiles of C that each kernel makes from a product: what is spread over the multiprocessors.
int64_t mma_tiles(const Product& product, const Props& props);
int64_t f32_tiles(const Product& product, const Props& props);

// Hopper alone.
struct WgmmaPlan {
  int wide = 0;  // columns of a tile: 64, 128 or 256
  int splits = 1;
};
WgmmaPlan plan_wgmma(const Product& product, const Props& props);
Status multiply_wgmma(const Product& product, WgmmaPlan plan, float* partials, const Props& props, cudaStream_t stream);

}  // namespace mb::cuda
