// AdamW over many tensors at once.
#pragma once
#include "kernel.h"

namespace mb::cuda {

// Whether two adamw nodes may share launches: the same attributes, scalars and norm.
bool same_adamw_group(const Node& a, const Node& b);

// Runs n adamw nodes, of which each two satisfy same_adamw_group, in as few launches as the room for their addresses
// allows: about 90 tensors each.
Status launch_adamw_group(const Node* const* nodes, int n, const Launch& launch);

}  // namespace mb::cuda
