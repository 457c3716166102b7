// CUDA's error codes as a Status that quotes the call.
#pragma once
#include <cuda_runtime.h>

#include "../native/status.h"

namespace mb::cuda {

inline Status to_status(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return {};
  const Code code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device;
  return fail(code, "cuda: %s: %s", call, cudaGetErrorString(error));
}

}  // namespace mb::cuda

#define MB_CUDA(call) MB_TRY(::mb::cuda::to_status((call), #call))
// After a <<<>>> launch.
#define MB_CUDA_LAUNCHED(name) MB_TRY(::mb::cuda::to_status(cudaGetLastError(), name))
