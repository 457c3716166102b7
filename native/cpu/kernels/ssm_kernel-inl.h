// The kernel of a diagonal SSM as a convolution, k[e,l] = 2 Re(sum_m C Bb Ab^l), and its gradient. With l = j R + i the
// powers split into Ab^(jR) Ab^i: a table of R powers a state serves every block j, and what is left is a small real
// matrix product, 2 multiplications a state and step in place of 5. Tables and the powers Ab^(jR) come from double, so
// errors do not grow with l.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int64_t kPowers = 32;         // R
constexpr int64_t kKernelTogether = 8;  // blocks that share the loads of a table

// dst(R) <- z^0 ... z^(R-1), step apart; returns z^R.
static Complex ssm_powers(Complex z, int64_t step, float* re, float* im) {
  Complex power{1, 0};
  for (int64_t i = 0; i < kPowers; i++) {
    re[i * step] = static_cast<float>(power.re), im[i * step] = static_cast<float>(power.im);
    power = power * z;
  }
  return power;
}

// Scratch of a thread that computes one channel's kernel.
struct KernelScratch {
  Complex *term, *leap;  // [M]: 2 C Bb Ab^(jR); Ab^R
  float *re, *im;        // [M][R]: powers
  float *by_re, *by_im;  // [M][together]: the terms of the blocks in hand, by_im negated
  static int64_t bytes(int64_t M) {
    return round_up(M * 2 * static_cast<int64_t>(sizeof(Complex)) + M * 2 * (kPowers + kKernelTogether) * 4, 64);
  }
  static KernelScratch at(char* p, int64_t M) {
    Complex* z = reinterpret_cast<Complex*>(p);
    float* f = reinterpret_cast<float*>(z + 2 * M);
    float* by = f + 2 * M * kPowers;
    return {z, z + M, f, f + M * kPowers, by, by + M * kKernelTogether};
  }
};

static int64_t s_ssm_kernel(const Node& node, int threads) {
  return threads * KernelScratch::bytes(node.in(at::ssm_kernel::in::Ab).dim(1));
}

// to[j R + i] for `count` blocks j, the last of which ends at `last` steps.
static void ssm_kernel_blocks(const KernelScratch& s, int64_t M, int64_t count, int64_t steps, float* to) {
  for (int64_t i = 0; i < kPowers; i += W) {
    V sums[kKernelTogether];
    MB_UNROLL
    for (int64_t j = 0; j < kKernelTogether; j++) sums[j] = zero();
    for (int64_t m = 0; m < M; m++) {
      const V re = load(s.re + m * kPowers + i), im = load(s.im + m * kPowers + i);
      const float *by_re = s.by_re + m * kKernelTogether, *by_im = s.by_im + m * kKernelTogether;
      MB_UNROLL
      for (int64_t j = 0; j < kKernelTogether; j++) sums[j] = fma(set1(by_im[j]), im, fma(set1(by_re[j]), re, sums[j]));
    }
    MB_UNROLL
    for (int64_t j = 0; j < kKernelTogether; j++) {
      const int64_t left = j < count ? steps - j * kPowers - i : 0;
      if (left > 0) store_part(to + j * kPowers + i, sums[j], left < W ? static_cast<int>(left) : W);
    }
  }
}

static void k_ssm_kernel(const Node& node, const Team& team) {
  namespace in = at::ssm_kernel::in;
  const float *Ab = node.in(in::Ab).ptr<float>(), *Bb = node.in(in::Bb).ptr<float>(), *C = node.in(in::C).ptr<float>();
  const Tensor& k = node.out(at::ssm_kernel::out::k);
  const int64_t T = k.cols(), M = node.in(in::Ab).dim(1), blocks = (T + kPowers - 1) / kPowers;
  const KernelScratch s = KernelScratch::at(team.scratch + team.index * KernelScratch::bytes(M), M);
  const Team::Range mine = team.share(k.rows());
  for (int64_t e = mine.begin; e < mine.end; e++) {
    for (int64_t m = 0; m < M; m++) {
      s.leap[m] = ssm_powers(pair_at(Ab, e * M + m), 1, s.re + m * kPowers, s.im + m * kPowers);
      s.term[m] = 2.0 * (pair_at(C, e * M + m) * pair_at(Bb, e * M + m));
    }
    for (int64_t j = 0; j < blocks; j += kKernelTogether) {
      for (int64_t m = 0; m < M; m++) {
        for (int64_t i = 0; i < kKernelTogether; i++) {
          s.by_re[m * kKernelTogether + i] = static_cast<float>(s.term[m].re);
          s.by_im[m * kKernelTogether + i] = static_cast<float>(-s.term[m].im);
          s.term[m] = s.term[m] * s.leap[m];
        }
      }
      ssm_kernel_blocks(s, M, blocks - j, T - j * kPowers, k.row<float>(e) + j * kPowers);
    }
  }
}

