// Seam two: what a backend offers. `ref` and `cpu` are linked in; others are shared libraries that export one symbol.
// Everything that crosses is plain data, so a backend may be built by another compiler. A library exports
// `const mb::Backend* mb_backend(uint32_t abi)`, null where it was built for another ABI.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops.h"
#include "status.h"
#include "tensor.h"

namespace mb {

// Of what this file declares, and of the list of ops, whose numbers cross too.
constexpr uint32_t kBackendAbi = 4 ^ op::kListHash;

constexpr size_t kGroupIdBytes = 128;

struct DeviceOptions {
  int32_t index = 0;
  int32_t threads = 0;           // 0: as many as the machine has cores
  const char* target = nullptr;  // cpu: force an instruction set; null: the best one found
};

// How often to run a plan in a row, and what to watch: the whole decode loop of one native call. Backends may work
// ahead of the host, but nothing that follows the last counted step may have any effect.
struct Run {
  int64_t steps = 1;
  const Tensor* watch = nullptr;  // contiguous i32, or f32 in a single step; copied to `watched` after every step
  int32_t* watched = nullptr;     // room for steps * watch->elems(); `history` ids lie before it
  // False: a single step that watches nothing may still be under way when this returns, on a device that works by
  // itself; whatever is read, written or run there comes after it.
  bool wait = true;
  int64_t history = 0;  // ids that lie in front of `watched`, made before this run
  // Sequences of ids that end the run once the watched ids (of one sequence only) end in one of them:
  // stop i is stops[stop_ends[i - 1] .. stop_ends[i]).
  const int32_t* stops = nullptr;
  const int32_t* stop_ends = nullptr;
  int32_t n_stops = 0;
  // Asked between steps, by a backend that works ahead at least once a millisecond; false ends the run after the step
  // in hand.
  bool (*go_on)(void* context) = nullptr;
  void* context = nullptr;

  int64_t done = 0;         // result: steps that ran
  int32_t stopped_by = -1;  // result: the stop that ended the run
};

struct Backend {
  uint32_t abi;
  const char* name;
  bool host_memory;  // `data` of alloc may be read and written by the host, so files can be mapped
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
  Status (*run)(void* device, void* plan, Run& run);
  // Seconds spent in each node, summed over the runs since the last call (nodes[i] -> seconds[i]); used by benches.
  Status (*profile)(void* device, void* plan, double* seconds);
  void (*drop)(void* device, void* plan);
  // Several devices that train together, one a process; null: this backend cannot. new_group_id writes kGroupIdBytes,
  // which every rank hands to join_group; that waits for all of them. Plans compiled afterwards sum over the ranks.
  Status (*new_group_id)(void* device, char* id);
  Status (*join_group)(void* device, const char* id, int32_t rank, int32_t world);
};

const Backend* ref_backend();
const Backend* cpu_backend();

}  // namespace mb
