// Causal convolution as long as the sequence, by FFT in shared memory, and its gradient: native/ref/long_conv.h.
//
// Two sequences are the real and the imaginary part of one signal: convolution with a real kernel keeps them apart.
// Time is cut into J blocks of P steps, each padded to n = 2 P and transformed: k^[j], u^[i], dy^[i]. One block holds
// 8192 steps; longer sequences take the products of blocks, whose number grows with J squared but costs little beside
// the transforms. What lies in the second half of a product belongs to the next block (or, in a correlation, to the one
// before), and multiplying element f of a transform by (-1)^f swaps the halves, so with * for the conjugate
//   y^[i]  = sum_j k^[j] u^[i-j]  + (-1)^f sum_j k^[j] u^[i-1-j]
//   du^[i] = sum_a k^*[a-i] dy^[a] + (-1)^f sum_a k^*[a-i-1] dy^[a]
//   dk^[j] = the same of u^* and dy^, summed over pairs of sequences;  dD = dk[0]
// of whose inverses the first P elements count. Odd f are the upper half in bit-reversed order. Transforms lie in
// scratch memory for as many channels at a time as it holds.
#include <algorithm>

#include "check.h"
#include "fft.cuh"
#include "kernel.h"
#include "scan.cuh"

namespace mb::cuda {
namespace {

using Float = Complex<float>;

constexpr int kMostThreads = 1024;
constexpr int64_t kScratchBytes = int64_t{256} << 20;

struct Conv {
  int64_t B, T, E, pairs, J;
  int P, n;
  int64_t first = 0, channels = 0;  // of this launch

  Conv(const Tensor& u, const Props& props) : B(u.dim(0)), T(u.dim(1)), E(u.dim(2)), pairs((B + 1) / 2), P(16) {
    while (P < T && fft_bytes(4 * P) <= props.max_shared_per_block && P < 8192) P *= 2;
    n = 2 * P;
    J = ceil_div(T, P);
  }
  int64_t kernel_bytes() const { return J * n * int64_t{sizeof(Float)}; }
  int64_t signal_bytes() const { return pairs * kernel_bytes(); }
  int threads() const { return std::clamp(n / 8, 32, kMostThreads); }
  // Channels whose transforms fit the scratch memory.
  int64_t together(int64_t bytes) const { return std::clamp(kScratchBytes / bytes, int64_t{1}, E); }
};

// Channels are neighbouring blocks: what they read of a row lies in the same cache lines.
struct Place {
  int64_t c, e, b, block, pair;
  __device__ explicit Place(const Conv& p) {
    c = blockIdx.x % p.channels;
    const int64_t rest = blockIdx.x / p.channels;
    block = rest % p.J, pair = rest / p.J;
    e = p.first + c, b = 2 * pair;
  }
  // The transform of a block of this signal.
  __device__ int64_t signal(const Conv& p, int64_t of) const { return ((c * p.pairs + pair) * p.J + of) * p.n; }
};

__device__ void read_block(const Conv& p, const Place& at, const ScanRows& u, Float* x) {
  const bool both = at.b + 1 < p.B;
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    const int64_t t = at.block * p.P + i;
    const bool live = i < p.P && t < p.T;
    x[fft_at(i)] = {live ? u.load(at.b * p.T + t, at.e) : 0.0f,
                    live && both ? u.load((at.b + 1) * p.T + t, at.e) : 0.0f};
  }
}

__device__ void write_block(const Conv& p, const Place& at, const Float* x, const ScanRows& y) {
  const bool both = at.b + 1 < p.B;
  for (int i = threadIdx.x; i < p.P; i += blockDim.x) {
    const int64_t t = at.block * p.P + i, row = at.b * p.T + t;
    if (t >= p.T) return;
    const Float v = x[fft_at(i)];
    y.store(row, at.e, v.re);
    if (both) y.store(row + p.T, at.e, v.im);
  }
}

extern __shared__ Float shared_signal[];

// D is part of k[0]. Over n, so that inverse transforms need no factor.
__global__ void __launch_bounds__(kMostThreads)
    transform_kernel(const Conv p, const float* k, const float* D, Float* to) {
  Float* x = shared_signal;
  const Place at(p);
  const float factor = 1.0f / static_cast<float>(p.n);
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    const int64_t l = at.block * p.P + i;
    const float skip = l == 0 && D ? D[at.e] : 0.0f;
    x[fft_at(i)] = {i < p.P && l < p.T ? factor * (k[at.e * p.T + l] + skip) : 0.0f, 0.0f};
  }
  fft(x, p.n);
  to += (at.c * p.J + at.block) * p.n;
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) to[i] = x[fft_at(i)];
}

