// linear for few rows of x, where reading the weight is all the work.
#pragma once
#include "kernel.h"

namespace mb::cuda {

constexpr int64_t kFewRows = 8;

// linear of 1..kFewRows rows, every dtype and alignment of the op; x is multiplied in f32.
Status linear_rows(const Node& node, const Props& props, cudaStream_t stream);

}  // namespace mb::cuda
