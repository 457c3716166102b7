// Diagonal state space model with complex states, step by step, and the zero-order hold that makes its Ab and Bb:
// equations (1), (2) and (4) of native/ref/diagonal_ssm.h. The hold is computed in double: a few hundred thousand
// numbers a training step, whose quotients cancel in float.
#include "check.h"
#include "complex.cuh"
#include "kernel.h"
#include "reduce.cuh"
#include "scan.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxStates = 128;  // complex ones

using Double = Complex<double>;

struct Held {
  Double A, Ab, Bb, slope;
};

__device__ Held hold(double dt, double log_A_real, double A_imag) {
  const Double one{1, 0}, A{-exp(log_A_real), A_imag}, x = dt * A;
  double s, c;
  sincos(x.im, &s, &c);
  const Double Ab = exp(x.re) * Double{c, s};
  // Near 0 the quotients cancel; their series are exact there to the last digit but one.
  if (x.re * x.re + x.im * x.im < 4e-4) {
    constexpr double kOf[] = {1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 1 / 2.0, 1.0};
    constexpr double kSlopeOf[] = {1 / 840.0, 1 / 144.0, 1 / 30.0, 1 / 8.0, 1 / 3.0, 1 / 2.0};
    Double phi{0, 0}, slope{0, 0};
#pragma unroll
    for (int i = 0; i < 6; i++) phi = kOf[i] * one + x * phi, slope = kSlopeOf[i] * one + x * slope;
    return {A, Ab, dt * phi, dt * dt * slope};
  }
  const Double over_A = 1 / (A.re * A.re + A.im * A.im) * conj(A);
  const Double Bb = (Ab - one) * over_A;
  return {A, Ab, Bb, (dt * Ab - Bb) * over_A};
}

struct HoldArgs {
  const float *log_dt, *log_A_real, *A_imag;
  int64_t E, M;
};

template <class At>
HoldArgs hold_args(const Node& node) {
  return {node.in(At::log_dt).template ptr<float>(), node.in(At::log_A_real).template ptr<float>(),
          node.in(At::A_imag).template ptr<float>(), node.in(At::A_imag).dim(0), node.in(At::A_imag).dim(1)};
}

__global__ void zero_order_hold(const HoldArgs p, float* Ab, float* Bb) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.E * p.M) return;
  const Held held = hold(exp(static_cast<double>(p.log_dt[i / p.M])), p.log_A_real[i], p.A_imag[i]);
  set_pair(Ab, i, held.Ab);
  set_pair(Bb, i, held.Bb);
}

// A warp a channel.
__global__ void zero_order_hold_grad(const HoldArgs p, const float* dAb, const float* dBb, float* dlog_dt,
                                     float* dlog_A_real, float* dA_imag, bool accumulate) {
  const int64_t e = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (e >= p.E) return;
  const double dt = exp(static_cast<double>(p.log_dt[e]));
  double ddt = 0;
  for (int64_t i = e * p.M + threadIdx.x % 32; i < (e + 1) * p.M; i += 32) {
    const Held held = hold(dt, p.log_A_real[i], p.A_imag[i]);
    const Double g = conj(pair_at<double>(dAb, i)), q = conj(pair_at<double>(dBb, i));
    const Double dA = conj(dt * (g * held.Ab) + q * held.slope);
    ddt += ((g * held.A + q) * held.Ab).re;
    const float real = static_cast<float>(dA.re * held.A.re), imag = static_cast<float>(dA.im);
    dlog_A_real[i] = accumulate ? dlog_A_real[i] + real : real;
    dA_imag[i] = accumulate ? dA_imag[i] + imag : imag;
  }
  ddt = warp_sum(ddt) * dt;
  if (threadIdx.x % 32 == 0) dlog_dt[e] = static_cast<float>(accumulate ? dlog_dt[e] + ddt : ddt);
}

struct HoldAt {
  enum : int {
    log_dt = at::zero_order_hold::in::log_dt,
    log_A_real = at::zero_order_hold::in::log_A_real,
    A_imag = at::zero_order_hold::in::A_imag
  };
};
struct HoldGradAt {
  enum : int {
    log_dt = at::zero_order_hold_grad::in::log_dt,
    log_A_real = at::zero_order_hold_grad::in::log_A_real,
    A_imag = at::zero_order_hold_grad::in::A_imag
  };
};

Status run_hold(const Node& node, const Launch& launch) {
  namespace out = at::zero_order_hold::out;
  const HoldArgs p = hold_args<HoldAt>(node);
  if (p.E * p.M == 0) return {};
  zero_order_hold<<<static_cast<unsigned>(ceil_div(p.E * p.M, kThreads)), kThreads, 0, launch.stream>>>(
      p, node.out(out::Ab).ptr<float>(), node.out(out::Bb).ptr<float>());
  MB_CUDA_LAUNCHED("zero_order_hold");
  return {};
}

Status run_hold_grad(const Node& node, const Launch& launch) {
  namespace in = at::zero_order_hold_grad::in;
  namespace out = at::zero_order_hold_grad::out;
  const HoldArgs p = hold_args<HoldGradAt>(node);
  if (p.E * p.M == 0) return {};
  zero_order_hold_grad<<<static_cast<unsigned>(ceil_div(p.E * 32, kThreads)), kThreads, 0, launch.stream>>>(
      p, node.in(in::dAb).ptr<float>(), node.in(in::dBb).ptr<float>(), node.out(out::dlog_dt).ptr<float>(),
      node.out(out::dlog_A_real).ptr<float>(), node.out(out::dA_imag).ptr<float>(),
      node.attr(at::zero_order_hold_grad::attr::accumulate) != 0);
  MB_CUDA_LAUNCHED("zero_order_hold_grad");
  return {};
}

