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

// The same for four neighbours of one row, with what depends on the column read once: `whole` says that every operand
// can be read and written by fours.
struct EpilogueColumns {
  float4 scale, bias;
  bool whole;

  __device__ __forceinline__ EpilogueColumns(const Epilogue& e, bool quads, int64_t j, int64_t cols)
      : whole(quads && j + 3 < cols) {
    scale = whole && e.scale ? *reinterpret_cast<const float4*>(e.scale + j) : make_float4(1, 1, 1, 1);
    bias = whole && e.bias ? *reinterpret_cast<const float4*>(e.bias + j) : make_float4(0, 0, 0, 0);
  }

  __device__ __forceinline__ void store(const Epilogue& e, int64_t i, int64_t j, int64_t cols, float4 v) const {
    if (!whole) {
      const float s[4] = {v.x, v.y, v.z, v.w};
#pragma unroll 1
      for (int n = 0; n < 4 && j + n < cols; n++) epilogue_store(e, i, j + n, s[n]);
      return;
    }
    v.x = fmaf(v.x, scale.x, bias.x);
    v.y = fmaf(v.y, scale.y, bias.y);
    v.z = fmaf(v.z, scale.z, bias.z);
    v.w = fmaf(v.w, scale.w, bias.w);
    if (e.add && e.add_bf16) {
      const auto* from = static_cast<const bf16*>(e.add) + i * e.add_stride + j;
      const uint2 bits = *reinterpret_cast<const uint2*>(from);
      v.x += __uint_as_float(bits.x << 16);
      v.y += __uint_as_float(bits.x & 0xFFFF0000u);
      v.z += __uint_as_float(bits.y << 16);
      v.w += __uint_as_float(bits.y & 0xFFFF0000u);
    } else if (e.add) {
      const float4 a = *reinterpret_cast<const float4*>(static_cast<const float*>(e.add) + i * e.add_stride + j);
      v.x += a.x;
      v.y += a.y;
      v.z += a.z;
      v.w += a.w;
    }
    const int64_t at = i * e.stride + j;
    if (e.bf16) {
      __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
      *reinterpret_cast<uint2*>(static_cast<bf16*>(e.c) + at) = *reinterpret_cast<const uint2*>(pairs);
    } else {
      *reinterpret_cast<float4*>(static_cast<float*>(e.c) + at) = v;
    }
  }
};

inline bool takes_pairs(const Epilogue& e) {
  return e.stride % 2 == 0 && reinterpret_cast<uintptr_t>(e.c) % (e.bf16 ? 4 : 8) == 0;
}

inline bool takes_quads(const Epilogue& e) {
  const auto lies = [](const void* p, int64_t stride, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0 && stride % 4 == 0;
  };
  return lies(e.c, e.stride, e.bf16 ? 8 : 16) && lies(e.add, e.add_stride, e.add_bf16 ? 8 : 16) &&
         lies(e.scale, 0, 16) && lies(e.bias, 0, 16);
}

}  // namespace mb::cuda
