// Rotary positions; equation in native/ops.def. A thread turns one pair of dimensions of one row in several heads, in
// all of them where there are rows enough, so that its angle, taken in double because positions are large, is computed
// once. Memory bandwidth is the limit in the end; the double-precision exponential is not tuned for GPUs that have few
// such units.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "early.cuh"
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda {
namespace {

namespace in = at::rope::in;

constexpr int kThreads = 64;

struct RopeArgs {
  ScanRows x, y;
  const int32_t* position;
  int64_t T;
  int heads, half;
  double log2_base, first;
  float sign;
};

__global__ void __launch_bounds__(kThreads) rotate(const RopeArgs p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const double at = static_cast<double>((p.position ? p.position[row / p.T] : 0) + row % p.T) + p.first;
  for (int i = threadIdx.x; i < p.half; i += kThreads) {
    constexpr double kTurn = 6.283185307179586;
    const double angle = at * exp2(-p.log2_base * i / p.half);
    float s, c;
    sincosf(static_cast<float>(angle - kTurn * rint(angle / kTurn)), &s, &c);
    s *= p.sign;
    for (int h = blockIdx.y; h < p.heads; h += gridDim.y) {
      const int64_t first = int64_t{2} * h * p.half + i, second = first + p.half;
      const float a = p.x.load(row, first), b = p.x.load(row, second);
      p.y.store(row, first, a * c - b * s);
      p.y.store(row, second, b * c + a * s);
    }
  }
}

Status run_rope(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(in::x), &y = node.out(at::rope::out::y);
  if (x.elems() == 0) return {};
  const int heads = static_cast<int>(node.attr(at::rope::attr::heads));
  const RopeArgs p{ScanRows(x),
                   ScanRows(y),
                   node.in(in::position).ptr<int32_t>(),
                   x.dim(1),
                   heads,
                   static_cast<int>(x.cols() / heads / 2),
                   std::log2(node.attr(at::rope::attr::base)),
                   node.attr(at::rope::attr::first),
                   node.attr(at::rope::attr::inverse) != 0 ? -1.0f : 1.0f};
  const int64_t wanted = ceil_div(4 * int64_t{launch.props->sm_count}, x.rows());
  const dim3 grid(static_cast<unsigned>(x.rows()), static_cast<unsigned>(std::min<int64_t>(heads, wanted)));
  return start_early(rotate, grid, kThreads, 0, *launch.props, launch.stream, p);
}

const char* why_not_rope(const Node& node, const Props&) {
  if (!is_activation(node.in(in::x)) || !is_activation(node.out(at::rope::out::y))) {
    return "cuda: rope takes activations in f32 or bf16";
  }
  return node.in(in::position) && node.in(in::position).dtype != DType::i32 ? "cuda: rope takes positions in i32"
                                                                            : nullptr;
}

}  // namespace

const Kernel rope_kernel = {run_rope, nullptr, why_not_rope};

}  // namespace mb::cuda
