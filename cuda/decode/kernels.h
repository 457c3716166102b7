// The decode kernel's configurations, compiled in files of their own. All of them compute a row with the same bits,
// whatever other rows come with it.
#pragma once
#include "shape.h"

namespace mb::cuda::decode {

// A __global__ function of (Plan, Launch) for weights of that type, so many rows, convolution taps and 16-row tiles of
// a matrix that a block owns.
const void* kernel_bf16(int rows, int taps, int m_tiles);
const void* kernel_i8(int rows, int taps, int m_tiles);

// Whether the configuration for a single row is meant.
inline bool is_one(int rows, int taps) { return rows == 1 && taps == kMaxTaps; }

// Partial sums of each result of a product: of every group of columns, or of every four of them where the ring would
// have too little shared memory left.
inline int partials_for(int rows, int m_tiles) { return rows <= 8 || (rows <= 16 && m_tiles <= 2) ? kGroups : kQuads; }

}  // namespace mb::cuda::decode
