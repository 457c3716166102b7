#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>

#include "check.h"
#include "cublaslt.h"
#include "gemm.h"
#include "gemm_epilogue.cuh"
#include "gemm_kernels.h"

namespace mb::cuda {

class Gemm {
 public:
  std::unique_ptr<CublasLt> lt;
  char name[48] = "own";
};

Status open_gemm(int, Gemm** out) {
  auto* gemm = new (std::nothrow) Gemm;
  if (!gemm) return fail(Code::out_of_memory, "open_gemm: out of memory");
  gemm->lt.reset(CublasLt::open());
  if (gemm->lt) std::snprintf(gemm->name, sizeof gemm->name, "cublaslt %s", gemm->lt->version());
  *out = gemm;
  return {};
}

void close_gemm(Gemm* gemm) { delete gemm; }

const char* gemm_backend_name(const Gemm* gemm) { return gemm ? gemm->name : "own"; }

namespace {

// How a product is run by our own kernels.
struct Own {
  enum Kind { f32, mma, wgmma } kind = mma;
  WgmmaPlan plan;  // mma and f32 use its splits alone
};

// Too few tiles for the multiprocessors: the depth is cut as well.
int splits_for(int64_t tiles, int64_t depth, int64_t shortest, const Props& props) {
  if (tiles >= props.sm_count) return 1;
  const int64_t wanted = (2 * props.sm_count + tiles - 1) / tiles, most = depth / shortest;
  return int(std::clamp<int64_t>(std::min(wanted, most), 1, 64));
}

// Depends on sizes alone, so sums keep their order.
Own own(const Product& p, const Props& props) {
  if (p.dtype == DType::f32) return {Own::f32, {0, splits_for(square_tiles(p, props), p.depth, 128, props)}};
  if (props.major == 9) return {Own::wgmma, plan_wgmma(p, props)};
  return {Own::mma, {0, splits_for(square_tiles(p, props), p.depth, 256, props)}};
}

int64_t partial_bytes(const Product& p, int splits) {
  return splits > 1 ? int64_t(splits) * p.rows * p.cols * int64_t(sizeof(float)) : 0;
}

__global__ void reduce_kernel(const Product p, int splits, const float* partials) {
  const int64_t n = p.rows * p.cols;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < n; at += int64_t(gridDim.x) * blockDim.x) {
    float sum = 0;
    for (int s = 0; s < splits; s++) sum += partials[s * n + at];
    epilogue_store(p.epilogue, at / p.cols, at % p.cols, sum);
  }
}

// The epilogue alone: the product over no depth is 0.
Status write_epilogue(const Product& p, cudaStream_t stream) { return reduce_partials(p, 0, nullptr, stream); }

}  // namespace

Status reduce_partials(const Product& p, int splits, const float* partials, cudaStream_t stream) {
  const int64_t blocks = (p.rows * p.cols + 255) / 256;
  reduce_kernel<<<unsigned(blocks < 65536 ? blocks : 65536), 256, 0, stream>>>(p, splits, partials);
  MB_CUDA_LAUNCHED("reduce_partials");
  return {};
}

int64_t multiply_workspace(const Product& p, const Props& props) {
  const int64_t own_bytes = partial_bytes(p, own(p, props).plan.splits);
  const int64_t lt_bytes = props.gemm && props.gemm->lt ? CublasLt::kWorkspace : 0;
  return own_bytes > lt_bytes ? own_bytes : lt_bytes;
}

Status multiply(const Product& p, const Props& props, char* workspace, cudaStream_t stream) {
  if (p.rows == 0 || p.cols == 0) return {};
  if (p.depth == 0) return write_epilogue(p, stream);
  if (props.gemm && props.gemm->lt && props.gemm->lt->can(p)) return props.gemm->lt->multiply(p, workspace, stream);
  const Own o = own(p, props);
  const int splits = o.plan.splits;
  float* partials = reinterpret_cast<float*>(workspace);
  switch (o.kind) {
    case Own::f32:
      MB_TRY(multiply_f32(p, splits, partials, props, stream));
      break;
    case Own::mma:
      MB_TRY(multiply_mma(p, splits, partials, props, stream));
      break;
    case Own::wgmma:
      MB_TRY(multiply_wgmma(p, o.plan, partials, props, stream));
      break;
  }
  return splits > 1 ? reduce_partials(p, splits, partials, stream) : Status{};
}

}  // namespace mb::cuda
