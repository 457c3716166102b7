// The CUDA backend as a shared library of its own: opened at run time, so that machines without a GPU never load it. It
// needs the NVIDIA driver alone; the CUDA runtime is linked in.
//
// A plan becomes one CUDA graph, captured when it is compiled; a decode plan becomes one persistent kernel instead.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../native/backend.h"
#include "../native/core/plan_times.h"
#include "../native/core/run_steps.h"
#include "check.h"
#include "decode/decode.h"
#include "gemm.h"
#include "group.h"
#include "kernel.h"
#include "optimizer.h"

namespace mb::cuda {
namespace {

const Kernel* const kKernels[op::count] = {
#define MB_OP(name, outs, ins, attrs) &name##_kernel,
#include "../native/ops.def"
#undef MB_OP
};

const char* const kOpNames[op::count] = {
#define MB_OP(name, outs, ins, attrs) #name,
#include "../native/ops.def"
#undef MB_OP
};

constexpr size_t kStageBytes = 8 << 20;
constexpr size_t kSmallBytes = 64 << 10;

struct Device {
  Props props;
  cudaDeviceProp full;
  int driver = 0;
  cudaStream_t stream = nullptr;    // where everything runs
  cudaStream_t recorder = nullptr;  // where plans are captured, since another thread may be running one
  Group* group = nullptr;
  // Page-locked memory through which the host's bytes travel: two halves, filled and sent in turn.
  char* stage = nullptr;
  cudaEvent_t stage_sent[2] = {};

  ~Device() {
    if (group) leave_group(group);
    if (props.gemm) close_gemm(props.gemm);
    if (props.counters) cudaFree(props.counters);
    for (cudaEvent_t e : stage_sent) {
      if (e) cudaEventDestroy(e);
    }
    if (stage) cudaFreeHost(stage);
    for (cudaStream_t s : {stream, recorder}) {
      if (s) cudaStreamDestroy(s);
    }
  }
};

struct Plan {
  Device* device = nullptr;
  const Node* nodes = nullptr;
  size_t n = 0;
  char* scratch = nullptr;
  int64_t scratch_bytes = 0;
  cudaGraphExec_t graph = nullptr;
  Decode* decode = nullptr;
  int32_t* watched = nullptr;  // page-locked
  int64_t watched_ids = 0;
  PlanTimes times;
  std::vector<cudaEvent_t> events;  // n + 1, while profiling

  ~Plan() {
    if (decode) decode_destroy(decode);
    if (graph) cudaGraphExecDestroy(graph);
    if (scratch) cudaFree(scratch);
    if (watched) cudaFreeHost(watched);
    for (cudaEvent_t e : events) cudaEventDestroy(e);
  }
};

Status use(const Device& device) { return to_status(cudaSetDevice(device.props.index), "cudaSetDevice"); }

// Why no device can be opened, in words; CUDA's own codes mislead (an absent driver reads as an old one).
Status check_driver(int* driver) {
  MB_CUDA(cudaDriverGetVersion(driver));
  if (*driver == 0) {
    return fail(Code::device, "cuda: no NVIDIA driver is installed. Install driver 580 or newer, or use device 'cpu'.");
  }
  constexpr int needed = CUDART_VERSION / 1000;
  if (*driver / 1000 < needed) {
    return fail(Code::device,
                "cuda: the NVIDIA driver is too old: it supports CUDA %d.%d, expected CUDA %d. Install driver 580 or "
                "newer, or use device 'cpu'.",
                *driver / 1000, *driver % 1000 / 10, needed);
  }
  return {};
}

Status check_count(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return fail(
        Code::device,
        "cuda: the NVIDIA driver finds no GPU. Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device 'cpu'.");
  }
  MB_TRY(to_status(error, "cudaGetDeviceCount"));
  if (index < 0 || index >= count) {
    return fail(Code::device, "cuda: expected the device number to be 0..%d, got %d", count - 1, index);
  }
  return {};
}

Status open(const DeviceOptions& options, void** out) {
  auto device = std::make_unique<Device>();
  MB_TRY(check_driver(&device->driver));
  MB_TRY(check_count(options.index));
  MB_CUDA(cudaSetDevice(options.index));
  MB_CUDA(cudaGetDeviceProperties(&device->full, options.index));
  Props& p = device->props;
  const cudaDeviceProp& full = device->full;
  if (full.major < 8) {
    return fail(Code::device, "cuda: expected a GPU of compute capability 8.0 or newer, got %d.%d (%s)", full.major,
                full.minor, full.name);
  }
  p.index = options.index;
  p.sm_count = full.multiProcessorCount;
  p.major = full.major;
  p.minor = full.minor;
  p.max_shared_per_block = int(full.sharedMemPerBlockOptin);
  int clock_khz = 0;
  MB_CUDA(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, options.index));
  p.memory_bytes_per_second = 2.0 * clock_khz * 1e3 * full.memoryBusWidth / 8;
  MB_CUDA(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking));
  MB_CUDA(cudaStreamCreateWithFlags(&device->recorder, cudaStreamNonBlocking));
  MB_CUDA(cudaHostAlloc(&device->stage, 2 * kStageBytes, cudaHostAllocDefault));
  for (cudaEvent_t& e : device->stage_sent) MB_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
  MB_TRY(open_gemm(options.index, &p.gemm));
  MB_CUDA(cudaMalloc(&p.counters, kCounters * sizeof(uint32_t)));
  MB_CUDA(cudaMemsetAsync(p.counters, 0, kCounters * sizeof(uint32_t), device->stream));
  *out = device.release();
  return {};
}

