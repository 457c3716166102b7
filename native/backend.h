// Seam two: what a backend offers. `ref` and `cpu` are linked in; others are shared libraries that export one symbol.
// Everything that crosses is plain data, so a backend may be built by another compiler.
#pragma once
#include <cstddef>
#include <cstdint>

#include "status.h"
#include "tensor.h"

namespace mb {

constexpr uint32_t kBackendAbi = 1;

struct DeviceOptions {
  int32_t index = 0;
  int32_t threads = 0;           // 0: as many as the machine has cores
  const char* target = nullptr;  // cpu: force an instruction set; null: the best one found
};

struct Backend {
  uint32_t abi;
  const char* name;
  // life
  Status (*open)(const DeviceOptions& options, void** device);
  void (*close)(void* device);
  // Writes a JSON object describing the device; returns the length it needs.
  size_t (*info)(void* device, char* out, size_t capacity);
  // memory: zero-filled, at least 64-byte aligned
  Status (*alloc)(void* device, size_t bytes, void** data);
  void (*free)(void* device, void* data, size_t bytes);
  Status (*write)(void* device, void* data, const void* from, size_t bytes);
  Status (*read)(void* device, const void* data, void* to, size_t bytes);
  // capability: null, or why this node cannot run (static string)
  const char* (*why_not)(void* device, const Node& node);
  // work: the nodes stay alive and unchanged until drop
  Status (*compile)(void* device, const Node* nodes, size_t n, void** plan);
  Status (*run)(void* device, void* plan);
  // Seconds spent in each node, summed over the runs since the last call (nodes[i] -> seconds[i]); used by benches.
  Status (*profile)(void* device, void* plan, double* seconds);
  void (*drop)(void* device, void* plan);
};

const Backend* ref_backend();
const Backend* cpu_backend();

}  // namespace mb
