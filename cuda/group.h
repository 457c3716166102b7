// Devices of several processes that train together: sums over ranks by NCCL, which is loaded at run time.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../native/backend.h"
#include "../native/status.h"

namespace mb::cuda {

class Group;

// Writes kGroupIdBytes that all ranks must be given. Errors: NCCL is not found.
Status new_group_id(char* id);
// Waits until all `world` ranks have called it with the same id.
Status join_group(int device, const char* id, int rank, int world, Group** out);
void leave_group(Group* group);

// Sums `count` floats over the ranks, in place, behind what `stream` holds by now. It runs beside what is enqueued on
// `stream` afterwards, until `join_stream`.
Status all_reduce_sum(Group* group, float* data, size_t count, cudaStream_t stream);
// Makes `stream` wait for the sums that are under way.
Status join_stream(Group* group, cudaStream_t stream);

}  // namespace mb::cuda
