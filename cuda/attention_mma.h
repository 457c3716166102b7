// Attention of many steps and its gradient on tensor cores: see attention_mma.cu and attention_grad_mma.cu.
#pragma once
#include "kernel.h"

namespace mb::cuda {

struct AttentionSizes;

bool takes_attention_mma(const Node& node);
Status launch_attention_mma(const Node& node, const Launch& launch);

// P: width of a head.
bool takes_attention_grad_mma(const Node& node, int P, const Props& props);
// outputs: dy . y (B*T,H)
Status launch_attention_grad_mma(const Node& node, const AttentionSizes& size, const float* outputs,
                                 cudaStream_t stream);

}  // namespace mb::cuda
