// Turns the arrays that lib/plan.ts encodes into nodes, and refuses whatever would reach outside a buffer.
#pragma once
#include <napi.h>

#include "device.h"

namespace mb::binding {

// One op of ops.def as text: comma-separated operand names, a trailing `?` on those that may be absent.
struct OpText {
  const char *name, *outs, *ins, *attrs;
};
extern const OpText kOpTexts[];

// tensors: Float64Array, 9 a tensor: buffer id, byte offset, dtype, rank, 4 sizes, row stride.
// nodes: Int32Array, a node: op, scope, outputs, inputs, attributes (counts), then operand tensor indices (-1: absent).
// attrs: Float64Array in node order. scopes: array of strings.
Status decode(const Napi::CallbackInfo& info, DeviceState& device, PlanState* plan);

}  // namespace mb::binding
