// ops.def as C++ names: op::linear is a number; at::linear::in::weight, ::out::y, ::attr::eps are operand positions.
#pragma once
#include <cstdint>
#include <initializer_list>

#define MB_LIST(...) __VA_ARGS__
#define MB_OPT(name) name

namespace mb::op {
enum : int {
#define MB_OP(name, outs, ins, attrs) name,
#include "ops.def"
#undef MB_OP
  count
};

// FNV-1a of the list. Two builds with the same one number ops and their operands alike.
constexpr uint32_t kListHash = [] {
  uint32_t hash = 2166136261u;
  for (const char* text : {
#define MB_OP(name, outs, ins, attrs) #name "|" #outs "|" #ins "|" #attrs,
#include "ops.def"
#undef MB_OP
       }) {
    for (; *text; text++) hash = (hash ^ static_cast<uint32_t>(*text)) * 16777619u;
  }
  return hash;
}();
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
