// Rotary positions (Su et al. 2021): pairs (i, i + P/2) of each head of x(B,T,H*P) turn by (position[b] + first + t)
// base^(-2i/P).
//
// A task is a block of steps of one sequence. Its first angles come from the sine and cosine in double, the next ones
// by turning those by one step, also in double, so that 64 steps lose nothing that float32 could hold.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int64_t kRopeSteps = 64;

// The turns of one step for every pair, in a thread's scratch.
struct Rotation {
  double *cosine, *sine, *step_cosine, *step_sine;
  float *c, *s;  // the first two, rounded

  static int64_t bytes(int64_t half) { return round_up(half * (4 * 8 + 2 * 4), 64); }
  static Rotation at(char* scratch, int64_t half) {
    double* d = reinterpret_cast<double*>(scratch);
    float* f = reinterpret_cast<float*>(d + 4 * half);
    return {d, d + half, d + 2 * half, d + 3 * half, f, f + half};
  }
};

static void rope_start(const Rotation& r, int64_t half, double position, double base, double sign) {
  for (int64_t i = 0; i < half; i++) {
    const double turn = __builtin_pow(base, -static_cast<double>(i) / static_cast<double>(half));
    r.cosine[i] = __builtin_cos(position * turn), r.sine[i] = sign * __builtin_sin(position * turn);
    r.step_cosine[i] = __builtin_cos(turn), r.step_sine[i] = sign * __builtin_sin(turn);
  }
}

static void rope_next(const Rotation& r, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const double c = r.cosine[i], s = r.sine[i];
    r.cosine[i] = c * r.step_cosine[i] - s * r.step_sine[i];
    r.sine[i] = s * r.step_cosine[i] + c * r.step_sine[i];
  }
}

static void rope_row(const Rotation& r, int64_t half, int64_t heads, const float* x, float* y) {
  for (int64_t i = 0; i < half; i++) r.c[i] = static_cast<float>(r.cosine[i]), r.s[i] = static_cast<float>(r.sine[i]);
  for (int64_t h = 0; h < heads; h++, x += 2 * half, y += 2 * half) {
    each_part(half, [&](int64_t i, int n) {
      const V c = load_part(r.c + i, n), s = load_part(r.s + i, n);
      const V a = load_part(x + i, n), b = load_part(x + half + i, n);
      store_part(y + i, a * c - b * s, n);
      store_part(y + half + i, fma(b, c, a * s), n);
    });
  }
}

static int64_t s_rope(const Node& node, int threads) {
  const int64_t heads = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  return threads * Rotation::bytes(node.in(at::rope::in::x).cols() / heads / 2);
}

static const char* w_rope(const Node& node) {
  const Tensor &x = node.in(at::rope::in::x), &position = node.in(at::rope::in::position);
  if (x.dtype != DType::f32 || node.out(at::rope::out::y).dtype != DType::f32)
    return "rope: expected x and y to be f32";
  return position && position.dtype != DType::i32 ? "rope: expected the position to be i32" : nullptr;
}

static void k_rope(const Node& node, const Team& team) {
  const Tensor &x = node.in(at::rope::in::x), &y = node.out(at::rope::out::y);
  const int32_t* position = node.in(at::rope::in::position).ptr<int32_t>();
  const int64_t B = x.dim(0), T = x.dim(1), heads = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  const int64_t half = x.dim(2) / heads / 2, blocks = (T + kRopeSteps - 1) / kRopeSteps;
  const double base = node.attr(at::rope::attr::base), first = node.attr(at::rope::attr::first);
  const double sign = node.attr(at::rope::attr::inverse) != 0 ? -1 : 1;
  const Rotation r = Rotation::at(team.scratch + team.index * Rotation::bytes(half), half);
  const Team::Range tasks = team.share(B * blocks);
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t b = task / blocks, t0 = task % blocks * kRopeSteps, t1 = min64(T, t0 + kRopeSteps);
    rope_start(r, half, static_cast<double>((position ? position[b] : 0) + t0) + first, base, sign);
    for (int64_t t = t0; t < t1; t++) {
      if (t > t0) rope_next(r, half);
      rope_row(r, half, heads, x.row<float>(b * T + t), y.row<float>(b * T + t));
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
