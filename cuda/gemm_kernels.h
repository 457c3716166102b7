// The matrix product kernels between which gemm.cc chooses.
#pragma once
#include <type_traits>

#include "gemm.h"

namespace mb::cuda {

// The depth is cut into `splits` slices. With more than one, each writes f32 sums of its own into
// partials(splits, rows, cols) and reduce_partials adds them in order.
Status multiply_mma(const Product& product, int splits, float* partials, const Props& props, cudaStream_t stream);
Status multiply_f32(const Product& product, int splits, float* partials, const Props& props, cudaStream_t stream);
Status reduce_partials(const Product& product, int splits, const float* partials, cudaStream_t stream);

// multiply_mma and multiply_f32 make tiles of 128 x 128 where there are enough of them to keep every multiprocessor
// busy, else of 64 x 64.
inline int64_t count_tiles(const Product& p, int64_t side) {
  return ((p.rows + side - 1) / side) * ((p.cols + side - 1) / side);
}
inline bool wants_large_tiles(const Product& p, const Props& props) { return count_tiles(p, 128) >= props.sm_count; }
// Tiles of C: what is spread over the multiprocessors.
inline int64_t square_tiles(const Product& p, const Props& props) {
  return count_tiles(p, wants_large_tiles(p, props) ? 128 : 64);
}

// Calls run(across_a, across_b), two std::bool_constant, for the three ways that factors of linear and its gradients
// lie.
template <class Run>
Status with_layout(const Product& p, const char* name, Run run) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (!p.a.across && !p.b.across) return run(No{}, No{});
  if (!p.a.across) return run(No{}, Yes{});
  if (p.b.across) return run(Yes{}, Yes{});
  return fail(Code::unsupported, "%s: expected the second factor to lie across where the first does", name);
}

// Hopper alone.
struct WgmmaPlan {
  int wide = 0;  // columns of a tile: 64, 128 or 256
  int splits = 1;
};
WgmmaPlan plan_wgmma(const Product& product, const Props& props);
Status multiply_wgmma(const Product& product, WgmmaPlan plan, float* partials, const Props& props, cudaStream_t stream);

}  // namespace mb::cuda
