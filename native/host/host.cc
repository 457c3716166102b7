#include "host.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "../core/plan_times.h"
#include "../core/run_steps.h"
#include "../core/thread_pool.h"
#include "../ops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mb::host {
namespace {

// Above this, memory comes straight from the kernel: zero pages arrive lazily and go back at once.
constexpr size_t kMapThreshold = 1 << 20;
constexpr size_t kAlign = 64;

struct Device {
  const KernelEntry* table;
  const char* backend;
  const char* target;
  std::unique_ptr<ThreadPool> pool;
};

struct Plan {
  Device* device;
  const Node* nodes;
  size_t n;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
  PlanTimes times;
  // A kernel of the reference backend may run out of memory; the first failure is kept and the rest of the plan
  // skipped.
  std::atomic<bool> failed{false};
  Status failure;
};

size_t round_up(size_t bytes) { return (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign; }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void run_node(Plan& plan, const Node& node, const Team& team) {
  if (plan.failed.load(std::memory_order_relaxed)) return;
  try {
    plan.device->table[node.op].run(node, team);
  } catch (const std::bad_alloc&) {
    if (!plan.failed.exchange(true)) plan.failure = fail(Code::out_of_memory, "%s: out of memory", node.scope);
  } catch (const std::exception& e) {
    if (!plan.failed.exchange(true)) plan.failure = fail(Code::bad_plan, "%s: %s", node.scope, e.what());
  }
}

// Denormal numbers count as zero while kernels run: a state that decays towards zero would otherwise make every step
// several times slower. Restores the thread's mode, since thread 0 also runs other people's code.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : mode_(_mm_getcsr()) { _mm_setcsr(mode_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(mode_); }

 private:
  unsigned mode_;
#endif
};

void run_all(void* context, int index) {
  const FlushDenormals flush;
  Plan& plan = *static_cast<Plan*>(context);
  ThreadPool& pool = *plan.device->pool;
  Team team;
  team.index = index;
  team.size = pool.size();
  team.barrier_ = &pool.barrier();
  team.scratch = static_cast<char*>(plan.scratch);
  team.scratch_bytes = int64_t(plan.scratch_bytes);
  double start = plan.times.measuring && index == 0 ? now() : 0;
  for (size_t i = 0; i < plan.n; i++) {
    run_node(plan, plan.nodes[i], team);
    team.barrier();
    if (plan.times.measuring && index == 0) {
      const double end = now();
      plan.times.seconds[i] += end - start;
      start = end;
    }
  }
}

}  // namespace

Status open(const KernelEntry* table, const char* backend, const char* target, int threads, void** device) {
  const int available = std::max(1u, std::thread::hardware_concurrency());
  auto pool = std::make_unique<ThreadPool>(threads > 0 ? threads : available);
  if (threads > 0 && pool->size() != threads) {
    return fail(Code::device, "%s: expected to start %d threads, got %d", backend, threads, pool->size());
  }
  *device = new Device{table, backend, target, std::move(pool)};
  return {};
}

void close(void* device) { delete static_cast<Device*>(device); }

size_t info(void* device, char* out, size_t capacity) {
  const auto& d = *static_cast<Device*>(device);
  const int n = std::snprintf(out, capacity, R"({"backend":"%s","target":"%s","threads":%d,"hostMemory":true})",
                              d.backend, d.target, d.pool->size());
  return n < 0 ? 0 : size_t(n);
}

Status alloc(void*, size_t bytes, void** data) {
  bytes = round_up(bytes);
  void* p = nullptr;
  if (bytes >= kMapThreshold) {
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) p = nullptr;
    if (p) madvise(p, bytes, MADV_HUGEPAGE);
  } else {
    p = std::aligned_alloc(kAlign, bytes);
    if (p) std::memset(p, 0, bytes);
  }
  if (!p) return fail(Code::out_of_memory, "alloc: expected %zu bytes of memory, the system has none left", bytes);
  *data = p;
  return {};
}

void free(void*, void* data, size_t bytes) {
  bytes = round_up(bytes);
  if (bytes >= kMapThreshold) {
    munmap(data, bytes);
  } else {
    std::free(data);
  }
}

Status write(void*, void* data, const void* from, size_t bytes) {
  std::memcpy(data, from, bytes);
  return {};
}

Status read(void*, const void* data, void* to, size_t bytes) {
  std::memcpy(to, data, bytes);
  return {};
}

const char* why_not(void* device, const Node& node) {
  const auto& d = *static_cast<Device*>(device);
  if (node.op < 0 || node.op >= op::count || !d.table[node.op].run) return "this backend has no such op";
  const KernelEntry& k = d.table[node.op];
  return k.why_not ? k.why_not(node) : nullptr;
}

Status compile(void* device, const Node* nodes, size_t n, void** out) {
  auto* d = static_cast<Device*>(device);
  auto plan = std::make_unique<Plan>();
  plan->device = d;
  plan->nodes = nodes;
  plan->n = n;
  plan->times.seconds.resize(n);
  for (size_t i = 0; i < n; i++) {
    const KernelEntry& k = d->table[nodes[i].op];
    if (k.scratch) plan->scratch_bytes = std::max(plan->scratch_bytes, size_t(k.scratch(nodes[i], d->pool->size())));
  }
  MB_TRY(alloc(device, plan->scratch_bytes, &plan->scratch));
  *out = plan.release();
  return {};
}

Status run(void*, void* p, Run& run) {
  Plan& plan = *static_cast<Plan*>(p);
  const auto step = [&]() -> Status {
    plan.device->pool->run(run_all, &plan);
    if (!plan.failed.exchange(false)) return {};
    return plan.failure;
  };
  const auto read = [&](int32_t* to) -> Status {
    std::memcpy(to, run.watch->data, size_t(run.watch->elems()) * sizeof(int32_t));
    return {};
  };
  return run_steps(run, step, read);
}

Status profile(void*, void* p, double* seconds) {
  static_cast<Plan*>(p)->times.take(seconds);
  return {};
}

void drop(void* device, void* p) {
  auto* plan = static_cast<Plan*>(p);
  if (plan->scratch) free(device, plan->scratch, plan->scratch_bytes);
  delete plan;
}

}  // namespace mb::host
