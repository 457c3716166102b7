// Which instruction sets the CPU kernels are built for, and which of them this processor runs.
#pragma once
#include "core/team.h"
#include "status.h"

namespace mb::cpu {

// Targets built into this binary, best last.
int target_count();
const char* target_name(int i);  // "scalar", "avx2", "avx512", "neon"
bool target_supported(int i);    // by this processor and operating system
const KernelEntry* target_kernels(int i);

// The kernels (op::count entries) of the best target, or of the one named by `forced` where it is not null. `chosen`
// receives its name. Null, with a status of code unsupported, when `forced` is unknown here or not supported.
const KernelEntry* select(const char* forced, const char** chosen, Status* status);

// The processor's features that matter to the kernels, separated by spaces: "avx2 fma avx512f ...".
const char* features();

}  // namespace mb::cpu
