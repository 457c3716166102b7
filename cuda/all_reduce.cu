// y(...) = sum over the ranks of a group of x(...), f32. A device that is in no group is a world of one.
#include "check.h"
#include "group.h"
#include "kernel.h"

namespace mb::cuda {
namespace {

namespace at_op = at::all_reduce;

const char* why_not(const Node& node, const Props&) {
  const Tensor &x = node.in(at_op::in::x), &y = node.out(at_op::out::y);
  if (x.dtype != DType::f32 || y.dtype != DType::f32) return "all_reduce: expected x and y to be f32";
  if (!x.contiguous() || !y.contiguous()) return "all_reduce: expected x and y to be contiguous";
  return nullptr;
}

Status launch(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(at_op::in::x), &y = node.out(at_op::out::y);
  if (x.data != y.data) {
    const size_t bytes = size_t(x.elems()) * sizeof(float);
    MB_CUDA(cudaMemcpyAsync(y.data, x.data, bytes, cudaMemcpyDeviceToDevice, launch.stream));
  }
  if (!launch.group) return {};
  return all_reduce_sum(launch.group, y.ptr<float>(), size_t(y.elems()), launch.stream);
}

}  // namespace

const Kernel all_reduce_kernel{launch, nullptr, why_not};

}  // namespace mb::cuda
