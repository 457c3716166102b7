// Rotary positions, of activations and on their way into a cache; equations in native/ops.def. A thread turns one pair
// of dimensions of one row in several heads, so that its angle, taken in double because positions are large, is
// computed once. Memory bandwidth is the limit in the end; the double-precision exponential is not tuned for GPUs that
// have few such units.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "early.cuh"
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 64;

// By how much pair i of `half` turns from one position to the next.
__device__ __forceinline__ double turn_of(double log2_base, int i, int half) { return exp2(-log2_base * i / half); }

// Sine and cosine of a large angle.
__device__ __forceinline__ void sine_cosine(double angle, float* s, float* c) {
  constexpr double kTurn = 6.283185307179586;
  sincosf(static_cast<float>(angle - kTurn * rint(angle / kTurn)), s, c);
}

// Pair i of head h of a row, turned.
__device__ __forceinline__ void turn_pair(const ScanRows& x, int64_t row, const ScanRows& y, int64_t to, int h, int i,
                                          int half, float s, float c) {
  const int64_t first = int64_t{2} * h * half + i, second = first + half;
  const float a = x.load(row, first), b = x.load(row, second);
  y.store(to, first, a * c - b * s);
  y.store(to, second, b * c + a * s);
}

struct RopeArgs {
  ScanRows x, y;
  int64_t T;
  int heads, half;
  double log2_base, first;
  float sign;
};

__global__ void __launch_bounds__(kThreads) rotate(const RopeArgs p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const double at = static_cast<double>(row % p.T) + p.first;
  for (int i = threadIdx.x; i < p.half; i += kThreads) {
    float s, c;
    sine_cosine(at * turn_of(p.log2_base, i, p.half), &s, &c);
    s *= p.sign;
    for (int h = blockIdx.y; h < p.heads; h += gridDim.y) turn_pair(p.x, row, p.y, row, h, i, p.half, s, c);
  }
}

// Blocks for each row: as many as keep the GPU busy where rows are few, at most one for each of `heads`.
unsigned blocks_of_row(int64_t rows, int64_t heads, const Props& props) {
  return static_cast<unsigned>(std::min(heads, ceil_div(4 * int64_t{props.sm_count}, rows)));
}

Status run_rope(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(at::rope::in::x), &y = node.out(at::rope::out::y);
  if (x.elems() == 0) return {};
  const int heads = static_cast<int>(node.attr(at::rope::attr::heads));
  const RopeArgs p{ScanRows(x),
                   ScanRows(y),
                   x.dim(1),
                   heads,
                   static_cast<int>(x.cols() / heads / 2),
                   std::log2(node.attr(at::rope::attr::base)),
                   node.attr(at::rope::attr::first),
                   node.attr(at::rope::attr::inverse) != 0 ? -1.0f : 1.0f};
  const dim3 grid(static_cast<unsigned>(x.rows()), blocks_of_row(x.rows(), heads, *launch.props));
  return start_early(rotate, grid, kThreads, 0, *launch.props, launch.stream, p);
}

const char* why_not_rope(const Node& node, const Props&) {
  return is_activation(node.in(at::rope::in::x)) && is_activation(node.out(at::rope::out::y))
             ? nullptr
             : "cuda: rope takes activations in f32 or bf16";
}

struct RopeCacheArgs {
  ScanRows q, k, v, y, keys, values;
  const int32_t *length, *position;  // position may be null
  int64_t T, S;
  int H, J, half;
  double log2_base, first;
};

// A block has some heads of a row, queries first, then keys and values. A row's angles depend on its position alone, so
// it has the same bits whatever rows come with it.
__global__ void __launch_bounds__(kThreads) rotate_to_cache(const RopeCacheArgs p) {
  let_next_start();
  const double turn = turn_of(p.log2_base, threadIdx.x, p.half);  // long to compute, and of nothing that is waited for
  wait_for_previous();
  const int64_t row = blockIdx.x, b = row / p.T, t = row % p.T, length = p.length[b], s = length + t;
  const double at = static_cast<double>((p.position ? p.position[b] : length) + t) + p.first;
  const bool fits = s >= 0 && s < p.S;
  const int64_t to = b * p.S + s;
  for (int i = threadIdx.x; i < p.half; i += kThreads) {
    float sine, cosine;
    sine_cosine(at * (i < kThreads ? turn : turn_of(p.log2_base, i, p.half)), &sine, &cosine);
    for (int h = blockIdx.y; h < p.H + 2 * p.J; h += gridDim.y) {
      if (h < p.H) {
        turn_pair(p.q, row, p.y, row, h, i, p.half, sine, cosine);
      } else if (fits && h < p.H + p.J) {
        turn_pair(p.k, row, p.keys, to, h - p.H, i, p.half, sine, cosine);
      } else if (fits) {
        const int64_t column = int64_t{2} * (h - p.H - p.J) * p.half + i;
        p.values.store(to, column, p.v.load(row, column));
        p.values.store(to, column + p.half, p.v.load(row, column + p.half));
      }
    }
  }
}

Status run_rope_cache_write(const Node& node, const Launch& launch) {
  namespace in = at::rope_cache_write::in;
  namespace out = at::rope_cache_write::out;
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &keys = node.out(out::keys);
  if (q.elems() == 0) return {};
  const int H = static_cast<int>(node.attr(at::rope_cache_write::attr::heads));
  const int P = static_cast<int>(q.cols()) / H, J = static_cast<int>(k.cols()) / P;
  const RopeCacheArgs p{ScanRows(q),
                        ScanRows(k),
                        ScanRows(node.in(in::v)),
                        ScanRows(node.out(out::y)),
                        ScanRows(keys),
                        ScanRows(node.out(out::values)),
                        node.in(in::length).ptr<int32_t>(),
                        node.in(in::position).ptr<int32_t>(),
                        q.dim(1),
                        keys.dim(1),
                        H,
                        J,
                        P / 2,
                        std::log2(node.attr(at::rope_cache_write::attr::base)),
                        node.attr(at::rope_cache_write::attr::first)};
  const dim3 grid(static_cast<unsigned>(q.rows()), blocks_of_row(q.rows(), H + 2 * J, *launch.props));
  return start_early(rotate_to_cache, grid, kThreads, 0, *launch.props, launch.stream, p);
}

const char* why_not_rope_cache_write(const Node& node, const Props&) {
  namespace in = at::rope_cache_write::in;
  namespace out = at::rope_cache_write::out;
  for (const Tensor* t : {&node.in(in::q), &node.in(in::k), &node.in(in::v), &node.out(out::y), &node.out(out::keys),
                          &node.out(out::values)}) {
    if (!is_activation(*t)) return "cuda: rope_cache_write takes activations and caches in f32 or bf16";
  }
  for (const int i : {in::length, in::position}) {
    if (node.in(i) && node.in(i).dtype != DType::i32)
      return "cuda: rope_cache_write takes lengths and positions in i32";
  }
  return nullptr;
}

}  // namespace

const Kernel rope_kernel = {run_rope, nullptr, why_not_rope};
const Kernel rope_cache_write_kernel = {run_rope_cache_write, nullptr, why_not_rope_cache_write};

}  // namespace mb::cuda