void close(void* d) {
  auto* device = static_cast<Device*>(d);
  cudaSetDevice(device->props.index);
  delete device;
}

size_t info(void* d, char* out, size_t capacity) {
  const auto& device = *static_cast<Device*>(d);
  size_t free_bytes = 0, total = 0;
  cudaSetDevice(device.props.index);
  cudaMemGetInfo(&free_bytes, &total);
  const int n = std::snprintf(
      out, capacity,
      R"({"backend":"cuda","target":"sm_%d%d","threads":1,"hostMemory":false,"name":"%s","index":%d,"multiprocessors":%d,)"
      R"("memoryBytes":%zu,"freeBytes":%zu,"memoryBytesPerSecond":%.0f,"driver":"%d.%d","runtime":"%d.%d","gemm":"%s"})",
      device.props.major, device.props.minor, device.full.name, device.props.index, device.props.sm_count, total,
      free_bytes, device.props.memory_bytes_per_second, device.driver / 1000, device.driver % 1000 / 10,
      CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, gemm_backend_name(device.props.gemm));
  return n < 0 ? 0 : size_t(n);
}

Status alloc(void* d, size_t bytes, void** data) {
  auto& device = *static_cast<Device*>(d);
  MB_TRY(use(device));
  bytes = std::max<size_t>(bytes, 1);
  void* p = nullptr;
  const cudaError_t error = cudaMalloc(&p, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears it: the device goes on working
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    return fail(Code::out_of_memory, "alloc: expected %zu bytes of GPU memory, %zu of %zu are free on %s", bytes,
                free_bytes, total, device.full.name);
  }
  MB_TRY(to_status(error, "cudaMalloc"));
  const Status cleared = to_status(cudaMemsetAsync(p, 0, bytes, device.stream), "cudaMemsetAsync");
  if (!cleared.ok()) {
    cudaFree(p);
    return cleared;
  }
  *data = p;
  return {};
}

void free(void* d, void* data, size_t) {
  auto& device = *static_cast<Device*>(d);
  cudaSetDevice(device.props.index);
  cudaStreamSynchronize(device.stream);
  cudaFree(data);
}

Status write(void* d, void* data, const void* from, size_t bytes) {
  auto& device = *static_cast<Device*>(d);
  MB_TRY(use(device));
  // The driver keeps a copy of so few bytes itself, and the host waits for no earlier ones.
  if (bytes <= kSmallBytes) {
    MB_CUDA(cudaMemcpyAsync(data, from, bytes, cudaMemcpyHostToDevice, device.stream));
    return {};
  }
  for (size_t at = 0, i = 0; at < bytes; i++) {
    const size_t n = std::min(kStageBytes, bytes - at);
    char* half = device.stage + i % 2 * kStageBytes;
    MB_CUDA(cudaEventSynchronize(device.stage_sent[i % 2]));
    std::memcpy(half, static_cast<const char*>(from) + at, n);
    MB_CUDA(cudaMemcpyAsync(static_cast<char*>(data) + at, half, n, cudaMemcpyHostToDevice, device.stream));
    MB_CUDA(cudaEventRecord(device.stage_sent[i % 2], device.stream));
    at += n;
  }
  return {};
}

