// What the selective scan and its gradient share: exponentials, softplus and SiLU by the fast units, and operands whose
// dtype is known only at run time. Equations (1) to (3) are those of native/ref/selective_scan.h.
#pragma once
#include <cstdint>

#include "dtype.cuh"
#include "vector.cuh"

namespace mb::cuda {

constexpr float kLog2e = 1.44269504088896341f;

// 2^x by the special function unit: within 2 ulp, denormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within 1 ulp.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float sigmoid_fast(float x) { return reciprocal_fast(1.0f + exp2_fast(-kLog2e * x)); }

// log(1 + v) for v in [0, 1], relative error 2.5e-7: v times a minimax polynomial of log(1 + v) / v.
__device__ __forceinline__ float log1p_unit(float v) {
  float p = 5.232623778e-03f;
  p = fmaf(p, v, -2.950495668e-02f);
  p = fmaf(p, v, 7.822549343e-02f);
  p = fmaf(p, v, -1.366320699e-01f);
  p = fmaf(p, v, 1.910598874e-01f);
  p = fmaf(p, v, -2.484297752e-01f);
  p = fmaf(p, v, 3.331909478e-01f);
  p = fmaf(p, v, -4.999949336e-01f);
  p = fmaf(p, v, 9.999999404e-01f);
  return p * v;
}

// log(1 + e^w) = max(w, 0) + log(1 + e^-|w|), without cancellation for either sign.
__device__ __forceinline__ float softplus_fast(float w) {
  return fmaxf(w, 0.0f) + log1p_unit(exp2_fast(-kLog2e * fabsf(w)));
}

// An f32 or bf16 operand of rows of the last axis; null where absent.
struct ScanRows {
  const void* data = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;

  explicit ScanRows(const Tensor& t) : data(t.data), stride(t.row_stride), is_bf16(t.dtype == DType::bf16) {}
  __device__ __forceinline__ float load(int64_t row, int64_t col) const {
    const int64_t i = row * stride + col;
    return is_bf16 ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  __device__ __forceinline__ void store(int64_t row, int64_t col, float v) const {
    const int64_t i = row * stride + col;
    if (is_bf16) {
      const_cast<bf16*>(static_cast<const bf16*>(data))[i] = from_float<bf16>(v);
    } else {
      const_cast<float*>(static_cast<const float*>(data))[i] = v;
    }
  }
};

}  // namespace mb::cuda
