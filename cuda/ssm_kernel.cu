// The kernel of a diagonal SSM as a convolution, k[e,l] = 2 Re(sum_m C Bb Ab^l), and its gradient: equations (3) and
// (5) of native/ref/diagonal_ssm.h. A block is a channel; l = 32 j + i, and powers Ab^(32 j) come from double, so that
// errors do not grow with l.
#include <algorithm>

#include "check.h"
#include "complex.cuh"
#include "kernel.h"
#include "vector.cuh"

namespace mb::cuda {
namespace {

using Double = Complex<double>;
using Float = Complex<float>;

constexpr int kPowers = 32;  // a lane each
constexpr int kMaxStates = 128;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

struct Model {
  const float *Ab, *Bb, *C;
  int M;
  int64_t T;
};

// Warp w computes blocks w, w + 8, ...: its lanes first the terms 2 C Bb Ab^(32 j) of all states, then each one k.
__global__ void __launch_bounds__(kThreads) ssm_kernel(const Model p, float* k) {
  extern __shared__ Float table[];  // [M][32] powers; [warps][M] terms
  const int64_t e = blockIdx.x, first = e * p.M;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Float* terms = table + (kPowers + warp) * p.M;
  constexpr int kOwn = kMaxStates / 32;
  Double term[kOwn], leap[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; i++) {
    const int m = lane + 32 * i;
    if (m >= p.M) break;
    const Double z = pair_at<double>(p.Ab, first + m), block = power(z, kPowers);
    term[i] = 2.0 * (pair_at<double>(p.C, first + m) * pair_at<double>(p.Bb, first + m)) * power(block, warp);
    leap[i] = power(block, kWarps);
  }
  for (int i = threadIdx.x; i < p.M * kPowers; i += kThreads) {
    const Double z = power(pair_at<double>(p.Ab, first + i / kPowers), i % kPowers);
    table[i] = {static_cast<float>(z.re), static_cast<float>(z.im)};
  }
  __syncthreads();
  for (int64_t l0 = int64_t{warp} * kPowers; l0 < p.T; l0 += kThreads) {
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int m = lane + 32 * i;
      if (m >= p.M) break;
      terms[m] = {static_cast<float>(term[i].re), static_cast<float>(term[i].im)};
      term[i] = term[i] * leap[i];
    }
    __syncwarp();
    float sum = 0.0f;
    for (int m = 0; m < p.M; m++) {
      const Float a = terms[m], b = table[m * kPowers + lane];
      sum = fmaf(-a.im, b.im, fmaf(a.re, b.re, sum));
    }
    if (l0 + lane < p.T) k[e * p.T + l0 + lane] = sum;
    __syncwarp();
  }
}

// S and S' of a state.
struct Sums {
  Double value, slope;
};

// `rows` threads (M rounded up to a power of two) hold a state each, and kThreads / rows of them share it, taking
// blocks of 32 l in turn.
__global__ void __launch_bounds__(kThreads) ssm_kernel_grad(const Model p, const int rows, const float* dk, float* dAb,
                                                            float* dBb, float* dC, bool accumulate) {
  __shared__ Sums all[kThreads];
  const int64_t e = blockIdx.x;
  const int m = threadIdx.x % rows, part = threadIdx.x / rows, parts = kThreads / rows;
  const int64_t i = e * p.M + m;
  Sums own{{0, 0}, {0, 0}};
  if (m < p.M) {
    const Float z = pair_at(p.Ab, i);
    const Double wide = pair_at<double>(p.Ab, i);
    const int64_t stride = int64_t{parts} * kPowers;
    const Double leap = power(wide, stride);
    // Ab^l0 and Ab^(l0 - 1)
    Double at = power(wide, int64_t{part} * kPowers);
    Double before = part > 0 ? power(wide, int64_t{part} * kPowers - 1) : Double{0, 0};
    for (int64_t l0 = int64_t{part} * kPowers; l0 < p.T; l0 += stride) {
      const int count = static_cast<int>(min(int64_t{kPowers}, p.T - l0));
      Float value{0, 0}, slope{0, 0};  // Horner's rule
      for (int l = count - 1; l >= 0; l--) {
        slope = slope * z + value;
        value = value * z;
        value.re += dk[e * p.T + l0 + l];
      }
      const Double v{value.re, value.im}, s{slope.re, slope.im};
      own.value = own.value + at * v;
      own.slope = own.slope + at * s + static_cast<double>(l0) * (before * v);
      before = l0 > 0 ? before * leap : power(wide, stride - 1);
      at = at * leap;
    }
  }
  all[threadIdx.x] = own;
  __syncthreads();
  if (part > 0 || m >= p.M) return;
  for (int other = 1; other < parts; other++) {
    own.value = own.value + all[other * rows + m].value;
    own.slope = own.slope + all[other * rows + m].slope;
  }
  const Double b = pair_at<double>(p.Bb, i), c = pair_at<double>(p.C, i);
  set_pair(dAb, i, 2.0 * conj(c * b * own.slope));
  set_pair(dBb, i, 2.0 * conj(own.value * c));
  const Double d = 2.0 * conj(own.value * b);
  set_pair(dC, i, accumulate ? pair_at<double>(dC, i) + d : d);
}

Status run_kernel(const Node& node, const Launch& launch) {
  namespace in = at::ssm_kernel::in;
  const Tensor &k = node.out(at::ssm_kernel::out::k), &Ab = node.in(in::Ab);
  const Model p{Ab.ptr<float>(), node.in(in::Bb).ptr<float>(), node.in(in::C).ptr<float>(), static_cast<int>(Ab.dim(1)),
                k.cols()};
  if (k.elems() == 0) return {};
  const int shared = (kPowers + kWarps) * p.M * static_cast<int>(sizeof(Float));
  ssm_kernel<<<static_cast<unsigned>(k.rows()), kThreads, shared, launch.stream>>>(p, k.ptr<float>());
  MB_CUDA_LAUNCHED("ssm_kernel");
  return {};
}

Status run_grad(const Node& node, const Launch& launch) {
  namespace in = at::ssm_kernel_grad::in;
  namespace out = at::ssm_kernel_grad::out;
  const Tensor &dk = node.in(in::dk), &Ab = node.in(in::Ab);
  const Model p{Ab.ptr<float>(), node.in(in::Bb).ptr<float>(), node.in(in::C).ptr<float>(), static_cast<int>(Ab.dim(1)),
                dk.cols()};
  if (dk.elems() == 0) return {};
  int rows = 1;
  while (rows < p.M) rows *= 2;
  ssm_kernel_grad<<<static_cast<unsigned>(dk.rows()), kThreads, 0, launch.stream>>>(
      p, rows, dk.ptr<float>(), node.out(out::dAb).ptr<float>(), node.out(out::dBb).ptr<float>(),
      node.out(out::dC).ptr<float>(), node.attr(at::ssm_kernel_grad::attr::accumulate) != 0);
  MB_CUDA_LAUNCHED("ssm_kernel_grad");
  return {};
}

const char* why_not(const Node& node, const Props&) {
  for (int i = 0; i < node.n_in + node.n_out; i++) {
    const Tensor& t = i < node.n_in ? node.in(i) : node.out(i - node.n_in);
    if (t && t.dtype != DType::f32) return "cuda: the kernel of an SSM takes f32";
    if (!t.contiguous()) return "cuda: the kernel of an SSM takes operands without gaps";
  }
  const Tensor& last = node.in(node.n_in - 1);  // C
  return last.dim(1) > kMaxStates ? "cuda: the kernel of an SSM takes at most 128 complex states" : nullptr;
}

}  // namespace

const Kernel ssm_kernel_kernel = {run_kernel, nullptr, why_not};
const Kernel ssm_kernel_grad_kernel = {run_grad, nullptr, why_not};

}  // namespace mb::cuda
