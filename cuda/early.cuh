// Kernels that start before the one in front of them has ended (programmatic dependent launch; Hopper and newer): of
// short kernels one after another, the gaps between them are a large part.
//
// Such a kernel calls wait_for_previous() before it touches anything that another kernel writes or reads; at that, all
// kernels before it have ended, because each of them has waited too.
#pragma once
#include "check.h"
#include "kernel.h"

namespace mb::cuda {

// What follows may start, once all blocks of this kernel have come here.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until all kernels before this one have ended and their results can be read.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel that waits; older GPUs start it when the one in front has ended.
template <class... Params, class... Args>
Status start_early(void (*kernel)(Params...), dim3 grid, dim3 block, int shared, const Props& props,
                   cudaStream_t stream, Args... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = props.major >= 9 ? 1 : 0;
  MB_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
  return {};
}

}  // namespace mb::cuda
