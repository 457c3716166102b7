// Attention of many steps on tensor cores: see attention_mma.cu.
#pragma once
#include "kernel.h"

namespace mb::cuda {

bool takes_attention_mma(const Node& node);
Status launch_attention_mma(const Node& node, const Launch& launch);

}  // namespace mb::cuda
