// linear for few rows of x, where reading the weight is all the work.
#pragma once
#include "kernel.h"

namespace mb::cuda {

// Whether x has no more rows than a verify pass, whose every row has the bits of decoding it alone.
inline bool has_few_rows(const Tensor& x) { return x.rows() <= 32; }

// linear of that many rows, every dtype and alignment of the op; x is multiplied as it is.
Status linear_rows(const Node& node, const Props& props, cudaStream_t stream);

}  // namespace mb::cuda
