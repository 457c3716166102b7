// Matrix products of the device: C(rows, cols) = A(rows, depth) B(cols, depth)^T, then an epilogue on every element.
//
// Chosen per product, the same choice every time: cuBLASLt where it is installed and can express the epilogue, else
// our own kernels: gemm_wgmma.cu (bf16, Hopper), gemm_mma.cu (bf16, any tensor core), gemm_f32.cu (f32).
#pragma once
#include "kernel.h"

namespace mb::cuda {

// One factor. Element (i, k) is data[i * stride + k]; where `across`, data[k * stride + i].
// data is 16-byte aligned and a stride is a whole number of 16 bytes.
struct Factor {
  const void* data = nullptr;
  int64_t stride = 0;
  bool across = false;
};

// c[i, j] = scale[j] * product[i, j] + bias[j] + add[i, j]; null scale is 1, null bias and add are 0.
// c and add are f32 or bf16, with any alignment; add may be c.
struct Epilogue {
  void* c = nullptr;
  const void* add = nullptr;
  const float* scale = nullptr;
  const float* bias = nullptr;
  int64_t stride = 0, add_stride = 0;
  bool bf16 = false, add_bf16 = false;
};

// dtype of both factors: f32 (f32 arithmetic throughout) or bf16 (tensor cores, sums in f32).
struct Product {
  DType dtype = DType::bf16;
  int64_t rows = 0, cols = 0, depth = 0;
  Factor a, b;
  Epilogue epilogue;
};

// The device must be current.
Status open_gemm(int device, Gemm** out);
void close_gemm(Gemm* gemm);
// "cublaslt 13.1.0" or "own".
const char* gemm_backend_name(const Gemm* gemm);

// Bytes of workspace that multiply needs for a product of these sizes. Pointers are not looked at.
int64_t multiply_workspace(const Product& product, const Props& props);
// Enqueues the product. workspace: 256-byte aligned.
Status multiply(const Product& product, const Props& props, char* workspace, cudaStream_t stream);

}  // namespace mb::cuda
