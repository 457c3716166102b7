// The operands of linear that only its epilogue reads.
#pragma once
#include "gemm.h"

namespace mb::cuda {

inline Epilogue linear_epilogue(const Node& node) {
  namespace in = at::linear::in;
  const Tensor& y = node.out(at::linear::out::y);
  const Tensor& add = node.in(in::add);
  Epilogue e;
  e.c = y.data;
  e.stride = y.row_stride;
  e.bf16 = y.dtype == DType::bf16;
  e.add = add.data;
  e.add_stride = add.row_stride;
  e.add_bf16 = add.dtype == DType::bf16;
  e.scale = node.in(in::scale).ptr<const float>();
  e.bias = node.in(in::bias).ptr<const float>();
  return e;
}

}  // namespace mb::cuda
