// The reference kernels, indexed by op number. They run on thread 0 alone and need no scratch. They allocate, so a run
// may throw std::bad_alloc, which the plan runner turns into a Status.
#pragma once
#include "core/team.h"

namespace mb::ref {

const KernelEntry* kernels();

}  // namespace mb::ref
