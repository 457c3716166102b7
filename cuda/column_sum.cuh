// y(M) <- sums of the columns of a tall f32 matrix: the second stage of every sum over rows.
#pragma once
#include "kernel.h"

namespace mb::cuda {

// y[m] = sum over s of partial[s * stride + m], s < slices, in a fixed order; accumulate: added to y.
Status launch_sum_slices(const float* partial, int64_t slices, int64_t stride, int64_t M, float* y, bool accumulate,
                         cudaStream_t stream);

}  // namespace mb::cuda