// Scratch of a thread that computes one channel's gradient. Rows of the tables are M rounded up to whole vectors.
struct KernelGradScratch {
  Complex *power, *before, *leap, *last, *sum, *slope;  // [M]: Ab^(jR), Ab^(jR-1), Ab^R, Ab^(R-1), S, S'
  float *re, *im, *slope_re, *slope_im;                 // [R][rows]: Ab^i; i Ab^(i-1)
  float* part;                                          // [4][rows]: a block's sums with those
  static int64_t rows(int64_t M) { return (M + W - 1) / W * W; }
  static int64_t bytes(int64_t M) {
    return round_up(M * 6 * static_cast<int64_t>(sizeof(Complex)) + rows(M) * 4 * (kPowers + 1) * 4, 64);
  }
  static KernelGradScratch at(char* p, int64_t M) {
    Complex* z = reinterpret_cast<Complex*>(p);
    float* f = reinterpret_cast<float*>(z + 6 * M);
    const int64_t n = kPowers * rows(M);
    return {z, z + M, z + 2 * M, z + 3 * M, z + 4 * M, z + 5 * M, f, f + n, f + 2 * n, f + 3 * n, f + 4 * n};
  }
};

static int64_t s_ssm_kernel_grad(const Node& node, int threads) {
  return threads * KernelGradScratch::bytes(node.in(at::ssm_kernel_grad::in::Ab).dim(1));
}

static void ssm_kernel_grad_tables(const KernelGradScratch& s, const float* Ab, int64_t M) {
  const int64_t rows = KernelGradScratch::rows(M);
  for (int64_t m = 0; m < M; m++) {
    const Complex z = pair_at(Ab, m);
    Complex power{1, 0}, before{0, 0};
    for (int64_t i = 0; i < kPowers; i++) {
      const int64_t at = i * rows + m;
      s.re[at] = static_cast<float>(power.re), s.im[at] = static_cast<float>(power.im);
      s.slope_re[at] = static_cast<float>(static_cast<double>(i) * before.re);
      s.slope_im[at] = static_cast<float>(static_cast<double>(i) * before.im);
      before = power;
      power = power * z;
    }
    s.leap[m] = power, s.last[m] = before;
    s.power[m] = {1, 0}, s.before[m] = s.sum[m] = s.slope[m] = {0, 0};
  }
}

// Sums of `count` elements of dk with the tables.
static void ssm_kernel_grad_block(const KernelGradScratch& s, int64_t M, const float* dk, int64_t count) {
  const int64_t rows = KernelGradScratch::rows(M);
  for (int64_t m = 0; m < M; m += W) {
    V re = zero(), im = zero(), slope_re = zero(), slope_im = zero();
    for (int64_t i = 0; i < count; i++) {
      const V d = set1(dk[i]);
      const int64_t at = i * rows + m;
      re = fma(d, load(s.re + at), re);
      im = fma(d, load(s.im + at), im);
      slope_re = fma(d, load(s.slope_re + at), slope_re);
      slope_im = fma(d, load(s.slope_im + at), slope_im);
    }
    store(s.part + m, re);
    store(s.part + rows + m, im);
    store(s.part + 2 * rows + m, slope_re);
    store(s.part + 3 * rows + m, slope_im);
  }
}

static void k_ssm_kernel_grad(const Node& node, const Team& team) {
  namespace in = at::ssm_kernel_grad::in;
  namespace out = at::ssm_kernel_grad::out;
  const float *Ab = node.in(in::Ab).ptr<float>(), *Bb = node.in(in::Bb).ptr<float>(), *C = node.in(in::C).ptr<float>();
  const Tensor& dk = node.in(in::dk);
  float *dAb = node.out(out::dAb).ptr<float>(), *dBb = node.out(out::dBb).ptr<float>();
  float* dC = node.out(out::dC).ptr<float>();
  const bool accumulate = node.attr(at::ssm_kernel_grad::attr::accumulate) != 0;
  const int64_t T = dk.cols(), M = node.in(in::Ab).dim(1), rows = KernelGradScratch::rows(M);
  const KernelGradScratch s = KernelGradScratch::at(team.scratch + team.index * KernelGradScratch::bytes(M), M);
  // The lanes past the last state are computed and thrown away; they must be numbers.
  memset(s.re, 0, sizeof(float) * static_cast<size_t>(4 * kPowers * rows));
  const Team::Range mine = team.share(dk.rows());
  for (int64_t e = mine.begin; e < mine.end; e++) {
    ssm_kernel_grad_tables(s, Ab + 2 * e * M, M);
    for (int64_t l = 0; l < T; l += kPowers) {
      ssm_kernel_grad_block(s, M, dk.row<float>(e) + l, min64(kPowers, T - l));
      for (int64_t m = 0; m < M; m++) {
        const Complex part{s.part[m], s.part[rows + m]}, slope{s.part[2 * rows + m], s.part[3 * rows + m]};
        s.sum[m] = s.sum[m] + s.power[m] * part;
        s.slope[m] = s.slope[m] + s.power[m] * slope + static_cast<double>(l) * (s.before[m] * part);
        s.before[m] = s.power[m] * s.last[m];
        s.power[m] = s.power[m] * s.leap[m];
      }
    }
    for (int64_t m = 0; m < M; m++) {
      const int64_t i = e * M + m;
      const Complex b = pair_at(Bb, i), c = pair_at(C, i);
      if (dAb) set_pair(dAb, i, 2.0 * conj(c * b * s.slope[m]));
      if (dBb) set_pair(dBb, i, 2.0 * conj(s.sum[m] * c));
      const Complex d = 2.0 * conj(s.sum[m] * b);
      if (dC) set_pair(dC, i, accumulate ? pair_at(dC, i) + d : d);
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
