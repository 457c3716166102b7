// linear for few rows of x, where reading the weight is all the work.
#pragma once
#include "kernel.h"

namespace mb::cuda {

// Whether x has so few rows. Of f32 x those of a verify pass, so that it has the bits of decoding one id after another;
// bf16 x comes from longer inputs alone.
inline bool has_few_rows(const Tensor& x) { return x.rows() <= (x.dtype == DType::f32 ? 32 : 8); }

// linear of that many rows, every dtype and alignment of the op; x is multiplied as it is.
Status linear_rows(const Node& node, const Props& props, cudaStream_t stream);

}  // namespace mb::cuda
