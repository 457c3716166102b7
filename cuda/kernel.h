// How the CUDA backend runs one op: a kernel enqueues its work on a stream and returns. The work is captured into a
// CUDA graph when a plan is compiled, so a launch function must not synchronise, allocate or read device memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../native/ops.h"
#include "../native/status.h"
#include "../native/tensor.h"

namespace mb::cuda {

class Gemm;   // gemm.h
class Group;  // group.h

constexpr int64_t kCounters = 8 * 65536;

// What a device can do and has for all kernels; fixed when it is opened.
struct Props {
  int index = 0;
  int sm_count = 0;
  int major = 0, minor = 0;            // compute capability
  int max_shared_per_block = 0;        // bytes, with the opt-in
  double memory_bytes_per_second = 0;  // theoretical peak
  Gemm* gemm = nullptr;                // matrix products; owned by the device
  uint32_t* counters = nullptr;        // kCounters zeros in its memory; a kernel that counts with them leaves zeros
};

struct Launch {
  cudaStream_t stream = nullptr;
  const Props* props = nullptr;
  Group* group = nullptr;  // whom this device trains with, or null
  char* scratch =
      nullptr;  // 256-byte aligned; what the node's `scratch` asked for; another node's once this one is done
  int64_t scratch_bytes = 0;
};

// One op. Operand checks that do not depend on the data belong into why_not, which runs once per plan.
struct Kernel {
  Status (*launch)(const Node& node, const Launch& launch) = nullptr;
  // Bytes of scratch; null: none.
  int64_t (*scratch)(const Node& node, const Props& props) = nullptr;
  // Null, or why this node cannot run here (a static string).
  const char* (*why_not)(const Node& node, const Props& props) = nullptr;
};

// linear_kernel, selective_scan_kernel, ...: one per op, each defined in the file of its family.
#define MB_OP(name, outs, ins, attrs) extern const Kernel name##_kernel;
#include "../native/ops.def"
#undef MB_OP

}  // namespace mb::cuda
