#include "group.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "check.h"

namespace mb::cuda {
namespace {

// The part of NCCL's C interface in use (its version 2; nccl.h is not needed to build).
struct UniqueId {
  char bytes[kGroupIdBytes];
};
using Comm = struct ncclComm*;
constexpr int kFloat32 = 7, kSum = 0;

struct Nccl {
  int (*get_unique_id)(UniqueId*);
  int (*comm_init_rank)(Comm*, int world, UniqueId, int rank);
  int (*comm_abort)(Comm);
  int (*all_reduce)(const void*, void*, size_t, int type, int op, Comm, cudaStream_t);
  const char* (*error_string)(int);
};

template <class Fn>
bool resolve(void* library, const char* name, Fn* fn) {
  *fn = reinterpret_cast<Fn>(dlsym(library, name));
  return *fn != nullptr;
}

Status load(const Nccl** out) {
  static Nccl nccl;
  static bool loaded = false;
  if (!loaded) {
    const char* set = std::getenv("MAMBABYTE_NCCL");
    void* library = dlopen(set && *set ? set : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      return fail(
          Code::device,
          "cuda: training on several GPUs needs NCCL, which cannot be loaded: %s. Install libnccl2, or name the "
          "library in MAMBABYTE_NCCL.",
          dlerror());
    }
    loaded = resolve(library, "ncclGetUniqueId", &nccl.get_unique_id) &&
             resolve(library, "ncclCommInitRank", &nccl.comm_init_rank) &&
             resolve(library, "ncclCommAbort", &nccl.comm_abort) &&
             resolve(library, "ncclAllReduce", &nccl.all_reduce) &&
             resolve(library, "ncclGetErrorString", &nccl.error_string);
    if (!loaded) return fail(Code::device, "cuda: expected libnccl.so.2 to hold NCCL's functions, some are missing");
  }
  *out = &nccl;
  return {};
}

Status nccl_status(const Nccl& nccl, int result, const char* call) {
  if (result == 0) return {};
  return fail(Code::device, "cuda: %s: %s", call, nccl.error_string(result));
}

}  // namespace

class Group {
 public:
  const Nccl* nccl = nullptr;
  Comm comm = nullptr;
  cudaStream_t stream = nullptr;  // where sums run
  cudaEvent_t ready = nullptr, done = nullptr;
  bool pending = false;

  ~Group() {
    // Not ncclCommDestroy: it waits for the other ranks, which may be gone.
    if (comm) nccl->comm_abort(comm);
    if (ready) cudaEventDestroy(ready);
    if (done) cudaEventDestroy(done);
    if (stream) cudaStreamDestroy(stream);
  }
};

Status new_group_id(char* id) {
  const Nccl* nccl = nullptr;
  MB_TRY(load(&nccl));
  UniqueId unique;
  MB_TRY(nccl_status(*nccl, nccl->get_unique_id(&unique), "ncclGetUniqueId"));
  std::memcpy(id, unique.bytes, kGroupIdBytes);
  return {};
}

Status join_group(int device, const char* id, int rank, int world, Group** out) {
  const Nccl* nccl = nullptr;
  MB_TRY(load(&nccl));
  MB_CUDA(cudaSetDevice(device));
  auto* group = new Group;
  group->nccl = nccl;
  UniqueId unique;
  std::memcpy(unique.bytes, id, kGroupIdBytes);
  Status status = nccl_status(*nccl, nccl->comm_init_rank(&group->comm, world, unique, rank), "ncclCommInitRank");
  const auto then = [&](cudaError_t error, const char* call) {
    if (status.ok()) status = to_status(error, call);
  };
  then(cudaStreamCreateWithFlags(&group->stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  then(cudaEventCreateWithFlags(&group->ready, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  then(cudaEventCreateWithFlags(&group->done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  if (!status.ok()) {
    delete group;
    return status;
  }
  *out = group;
  return {};
}

void leave_group(Group* group) { delete group; }

Status all_reduce_sum(Group* group, float* data, size_t count, cudaStream_t stream) {
  MB_CUDA(cudaEventRecord(group->ready, stream));
  MB_CUDA(cudaStreamWaitEvent(group->stream, group->ready, 0));
  MB_TRY(nccl_status(*group->nccl,
                     group->nccl->all_reduce(data, data, count, kFloat32, kSum, group->comm, group->stream),
                     "ncclAllReduce"));
  group->pending = true;
  return {};
}

Status join_stream(Group* group, cudaStream_t stream) {
  if (!group->pending) return {};
  group->pending = false;
  MB_CUDA(cudaEventRecord(group->done, group->stream));
  MB_CUDA(cudaStreamWaitEvent(stream, group->done, 0));
  return {};
}

}  // namespace mb::cuda
