// Element types on the device: loads and stores that widen to float, and dispatch from a DType to a C++ type.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../native/tensor.h"

namespace mb::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(int8_t v) { return static_cast<float>(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}

// Activations are f32 or bf16.
inline bool is_activation(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

// Calls fn(T{}) with T = float or bf16.
template <class Fn>
auto with_activation(DType t, Fn fn) {
  return t == DType::bf16 ? fn(bf16{}) : fn(float{});
}

}  // namespace mb::cuda