const char* why_not_hold(const Node& node, const Props&) {
  for (int i = 0; i < node.n_in + node.n_out; i++) {
    const Tensor& t = i < node.n_in ? node.in(i) : node.out(i - node.n_in);
    if (t && t.dtype != DType::f32) return "cuda: zero_order_hold takes f32";
    if (!t.contiguous()) return "cuda: zero_order_hold takes operands without gaps";
  }
  return nullptr;
}

namespace in = at::diagonal_ssm::in;
namespace out = at::diagonal_ssm::out;

constexpr int kSteps = 4;  // steps whose inputs are loaded together

struct WalkArgs {
  int64_t B, T, E, M;
  ScanRows u, y;
  const float *Ab, *Bb, *C, *D, *state;
  float *state_out, *kept;
};

// Lanes (a power of two) neighbours share a channel of a sequence; lane l owns the States states l, l + Lanes, ...
// Sums run over a lane's states in order and then over the lanes, however many steps there are.
template <int States>
__global__ void __launch_bounds__(kThreads) walk(const WalkArgs p, const int lanes) {
  const int64_t channel = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const bool inside = channel < p.B * p.E;
  const int64_t b = inside ? channel / p.E : 0, e = inside ? channel % p.E : 0;
  Complex<float> Ab[States], Bb[States], C[States], h[States];
#pragma unroll
  for (int k = 0; k < States; k++) {
    const int64_t m = lane + int64_t{k} * lanes, i = e * p.M + m;
    const Complex<float> none{0, 0};
    Ab[k] = m < p.M ? pair_at(p.Ab, i) : none;
    Bb[k] = m < p.M ? pair_at(p.Bb, i) : none;
    C[k] = m < p.M ? pair_at(p.C, i) : none;
    h[k] = m < p.M && p.state ? pair_at(p.state, (b * p.E + e) * p.M + m) : none;
  }
  const float D = p.D ? p.D[e] : 0.0f;
  const auto leave = [&](float* to) {
    if (!inside) return;
#pragma unroll
    for (int k = 0; k < States; k++) {
      const int64_t m = lane + int64_t{k} * lanes;
      if (m < p.M) set_pair(to, m, h[k]);
    }
  };
  for (int64_t t0 = 0; t0 < p.T; t0 += kSteps) {
    float u[kSteps];
#pragma unroll
    for (int j = 0; j < kSteps; j++) u[j] = t0 + j < p.T ? p.u.load(b * p.T + t0 + j, e) : 0.0f;
#pragma unroll
    for (int j = 0; j < kSteps; j++) {
      const int64_t t = t0 + j;
      if (t >= p.T) break;
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < States; k++) {
        const float re = fmaf(Ab[k].re, h[k].re, fmaf(-Ab[k].im, h[k].im, Bb[k].re * u[j]));
        h[k].im = fmaf(Ab[k].re, h[k].im, fmaf(Ab[k].im, h[k].re, Bb[k].im * u[j]));
        h[k].re = re;
        sum = fmaf(-C[k].im, h[k].im, fmaf(C[k].re, h[k].re, sum));
      }
      for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
      if (inside && lane == 0) p.y.store(b * p.T + t, e, fmaf(D, u[j], 2.0f * sum));
      if (p.kept) leave(p.kept + ((t * p.B + b) * p.E + e) * 2 * p.M);
    }
  }
  if (p.state_out) leave(p.state_out + (b * p.E + e) * 2 * p.M);
}

Status run_walk(const Node& node, const Launch& launch) {
  const Tensor& u = node.in(in::u);
  const WalkArgs p{u.dim(0),
                   u.dim(1),
                   u.dim(2),
                   node.in(in::Ab).dim(1),
                   ScanRows(u),
                   ScanRows(node.out(out::y)),
                   node.in(in::Ab).ptr<float>(),
                   node.in(in::Bb).ptr<float>(),
                   node.in(in::C).ptr<float>(),
                   node.in(in::D).ptr<float>(),
                   node.in(in::state).ptr<float>(),
                   node.out(out::state_out).ptr<float>(),
                   node.out(out::kept).ptr<float>()};
  if (u.elems() == 0) return {};
  constexpr int kOwn = kMaxStates / 32;
  int lanes = 1;
  while (lanes * kOwn < p.M) lanes *= 2;
  const int64_t blocks = ceil_div(p.B * p.E * lanes, kThreads);
  walk<kOwn><<<static_cast<unsigned>(blocks), kThreads, 0, launch.stream>>>(p, lanes);
  MB_CUDA_LAUNCHED("diagonal_ssm");
  return {};
}

const char* why_not_walk(const Node& node, const Props&) {
  if (!is_activation(node.in(in::u)) || !is_activation(node.out(out::y))) {
    return "cuda: diagonal_ssm takes activations in f32 or bf16";
  }
  for (const Tensor* t : {&node.in(in::Ab), &node.in(in::Bb), &node.in(in::C), &node.in(in::D), &node.in(in::state),
                          &node.out(out::state_out), &node.out(out::kept)}) {
    if (*t && t->dtype != DType::f32) return "cuda: diagonal_ssm takes parameters and states in f32";
    if (!t->contiguous()) return "cuda: diagonal_ssm takes parameters and states without gaps";
  }
  return node.in(in::Ab).dim(1) > kMaxStates ? "cuda: diagonal_ssm takes at most 128 complex states" : nullptr;
}

}  // namespace

const Kernel zero_order_hold_kernel = {run_hold, nullptr, why_not_hold};
const Kernel zero_order_hold_grad_kernel = {run_hold_grad, nullptr, why_not_hold};
const Kernel diagonal_ssm_kernel = {run_walk, nullptr, why_not_walk};

}  // namespace mb::cuda