Status read(void* d, const void* data, void* to, size_t bytes) {
  auto& device = *static_cast<Device*>(d);
  MB_TRY(use(device));
  // Bytes in flight from an earlier write are behind this on the stream, so both halves are free to use.
  MB_CUDA(cudaStreamSynchronize(device.stream));
  for (size_t at = 0; at < bytes;) {
    const size_t n = std::min(2 * kStageBytes, bytes - at);
    MB_CUDA(
        cudaMemcpyAsync(device.stage, static_cast<const char*>(data) + at, n, cudaMemcpyDeviceToHost, device.stream));
    MB_CUDA(cudaStreamSynchronize(device.stream));
    std::memcpy(static_cast<char*>(to) + at, device.stage, n);
    at += n;
  }
  return {};
}

const char* why_not(void* d, const Node& node) {
  const auto& device = *static_cast<Device*>(d);
  if (node.op < 0 || node.op >= op::count) return "this backend has no such op";
  const Kernel& k = *kKernels[node.op];
  return k.why_not ? k.why_not(node, device.props) : nullptr;
}

Launch launch_of(const Plan& plan, cudaStream_t stream) {
  Launch launch;
  launch.stream = stream;
  launch.props = &plan.device->props;
  launch.group = plan.device->group;
  launch.scratch = plan.scratch;
  launch.scratch_bytes = plan.scratch_bytes;
  return launch;
}

// AdamW over nodes [begin, end), which do not depend on each other: hundreds of small tensors in a few launches.
Status launch_adamw(const Plan& plan, const Launch& launch, size_t begin, size_t end) {
  std::vector<const Node*> left, group, others;
  for (size_t i = begin; i < end; i++) left.push_back(&plan.nodes[i]);
  while (!left.empty()) {
    group.clear();
    others.clear();
    for (const Node* node : left) (same_adamw_group(*left[0], *node) ? group : others).push_back(node);
    MB_TRY(launch_adamw_group(group.data(), int(group.size()), launch));
    left.swap(others);
  }
  return {};
}

// Enqueues node i, and with an AdamW update all that directly follow it. *next is the first node that is left.
Status launch_from(const Plan& plan, cudaStream_t stream, size_t i, size_t* next) {
  const Node& node = plan.nodes[i];
  const Launch launch = launch_of(plan, stream);
  size_t end = i + 1;
  while (node.op == op::adamw && end < plan.n && plan.nodes[end].op == op::adamw) end++;
  *next = end;
  const Status status =
      node.op == op::adamw ? launch_adamw(plan, launch, i, end) : kKernels[node.op]->launch(node, launch);
  if (status.ok()) return status;
  return fail(status.code, "%s (%s): %s", node.scope, kOpNames[node.op], status.message);
}

Status capture(Plan& plan) {
  cudaStream_t stream = plan.device->recorder;
  MB_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  Status status;
  for (size_t i = 0; i < plan.n && status.ok();) status = launch_from(plan, stream, i, &i);
  if (status.ok() && plan.device->group) status = join_stream(plan.device->group, stream);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (status.ok()) status = to_status(ended, "cudaStreamEndCapture");
  if (status.ok()) status = to_status(cudaGraphInstantiate(&plan.graph, graph, 0), "cudaGraphInstantiate");
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
  return status;
}

// MAMBABYTE_CUDA_DECODE=graph runs decode plans as graphs of kernels, to compare the two.
bool decodes_in_one_kernel(const Node* nodes, size_t n, const Props& props) {
  const char* set = std::getenv("MAMBABYTE_CUDA_DECODE");
  return !(set && std::strcmp(set, "graph") == 0) && decode_matches(nodes, n, props);
}

