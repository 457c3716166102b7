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
  bool f32;
  int splits;
};

// Too few tiles for the multiprocessors: the depth is cut as well. Depends on sizes alone, so sums keep their order.
Own own(const Product& p, const Props& props) {
  Own o{p.dtype == DType::f32, 1};
  const int64_t tiles = o.f32 ? f32_tiles(p, props) : mma_tiles(p, props);
  const int64_t wanted = (2 * props.sm_count + tiles - 1) / tiles;
  const int64_t most = p.depth / (o.f32 ? 128 : 256);
  if (tiles < props.sm_count && wanted > 1 && most > 1) o.splits = int(wanted < most ? wanted : most);
  if (o.splits > 64) o.splits = 64;
  return o;
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
  const int64_t own_bytes = partial_bytes(p, own(p, props).splits);
  const int64_t lt_bytes = props.gemm && props.gemm->lt ? CublasLt::kWorkspace : 0;
  return own_bytes > lt_bytes ? own_bytes : lt_bytes;
}

Status multiply(const Product& p, const Props& props, char* workspace, cudaStream_t stream) {
  if (p.rows == 0 || p.cols == 0) return {};
  if (p.depth == 0) return write_epilogue(p, stream);
  if (props.gemm && props.gemm->lt && props.gemm->lt->can(p)) return props.gemm->lt->multiply(p, workspace, stream);
  const Own o = own(p, props);
  float* partials = reinterpret_cast<float*>(workspace);
  MB_TRY(o.f32 ? multiply_f32(p, o.splits, partials, props, stream)
               : multiply_mma(p, o.splits, partials, props, stream));
  return o.splits > 1 ? reduce_partials(p, o.splits, partials, stream) : Status{};
}

}  // namespace mb::cuda
