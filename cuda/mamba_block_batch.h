// mamba_block for one step of more sequences than are summed row by row: see mamba_block_batch.cu.
#pragma once
#include "kernel.h"

namespace mb::cuda {

// Up to here a row's bits do not depend on the rows beside it (docs/numerics.md); a batch of more trades that for
// speed.
constexpr int64_t kRowsInOrder = 32;

// Weights are read before the kernels in front have ended, so no other node of the plan may write them.
bool takes_batch(const Node& node, const Props& props);
int64_t batch_scratch(const Node& node);
Status launch_batch(const Node& node, const Launch& launch);

}  // namespace mb::cuda
