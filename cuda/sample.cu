// Draws one class for each row of logits(B,V): the op around sample_row_block, a block a row.
#include "check.h"
#include "kernel.h"
#include "sample.cuh"

namespace mb::cuda {
namespace {

constexpr int kSharedClasses = 1024;  // whose scores and weights fit beside SampleShared in 48 KB
constexpr int kFewClasses = 4096;     // above, blocks of kWide threads
constexpr int kNarrow = 256, kWide = 1024;
constexpr int64_t kClassBytes = sizeof(double) + sizeof(float);

struct SampleArgs {
  int64_t V;
  const float *logits, *bias;
  const float* params;
  int32_t* rng;
  uint8_t* seen;
  int32_t* ids;
  float* logprob;
  int64_t logits_stride, bias_stride, params_stride, rng_stride, seen_stride;
  char* scratch;  // kClassBytes a class and row; null: shared memory
};

template <int Threads>
__global__ void __launch_bounds__(Threads) sample_rows_kernel(SampleArgs a) {
  __shared__ SampleShared<Threads> shared;
  extern __shared__ double shared_weights[];
  const int64_t b = blockIdx.x;
  auto* weights = a.scratch ? reinterpret_cast<double*>(a.scratch) + b * a.V : shared_weights;
  auto* scores = a.scratch ? reinterpret_cast<float*>(a.scratch + gridDim.x * a.V * sizeof(double)) + b * a.V
                           : reinterpret_cast<float*>(shared_weights + a.V);
  const SampleRow row{a.V,
                      a.logits + b * a.logits_stride,
                      a.bias ? a.bias + b * a.bias_stride : nullptr,
                      a.seen ? a.seen + b * a.seen_stride : nullptr,
                      reinterpret_cast<const SampleParams*>(a.params + b * a.params_stride),
                      reinterpret_cast<uint32_t*>(a.rng + b * a.rng_stride),
                      scores,
                      nullptr,
                      a.logprob ? a.logprob + b : nullptr};
  const int id = sample_row_block<Threads>(row, weights, shared);
  if (threadIdx.x == 0) a.ids[b] = id;
}

int64_t sample_scratch(const Node& node, const Props&) {
  const Tensor& logits = node.in(at::sample::in::logits);
  return logits.cols() <= kSharedClasses ? 0 : logits.elems() * kClassBytes;
}

Status run_sample(const Node& node, const Launch& launch) {
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  const Tensor &logits = node.in(in::logits), &bias = node.in(in::bias), &params = node.in(in::params);
  const Tensor &rng = node.out(out::rng), &seen = node.out(out::seen);
  const int64_t B = logits.rows(), V = logits.cols();
  if (B == 0) return {};
  const bool in_shared = V <= kSharedClasses;
  const SampleArgs args{V,
                        logits.ptr<float>(),
                        bias.ptr<float>(),
                        params.ptr<float>(),
                        rng.ptr<int32_t>(),
                        seen.ptr<uint8_t>(),
                        node.out(out::ids).ptr<int32_t>(),
                        node.out(out::logprob).ptr<float>(),
                        logits.row_stride,
                        bias.row_stride,
                        params.row_stride,
                        rng.row_stride,
                        seen.row_stride,
                        in_shared ? nullptr : launch.scratch};
  const auto blocks = static_cast<unsigned>(B);
  const auto shared = static_cast<unsigned>(in_shared ? V * kClassBytes : 0);
  if (V <= kFewClasses) {
    sample_rows_kernel<kNarrow><<<blocks, kNarrow, shared, launch.stream>>>(args);
  } else {
    sample_rows_kernel<kWide><<<blocks, kWide, shared, launch.stream>>>(args);
  }
  MB_CUDA_LAUNCHED("sample");
  return {};
}

const char* sample_why_not(const Node& node, const Props&) {
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  const Tensor &logits = node.in(in::logits), &bias = node.in(in::bias), &logprob = node.out(out::logprob);
  if (logits.dtype != DType::f32 || node.in(in::params).dtype != DType::f32) return "logits or params are not f32";
  if (bias && bias.dtype != DType::f32) return "the bias is not f32";
  if (logits.cols() < 1 || logits.cols() > 65536) return "the number of classes is not in 1 .. 65536";
  if (node.out(out::ids).dtype != DType::i32 || node.out(out::rng).dtype != DType::i32) return "ids or rng are not i32";
  if (node.out(out::seen) && node.out(out::seen).dtype != DType::u8) return "seen is not u8";
  if (logprob && logprob.dtype != DType::f32) return "logprob is not f32";
  if (!node.out(out::ids).contiguous() || !logprob.contiguous()) return "ids or logprob have gaps between rows";
  return nullptr;
}

}  // namespace

const Kernel sample_kernel = {run_sample, sample_scratch, sample_why_not};

}  // namespace mb::cuda