__global__ void __launch_bounds__(kMostThreads) transform_signal(const Conv p, const ScanRows u, Float* to) {
  Float* x = shared_signal;
  const Place at(p);
  read_block(p, at, u, x);
  fft(x, p.n);
  to += at.signal(p, at.block);
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) to[i] = x[fft_at(i)];
}

// Element i of sum_j k[j] u[block - j].
__device__ __forceinline__ Float convolved(const Conv& p, const Float* k, const Float* u, int64_t block, int i) {
  Float sum{0, 0};
  for (int64_t j = 0; j <= block; j++) sum = sum + k[j * p.n + i] * u[(block - j) * p.n + i];
  return sum;
}
// Element i of sum_a conj(k[a - lag]) d[a].
__device__ __forceinline__ Float correlated(const Conv& p, const Float* k, const Float* d, int64_t lag, int i) {
  Float sum{0, 0};
  for (int64_t a = lag; a < p.J; a++) sum = sum + times_conj(d[a * p.n + i], k[(a - lag) * p.n + i]);
  return sum;
}
// a + (-1)^f b at place i of a transform.
__device__ __forceinline__ Float with_neighbour(const Conv& p, Float a, Float b, int i) {
  return i < p.P ? a + b : a - b;
}

// k: transforms. signal: transforms, or null where one block holds the sequence: it is then transformed here.
__global__ void __launch_bounds__(kMostThreads)
    convolve(const Conv p, const Float* k, const Float* signal, const ScanRows u, const ScanRows y) {
  Float* x = shared_signal;
  const Place at(p);
  k += at.c * p.J * p.n;
  if (!signal) {
    read_block(p, at, u, x);
    fft(x, p.n);
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) x[fft_at(i)] = x[fft_at(i)] * k[i];
  } else {
    signal += at.signal(p, 0);
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
      x[fft_at(i)] =
          with_neighbour(p, convolved(p, k, signal, at.block, i), convolved(p, k, signal, at.block - 1, i), i);
    }
  }
  fft_inverse(x, p.n);
  write_block(p, at, x, y);
}

// du from transforms of k and dy.
__global__ void __launch_bounds__(kMostThreads)
    differentiate_signal(const Conv p, const Float* k, const Float* d, const ScanRows du) {
  Float* x = shared_signal;
  const Place at(p);
  k += at.c * p.J * p.n;
  d += at.signal(p, 0);
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    x[fft_at(i)] = with_neighbour(p, correlated(p, k, d, at.block, i), correlated(p, k, d, at.block + 1, i), i);
  }
  fft_inverse(x, p.n);
  write_block(p, at, x, du);
}

// dk and dD from transforms of u and dy.
__global__ void __launch_bounds__(kMostThreads)
    differentiate_kernel(const Conv p, const Float* u, const Float* d, float* dk, float* dD, bool accumulate) {
  Float* x = shared_signal;
  const Place at(p);
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    Float sum{0, 0};
    for (int64_t pair = 0; pair < p.pairs; pair++) {
      const int64_t from = (at.c * p.pairs + pair) * p.J * p.n;
      sum = sum + with_neighbour(p, correlated(p, u + from, d + from, at.block, i),
                                 correlated(p, u + from, d + from, at.block + 1, i), i);
    }
    x[fft_at(i)] = sum;
  }
  fft_inverse(x, p.n);
  const float factor = 1.0f / static_cast<float>(p.n);
  for (int i = threadIdx.x; i < p.P; i += blockDim.x) {
    const int64_t l = at.block * p.P + i;
    if (l >= p.T) return;
    const float value = factor * x[fft_at(i)].re;
    dk[at.e * p.T + l] = value;
    if (l == 0 && dD) dD[at.e] = accumulate ? dD[at.e] + value : value;
  }
}

template <class... Parameters, class... Arguments>
Status start(const char* name, void (*kernel)(const Conv, Parameters...), const Launch& launch, const Conv& p,
             int64_t signals, Arguments... arguments) {
  const int shared = fft_bytes(p.n);
  MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const unsigned blocks = static_cast<unsigned>(p.channels * p.J * signals);
  kernel<<<blocks, p.threads(), shared, launch.stream>>>(p, arguments...);
  MB_CUDA_LAUNCHED(name);
  return {};
}

// Calls f for as many channels at a time as the scratch memory holds at `bytes` each.
template <class F>
Status each_channels(Conv p, int64_t bytes, F f) {
  const int64_t most = p.together(bytes);
  for (p.first = 0; p.first < p.E; p.first += most) {
    p.channels = std::min(most, p.E - p.first);
    MB_TRY(f(p));
  }
  return {};
}

