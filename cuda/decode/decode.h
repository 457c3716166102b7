// Runs of decode steps in one kernel launch. A decode plan is: embedding, one mamba_block a layer, norm, head, and
// perhaps `sample`, whose ids are the next step's input, but for a verify plan, which draws them alone.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "../../native/backend.h"
#include "../kernel.h"

namespace mb::cuda {

struct Decode;

// Whether these nodes are such a plan, of sizes and on a device that the kernel supports. Other plans run op by op.
bool decode_matches(const Node* nodes, size_t n, const Props& props);
// The nodes stay alive and unchanged until decode_destroy, and so do the weights, of which some sums are kept.
Status decode_create(const Node* nodes, size_t n, const Props& props, Decode** out);
// Returns when the run has ended; `done`, `stopped_by` and `watched` are set. run.watch, if any, is the drawn ids,
// or of a single step the logits.
Status decode_run(Decode* decode, cudaStream_t stream, Run& run);
void decode_destroy(Decode* decode);

}  // namespace mb::cuda
