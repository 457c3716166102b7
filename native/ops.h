// ops.def as C++ names: op::linear is a number; at::linear::in::weight, ::out::y, ::attr::eps are operand positions.
#pragma once

#define MB_LIST(...) __VA_ARGS__
#define MB_OPT(name) name

namespace mb::op {
enum : int {
#define MB_OP(name, outs, ins, attrs) name,
#include "ops.def"
#undef MB_OP
  count
};
}  // namespace mb::op

#define MB_OP(name, outs, ins, attrs) \
  namespace mb::at::name {            \
  namespace out {                     \
  enum : int { outs };                \
  }                                   \
  namespace in {                      \
  enum : int { ins };                 \
  }                                   \
  namespace attr {                    \
  enum : int { attrs };               \
  }                                   \
  }
#include "ops.def"
#undef MB_OP
#undef MB_OPT
