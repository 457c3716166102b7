// Selective scan, forward. u, delta, z, y(B,T,E), A(E,N), B, C(B,T,N), state(B,E,N): equations (1) to (3) of
// native/ref/selective_scan.h. Long sequences of 16 states run through scan_chain.cuh, all others through the kernel
// here, which walks time with the states of a channel spread over a few lanes.
#include <algorithm>

#include "check.h"
#include "kernel.h"
#include "scan.cuh"
#include "scan_chain.cuh"

namespace mb::cuda {
namespace {

namespace in = at::selective_scan::in;
namespace out = at::selective_scan::out;
namespace attr = at::selective_scan::attr;

constexpr int kMaxStates = 256;
constexpr int kWalkThreads = 128;
constexpr int kWalkSteps = 4;  // steps whose operands are loaded together

struct Sizes {
  int64_t B, T, E, N, chunk;
};

Sizes sizes_of(const Node& node) {
  const Tensor& u = node.in(in::u);
  const int64_t T = u.dim(1);
  const double chunk = node.attr(attr::chunk);
  return {u.dim(0), T, u.dim(2), node.in(in::A).cols(),
          chunk >= 1 ? static_cast<int64_t>(chunk) : std::max<int64_t>(T, 1)};
}

struct WalkArgs {
  Sizes size;
  bool softplus;
  ScanRows u, delta, A, B, C, D, z, delta_bias, state, y, state_out, chunks, kept;
  const int32_t* lengths;  // steps of a sequence from which on dt is 0; null: all count
};

// Lanes (a power of two) neighbours share a channel; lane l owns the States states l, l + Lanes, ...
template <int States>
__global__ void __launch_bounds__(kWalkThreads) walk(const WalkArgs p, const int lanes) {
  const auto [batch, T, E, N, chunk] = p.size;
  const int64_t channel = (int64_t{blockIdx.x} * kWalkThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const bool inside = channel < batch * E;
  const int64_t b = inside ? channel / E : 0, e = inside ? channel % E : 0;

  float A[States], h[States];
#pragma unroll
  for (int k = 0; k < States; k++) {
    const int64_t n = lane + int64_t{k} * lanes;
    A[k] = n < N ? p.A.load(e, n) * kLog2e : 0.0f;
    h[k] = n < N && p.state.data ? p.state.load(b * E + e, n) : 0.0f;
  }
  const float D = p.D.data ? p.D.load(0, e) : 0.0f;
  const float bias = p.delta_bias.data ? p.delta_bias.load(0, e) : 0.0f;
  const int64_t chunk_count = (T + chunk - 1) / chunk, length = p.lengths ? int64_t{p.lengths[b]} : T;

  for (int64_t t0 = 0; t0 < T; t0 += kWalkSteps) {
    float u[kWalkSteps], delta[kWalkSteps], z[kWalkSteps], B[kWalkSteps][States], C[kWalkSteps][States];
#pragma unroll
    for (int j = 0; j < kWalkSteps; j++) {
      const int64_t bt = b * T + t0 + j;
      const bool live = t0 + j < T;
      u[j] = live ? p.u.load(bt, e) : 0.0f;
      delta[j] = live ? p.delta.load(bt, e) : 0.0f;
      z[j] = live && p.z.data ? p.z.load(bt, e) : 0.0f;
#pragma unroll
      for (int k = 0; k < States; k++) {
        const int64_t n = lane + int64_t{k} * lanes;
        B[j][k] = live && n < N ? p.B.load(bt, n) : 0.0f;
        C[j][k] = live && n < N ? p.C.load(bt, n) : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kWalkSteps; j++) {
      const int64_t t = t0 + j;
      if (t >= T) break;
      if (p.chunks.data && t % chunk == 0 && inside) {
#pragma unroll
        for (int k = 0; k < States; k++) {
          const int64_t n = lane + int64_t{k} * lanes;
          if (n < N) p.chunks.store(b * chunk_count + t / chunk, e * N + n, h[k]);
        }
      }
      const float w = delta[j] + bias;
      const float dt = t >= length ? 0.0f : p.softplus ? softplus_fast(w) : w;
      const float dtu = dt * u[j];
      float y = 0.0f;
#pragma unroll
      for (int k = 0; k < States; k++) {
        h[k] = fmaf(exp2_fast(dt * A[k]), h[k], dtu * B[j][k]);
        y = fmaf(C[j][k], h[k], y);
      }
      for (int step = lanes / 2; step > 0; step /= 2) y += __shfl_xor_sync(0xFFFFFFFFu, y, step);
      y = fmaf(D, u[j], y);
      if (p.z.data) y *= z[j] * sigmoid_fast(z[j]);
      if (inside && lane == 0) p.y.store(b * T + t, e, y);
      if (p.kept.data && inside) {
#pragma unroll
        for (int k = 0; k < States; k++) {
          const int64_t n = lane + int64_t{k} * lanes;
          if (n < N) p.kept.store(t * batch + b, e * N + n, h[k]);
        }
      }
    }
  }
  if (p.state_out.data && inside) {
#pragma unroll
    for (int k = 0; k < States; k++) {
      const int64_t n = lane + int64_t{k} * lanes;
      if (n < N) p.state_out.store(b * E + e, n, h[k]);
    }
  }
}

template <int States>
Status launch_walk(const WalkArgs& p, const Launch& launch) {
  int lanes = 1;
  while (lanes * States < p.size.N) lanes *= 2;
  const int64_t blocks = ceil_div(p.size.B * p.size.E * lanes, kWalkThreads);
  walk<States><<<static_cast<unsigned>(blocks), kWalkThreads, 0, launch.stream>>>(p, lanes);
  MB_CUDA_LAUNCHED("selective_scan");
  return {};
}

Status run_walk(const Node& node, const Launch& launch) {
  const WalkArgs p{sizes_of(node),
                   node.attr(attr::softplus) != 0,
                   ScanRows(node.in(in::u)),
                   ScanRows(node.in(in::delta)),
                   ScanRows(node.in(in::A)),
                   ScanRows(node.in(in::B)),
                   ScanRows(node.in(in::C)),
                   ScanRows(node.in(in::D)),
                   ScanRows(node.in(in::z)),
                   ScanRows(node.in(in::delta_bias)),
                   ScanRows(node.in(in::state)),
                   ScanRows(node.out(out::y)),
                   ScanRows(node.out(out::state_out)),
                   ScanRows(node.out(out::chunks)),
                   ScanRows(node.out(out::kept)),
                   node.in(in::lengths).ptr<int32_t>()};
  if (p.size.N == 1) return launch_walk<1>(p, launch);
  if (p.size.N <= 128) return launch_walk<4>(p, launch);
  return launch_walk<8>(p, launch);
}

constexpr int64_t kChainSteps = 64;  // shortest sequence worth a chain

// log2 of the segments a chunk, or -1 where that is no power of two.
int chunk_shift(int64_t chunk) {
  for (int shift = 0; shift < 24; shift++) {
    if (chunk == int64_t{chain::kSteps} << shift) return shift;
  }
  return -1;
}

bool chain_fits(const Node& node) {
  const Sizes s = sizes_of(node);
  const Tensor& chunks = node.out(out::chunks);
  const DType type = node.in(in::u).dtype;
  for (const Tensor* t : {&node.in(in::delta), &node.in(in::B), &node.in(in::C), &node.in(in::z), &node.out(out::y)}) {
    if (*t && t->dtype != type) return false;
  }
  if (chunks && (chunk_shift(s.chunk) < 0 || !rows_aligned(chunks, 16))) return false;
  return s.N == chain::kStates && s.T >= kChainSteps && !node.out(out::kept) && s.B * s.T < int64_t{1} << 30 &&
         s.B * s.E < int64_t{1} << 30;
}

bool chain_vectors(const Node& node) {
  for (const Tensor* t :
       {&node.in(in::u), &node.in(in::delta), &node.in(in::z), &node.in(in::B), &node.in(in::C), &node.out(out::y)}) {
    if (!vectors_fit(*t, 4)) return false;
  }
  return node.in(in::u).cols() % 4 == 0;
}

template <class T>
chain::Args<T> chain_args(const Node& node, int warps) {
  const Sizes s = sizes_of(node);
  const int64_t step = int64_t{warps} * chain::kSteps * static_cast<int64_t>(sizeof(T));
  const Tensor &u = node.in(in::u), &delta = node.in(in::delta), &A = node.in(in::A), &B = node.in(in::B),
               &C = node.in(in::C), &z = node.in(in::z), &state = node.in(in::state), &y = node.out(out::y),
               &state_out = node.out(out::state_out), &chunks = node.out(out::chunks);
  return {u.ptr<T>(),
          delta.ptr<T>(),
          z.ptr<T>(),
          B.ptr<T>(),
          C.ptr<T>(),
          y.ptr<T>(),
          A.ptr<float>(),
          node.in(in::D).ptr<float>(),
          node.in(in::delta_bias).ptr<float>(),
          state.ptr<float>(),
          node.in(in::lengths).ptr<int32_t>(),
          state_out.ptr<float>(),
          chunks.ptr<float>(),
          u.row_stride,
          delta.row_stride,
          z.row_stride,
          B.row_stride,
          C.row_stride,
          y.row_stride,
          step * u.row_stride,
          step * delta.row_stride,
          step * z.row_stride,
          step * B.row_stride,
          step * C.row_stride,
          step * y.row_stride,
          A.row_stride,
          state.row_stride,
          state_out.row_stride,
          chunks.row_stride,
          static_cast<int>(s.T),
          static_cast<int>(s.E),
          static_cast<int>(ceil_div(s.E, chain::kChannels)),
          chunk_shift(s.chunk),
          node.attr(attr::softplus) != 0};
}

template <class T, bool Vec, chain::Mode M, int Warps, int Blocks>
Status launch_chain(const Node& node, const Launch& launch) {
  const Sizes s = sizes_of(node);
  const int most = std::min(Warps, launch.props->max_shared_per_block / chain::shared_bytes<T>(1));
  const int warps = static_cast<int>(std::min<int64_t>(most, ceil_div(s.T, chain::kSteps)));
  const chain::Args<T> p = chain_args<T>(node, warps);
  const int64_t jobs = s.B * p.groups;
  const int shared = chain::shared_bytes<T>(warps);
  const auto kernel = chain::scan<T, Vec, M, Warps, Blocks>;
  MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, chain::shared_bytes<T>(most)));
  kernel<<<static_cast<unsigned>(jobs), 32 * warps, shared, launch.stream>>>(p);
  MB_CUDA_LAUNCHED("selective_scan");
  return {};
}

template <class T, bool Vec>
Status run_chain(const Node& node, const Launch& launch) {
  const int64_t jobs = node.in(in::u).dim(0) * ceil_div(node.in(in::u).dim(2), chain::kChannels);
  // Below four blocks a multiprocessor one block has to fill it, and its chain of segments must be short.
  if (jobs < 4 * int64_t{launch.props->sm_count}) return launch_chain<T, Vec, chain::Mode::local, 16, 1>(node, launch);
  return launch_chain<T, Vec, chain::Mode::walk, 4, 4>(node, launch);
}

Status run_selective_scan(const Node& node, const Launch& launch) {
  const Sizes s = sizes_of(node);
  if (s.B * s.T * s.E == 0) return {};
  if (!chain_fits(node)) return run_walk(node, launch);
  const bool vectors = chain_vectors(node);
  return with_activation(node.in(in::u).dtype, [&](auto type) {
    using T = decltype(type);
    return vectors ? run_chain<T, true>(node, launch) : run_chain<T, false>(node, launch);
  });
}

const char* why_not_selective_scan(const Node& node, const Props&) {
  for (const Tensor* t :
       {&node.in(in::u), &node.in(in::delta), &node.in(in::B), &node.in(in::C), &node.in(in::z), &node.out(out::y)}) {
    if (*t && !is_activation(*t)) return "cuda: selective_scan takes activations in f32 or bf16";
  }
  for (const Tensor* t : {&node.in(in::A), &node.in(in::D), &node.in(in::delta_bias), &node.in(in::state),
                          &node.out(out::state_out), &node.out(out::chunks), &node.out(out::kept)}) {
    if (*t && t->dtype != DType::f32) return "cuda: selective_scan takes parameters and states in f32";
  }
  if (!are_lengths(node.in(in::lengths))) return "cuda: selective_scan takes lengths in i32, without gaps";
  return node.in(in::A).cols() > kMaxStates ? "cuda: selective_scan takes at most 256 states" : nullptr;
}

}  // namespace

const Kernel selective_scan_kernel = {run_selective_scan, nullptr, why_not_selective_scan};

}  // namespace mb::cuda
