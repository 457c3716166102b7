// The table of reference kernels.
#include "kernels.h"

#include "attention.h"
#include "causal_conv.h"
#include "cross_entropy.h"
#include "diagonal_ssm.h"
#include "elementwise.h"
#include "embedding.h"
#include "linear.h"
#include "long_conv.h"
#include "mamba_block.h"
#include "norm.h"
#include "optimizer.h"
#include "rope.h"
#include "sample.h"
#include "selective_scan.h"
#include "shape.h"

namespace mb::ref {
namespace {

template <void (*kernel)(const Node&)>
void on_first_thread(const Node& node, const Team& team) {
  if (team.index == 0) kernel(node);
}

const char* embedding_why_not(const Node& node) {
  return node.in(at::embedding::in::table).dtype == DType::i8 ? "i8 table: embedding takes no scale" : nullptr;
}

const char* sample_why_not(const Node& node) {
  return node.in(at::sample::in::logits).dtype == DType::f32 ? nullptr : "logits are not f32";
}

// An op without its own rule runs on any operands that the op list allows.
WhyNot why_not(int number) {
  switch (number) {
    case op::embedding:
      return embedding_why_not;
    case op::linear:
      return linear_why_not;
    case op::mamba_block:
      return mamba_block_why_not;
    case op::sample:
      return sample_why_not;
    default:
      return nullptr;
  }
}

}  // namespace

const KernelEntry* kernels() {
  static const KernelEntry table[op::count] = {
#define MB_OP(name, outs, ins, attrs) {on_first_thread<name>, nullptr, why_not(op::name)},
#include "ops.def"
#undef MB_OP
  };
  return table;
}

}  // namespace mb::ref