Status compile(void* d, const Node* nodes, size_t n, void** out) {
  auto* device = static_cast<Device*>(d);
  MB_TRY(use(*device));
  auto plan = std::make_unique<Plan>();
  plan->device = device;
  plan->nodes = nodes;
  plan->n = n;
  plan->times.seconds.resize(n);
  if (decodes_in_one_kernel(nodes, n, device->props)) {
    MB_TRY(decode_create(nodes, n, device->props, &plan->decode));
  } else {
    for (size_t i = 0; i < n; i++) {
      const Kernel& k = *kKernels[nodes[i].op];
      if (k.scratch) plan->scratch_bytes = std::max(plan->scratch_bytes, k.scratch(nodes[i], device->props));
    }
    if (plan->scratch_bytes > 0) {
      void* scratch = nullptr;
      MB_TRY(alloc(device, size_t(plan->scratch_bytes), &scratch));
      plan->scratch = static_cast<char*>(scratch);
    }
    MB_CUDA(cudaStreamSynchronize(device->stream));
    if (n > 0) MB_TRY(capture(*plan));
  }
  *out = plan.release();
  return {};
}

// Node by node with an event between each two, for profile().
Status run_measured(Plan& plan) {
  cudaStream_t stream = plan.device->stream;
  while (plan.events.size() < plan.n + 1) {
    cudaEvent_t event = nullptr;
    MB_CUDA(cudaEventCreate(&event));
    plan.events.push_back(event);
  }
  std::vector<size_t> starts;
  for (size_t i = 0; i < plan.n;) {
    MB_CUDA(cudaEventRecord(plan.events[starts.size()], stream));
    starts.push_back(i);
    MB_TRY(launch_from(plan, stream, i, &i));
    if (plan.device->group) MB_TRY(join_stream(plan.device->group, stream));
  }
  MB_CUDA(cudaEventRecord(plan.events[starts.size()], stream));
  MB_CUDA(cudaStreamSynchronize(stream));
  for (size_t i = 0; i < starts.size(); i++) {
    float ms = 0;
    MB_CUDA(cudaEventElapsedTime(&ms, plan.events[i], plan.events[i + 1]));
    plan.times.seconds[starts[i]] += ms / 1e3;
  }
  return {};
}

Status run(void* d, void* p, Run& run) {
  auto& device = *static_cast<Device*>(d);
  auto& plan = *static_cast<Plan*>(p);
  MB_TRY(use(device));
  if (plan.decode) return decode_run(plan.decode, device.stream, run);
  const int64_t ids = run.watch ? run.watch->elems() : 0;
  if (ids > plan.watched_ids) {
    if (plan.watched) cudaFreeHost(plan.watched);
    plan.watched = nullptr;
    plan.watched_ids = 0;
    MB_CUDA(cudaHostAlloc(&plan.watched, size_t(ids) * sizeof(int32_t), cudaHostAllocDefault));
    plan.watched_ids = ids;
  }
  const auto step = [&]() -> Status {
    if (plan.times.measuring) return run_measured(plan);
    if (plan.graph) MB_CUDA(cudaGraphLaunch(plan.graph, device.stream));
    return {};
  };
  const auto read = [&](int32_t* to) -> Status {
    const size_t bytes = size_t(ids) * sizeof(int32_t);
    MB_CUDA(cudaMemcpyAsync(plan.watched, run.watch->data, bytes, cudaMemcpyDeviceToHost, device.stream));
    MB_CUDA(cudaStreamSynchronize(device.stream));
    std::memcpy(to, plan.watched, bytes);
    return {};
  };
  MB_TRY(run_steps(run, step, read));
  if (run.wait) MB_CUDA(cudaStreamSynchronize(device.stream));
  return {};
}

Status profile(void*, void* p, double* seconds) {
  static_cast<Plan*>(p)->times.take(seconds);
  return {};
}

void drop(void* d, void* p) {
  auto& device = *static_cast<Device*>(d);
  cudaSetDevice(device.props.index);
  cudaStreamSynchronize(device.stream);
  delete static_cast<Plan*>(p);
}

Status new_id(void*, char* id) { return new_group_id(id); }

Status join(void* d, const char* id, int32_t rank, int32_t world) {
  auto& device = *static_cast<Device*>(d);
  if (device.group) return fail(Code::device, "cuda: expected the device to be in no group, it has joined one");
  return join_group(device.props.index, id, rank, world, &device.group);
}

const Backend kBackend{
    kBackendAbi, "cuda",  false,   open, close,   info, alloc,  free, write,
    read,        why_not, compile, run,  profile, drop, new_id, join,
};

}  // namespace
}  // namespace mb::cuda

extern "C" __attribute__((visibility("default"))) const mb::Backend* mb_backend(uint32_t abi) {
  return abi == mb::kBackendAbi ? &mb::cuda::kBackend : nullptr;
}
