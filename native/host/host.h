// What the two backends that live in host memory share: memory, a thread pool, and plans that walk their nodes with one
// team of threads. They differ only in their table of kernels.
#pragma once
#include "../backend.h"
#include "../core/team.h"

namespace mb::host {

// Opens a device whose kernels are `table` (op::count entries). `target` (static string) names the instruction set.
Status open(const KernelEntry* table, const char* backend, const char* target, int threads, void** device);

// The rest of the Backend table, the same for both.
void close(void* device);
size_t info(void* device, char* out, size_t capacity);
Status alloc(void* device, size_t bytes, void** data);
void free(void* device, void* data, size_t bytes);
Status write(void* device, void* data, const void* from, size_t bytes);
Status read(void* device, const void* data, void* to, size_t bytes);
const char* why_not(void* device, const Node& node);
Status compile(void* device, const Node* nodes, size_t n, void** plan);
Status run(void* device, void* plan, Run& run);
Status profile(void* device, void* plan, double* seconds);
void drop(void* device, void* plan);

}  // namespace mb::host
