// What a product kernel does with its sums: the epilogue of gemm.h on two neighbouring elements, or a partial sum.
#pragma once
#include "dtype.cuh"
#include "gemm.h"

namespace mb::cuda {

__device__ __forceinline__ float epilogue_value(const Epilogue& e, int64_t i, int64_t j, float sum) {
  if (e.scale) sum *= e.scale[j];
  if (e.bias) sum += e.bias[j];
  if (e.add) {
    const int64_t at = i * e.add_stride + j;
    sum += e.add_bf16 ? to_float(static_cast<const bf16*>(e.add)[at]) : static_cast<const float*>(e.add)[at];
  }
  return sum;
}

__device__ __forceinline__ void epilogue_store(const Epilogue& e, int64_t i, int64_t j, float sum) {
  const float v = epilogue_value(e, i, j, sum);
  const int64_t at = i * e.stride + j;
  if (e.bf16) {
    static_cast<bf16*>(e.c)[at] = __float2bfloat16_rn(v);
  } else {
    static_cast<float*>(e.c)[at] = v;
  }
}

// Elements j and j + 1 of row i, both inside c; `paired`: c takes a pair in one store (aligned, even stride).
__device__ __forceinline__ void epilogue_store2(const Epilogue& e, bool paired, int64_t i, int64_t j, float s0,
                                                float s1) {
  if (!paired) {
    epilogue_store(e, i, j, s0);
    epilogue_store(e, i, j + 1, s1);
    return;
  }
  const float v0 = epilogue_value(e, i, j, s0), v1 = epilogue_value(e, i, j + 1, s1);
  const int64_t at = i * e.stride + j;
  if (e.bf16) {
    *reinterpret_cast<__nv_bfloat162*>(static_cast<bf16*>(e.c) + at) = __floats2bfloat162_rn(v0, v1);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(e.c) + at) = make_float2(v0, v1);
  }
}

inline bool takes_pairs(const Epilogue& e) {
  return e.stride % 2 == 0 && reinterpret_cast<uintptr_t>(e.c) % (e.bf16 ? 4 : 8) == 0;
}

}  // namespace mb::cuda
