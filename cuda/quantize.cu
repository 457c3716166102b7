// q(M,K) i8 and scale(M) from x(M,K): scale = max|row| / 127, q = x / scale to nearest even, both in f32; exactly what
// native/ref/linear.h does. A block a row.
#include <cuda_fp16.h>

#include "check.h"
#include "dtype.cuh"
#include "kernel.h"
#include "reduce.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float as_float(float v) { return v; }
__device__ __forceinline__ float as_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float as_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float as_float(double v) { return static_cast<float>(v); }

template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_rows_of_kernel(const T* x, int64_t x_stride, int8_t* q, int64_t q_stride, float* scale, int64_t K) {
  __shared__ float room[kThreads / 32];
  const T* row = x + blockIdx.x * x_stride;
  float max = 0;
  int finite = 1;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const float value = fabsf(as_float(row[k]));
    finite &= isfinite(value);
    max = fmaxf(max, value);
  }
  finite = __syncthreads_and(finite);
  max = block_reduce<kThreads>(max, room, Max{});
  const float row_scale = finite ? __fdiv_rn(max, 127.0f) : __int_as_float(0x7FC00000);
  if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;
  int8_t* out = q + blockIdx.x * q_stride;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const float ratio = row_scale > 0 ? __fdiv_rn(as_float(row[k]), row_scale) : 0.0f;
    out[k] = static_cast<int8_t>(__float2int_rn(fminf(fmaxf(ratio, -127.0f), 127.0f)));
  }
}

template <class T>
Status launch_quantize(const Tensor& x, const Tensor& q, const Tensor& scale, const Launch& launch) {
  quantize_rows_of_kernel<T><<<static_cast<unsigned>(x.rows()), kThreads, 0, launch.stream>>>(
      x.ptr<T>(), x.row_stride, q.ptr<int8_t>(), q.row_stride, scale.ptr<float>(), x.cols());
  MB_CUDA_LAUNCHED("quantize_rows");
  return {};
}

Status run_quantize_rows(const Node& node, const Launch& launch) {
  const Tensor& x = node.in(at::quantize_rows::in::x);
  const Tensor &q = node.out(at::quantize_rows::out::q), &scale = node.out(at::quantize_rows::out::scale);
  if (x.rows() == 0) return {};
  if (x.dtype == DType::f64) return launch_quantize<double>(x, q, scale, launch);
  if (x.dtype == DType::f16) return launch_quantize<__half>(x, q, scale, launch);
  return with_activation(x.dtype, [&](auto t) { return launch_quantize<decltype(t)>(x, q, scale, launch); });
}

const char* quantize_rows_why_not(const Node& node, const Props&) {
  const Tensor& x = node.in(at::quantize_rows::in::x);
  if (!is_activation(x) && x.dtype != DType::f64 && x.dtype != DType::f16) return "x is not f32, bf16, f16 or f64";
  if (node.out(at::quantize_rows::out::q).dtype != DType::i8) return "q is not i8";
  return node.out(at::quantize_rows::out::scale).dtype == DType::f32 ? nullptr : "scale is not f32";
}

}  // namespace

const Kernel quantize_rows_kernel = {run_quantize_rows, nullptr, quantize_rows_why_not};

}  // namespace mb::cuda