int64_t forward_bytes(const Conv& p) { return p.kernel_bytes() + (p.J > 1 ? p.signal_bytes() : 0); }
int64_t gradient_bytes(const Conv& p) { return p.kernel_bytes() + 2 * p.signal_bytes(); }

int64_t scratch(const Node& node, const Props& props) {
  const Conv p(node.in(at::long_conv::in::u), props);
  return p.together(forward_bytes(p)) * forward_bytes(p);
}

int64_t gradient_scratch(const Node& node, const Props& props) {
  const Conv p(node.in(at::long_conv_grad::in::u), props);
  return p.together(gradient_bytes(p)) * gradient_bytes(p);
}

Status run(const Node& node, const Launch& launch) {
  namespace in = at::long_conv::in;
  const Tensor& u = node.in(in::u);
  if (u.elems() == 0) return {};
  const Conv whole(u, *launch.props);
  const float *k = node.in(in::k).ptr<float>(), *D = node.in(in::D).ptr<float>();
  const ScanRows from(u), y(node.out(at::long_conv::out::y));
  return each_channels(whole, forward_bytes(whole), [&](const Conv& p) -> Status {
    Float* kernels = reinterpret_cast<Float*>(launch.scratch);
    Float* signals = p.J > 1 ? kernels + p.channels * p.J * p.n : nullptr;
    MB_TRY(start("long_conv", transform_kernel, launch, p, 1, k, D, kernels));
    if (signals) MB_TRY(start("long_conv", transform_signal, launch, p, p.pairs, from, signals));
    return start("long_conv", convolve, launch, p, p.pairs, kernels, signals, from, y);
  });
}

Status run_gradient(const Node& node, const Launch& launch) {
  namespace in = at::long_conv_grad::in;
  namespace out = at::long_conv_grad::out;
  const Tensor& u = node.in(in::u);
  if (u.elems() == 0) return {};
  const Conv whole(u, *launch.props);
  const float *k = node.in(in::k).ptr<float>(), *D = node.in(in::D).ptr<float>();
  float *dk = node.out(out::dk).ptr<float>(), *dD = node.out(out::dD).ptr<float>();
  const ScanRows from(u), dy(node.in(in::dy)), du(node.out(out::du));
  const bool accumulate = node.attr(at::long_conv_grad::attr::accumulate) != 0;
  return each_channels(whole, gradient_bytes(whole), [&](const Conv& p) -> Status {
    const int64_t size = p.channels * p.J * p.n;
    Float* kernels = reinterpret_cast<Float*>(launch.scratch);
    Float *inputs = kernels + size, *outputs = inputs + size * p.pairs;
    MB_TRY(start("long_conv_grad", transform_kernel, launch, p, 1, k, D, kernels));
    MB_TRY(start("long_conv_grad", transform_signal, launch, p, p.pairs, from, inputs));
    MB_TRY(start("long_conv_grad", transform_signal, launch, p, p.pairs, dy, outputs));
    MB_TRY(start("long_conv_grad", differentiate_signal, launch, p, p.pairs, kernels, outputs, du));
    return start("long_conv_grad", differentiate_kernel, launch, p, 1, inputs, outputs, dk, dD, accumulate);
  });
}

const char* why_not(const Node& node, const Props&) {
  namespace in = at::long_conv::in;
  if (!is_activation(node.in(in::u)) || !is_activation(node.out(at::long_conv::out::y))) {
    return "cuda: long_conv takes activations in f32 or bf16";
  }
  for (int i : {in::k, in::D}) {
    if (node.in(i) && node.in(i).dtype != DType::f32) return "cuda: long_conv takes its kernel and D in f32";
  }
  return node.in(in::k).contiguous() ? nullptr : "cuda: long_conv takes a kernel without gaps";
}

const char* why_not_gradient(const Node& node, const Props&) {
  namespace in = at::long_conv_grad::in;
  namespace out = at::long_conv_grad::out;
  for (const Tensor* t : {&node.in(in::dy), &node.in(in::u), &node.out(out::du)}) {
    if (!is_activation(*t)) return "cuda: long_conv_grad takes activations in f32 or bf16";
  }
  for (const Tensor* t : {&node.in(in::k), &node.in(in::D), &node.out(out::dk), &node.out(out::dD)}) {
    if (*t && t->dtype != DType::f32) return "cuda: long_conv_grad takes the kernel, D and their gradients in f32";
  }
  return node.in(in::k).contiguous() && node.out(out::dk).contiguous()
             ? nullptr
             : "cuda: long_conv_grad takes a kernel and its gradient without gaps";
}

}  // namespace

const Kernel long_conv_kernel = {run, scratch, why_not};
const Kernel long_conv_grad_kernel = {run_gradient, gradient_scratch, why_not_gradient};

}  // namespace mb::cuda
