// Rotary positions (Su et al. 2021): pairs (i, i + P/2) of each head of x(B,T,H*P) turn by (first + t) base^(-2i/P);
// and of steps that go on from a cache, equations in ops.def.
//
// A task is a block of steps of one sequence. Its first angles come from the sine and cosine in double, the next ones
// by turning those by one step, also in double, so that 64 steps lose nothing that float32 could hold. Few steps on
// their way into a cache are a task each: verified steps must have the bits of decoded ones.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr int64_t kRopeSteps = 64;
constexpr int64_t kRopeApart = 32;  // up to here each step has an angle of its own

// The turns of one step for every pair, in a thread's scratch.
struct Rotation {
  double *cosine, *sine, *step_cosine, *step_sine, *turn;
  float *c, *s;  // the first two, rounded
  int64_t half;

  static int64_t bytes(int64_t half) { return round_up(half * (5 * 8 + 2 * 4), 64); }
  Rotation(char* scratch, int64_t pairs, double base) : half(pairs) {
    double* d = reinterpret_cast<double*>(scratch);
    float* f = reinterpret_cast<float*>(d + 5 * half);
    cosine = d, sine = d + half, step_cosine = d + 2 * half, step_sine = d + 3 * half, turn = d + 4 * half;
    c = f, s = f + half;
    for (int64_t i = 0; i < half; i++) {
      turn[i] = __builtin_pow(base, -static_cast<double>(i) / static_cast<double>(half));
    }
  }
};

// sign 1, or -1 to turn back.
static void rope_start(const Rotation& r, double position, double sign) {
  for (int64_t i = 0; i < r.half; i++) {
    const double angle = position * r.turn[i];
    r.cosine[i] = __builtin_cos(angle), r.sine[i] = sign * __builtin_sin(angle);
  }
}

static void rope_steps(const Rotation& r, double sign) {
  for (int64_t i = 0; i < r.half; i++) {
    r.step_cosine[i] = __builtin_cos(r.turn[i]), r.step_sine[i] = sign * __builtin_sin(r.turn[i]);
  }
}

static void rope_next(const Rotation& r) {
  for (int64_t i = 0; i < r.half; i++) {
    const double c = r.cosine[i], s = r.sine[i];
    r.cosine[i] = c * r.step_cosine[i] - s * r.step_sine[i];
    r.sine[i] = s * r.step_cosine[i] + c * r.step_sine[i];
  }
}

// Heads of one row, turned by r.c and r.s.
template <class T>
static void rope_row(const Rotation& r, int64_t heads, const float* x, T* y) {
  const int64_t half = r.half;
  for (int64_t h = 0; h < heads; h++, x += 2 * half, y += 2 * half) {
    each_part(half, [&](int64_t i, int n) {
      const V c = load_part(r.c + i, n), s = load_part(r.s + i, n);
      const V a = load_part(x + i, n), b = load_part(x + half + i, n);
      store_part(y + i, a * c - b * s, n);
      store_part(y + half + i, fma(b, c, a * s), n);
    });
  }
}

// Calls fn(b, t) for this thread's share of T steps of B sequences, r.c and r.s being the turns of position(b) + t.
template <class Position, class F>
static void rope_each(const Team& team, const Rotation& r, int64_t B, int64_t T, int64_t block, double sign,
                      Position position, F fn) {
  const int64_t blocks = (T + block - 1) / block;
  if (block > 1) rope_steps(r, sign);
  const Team::Range tasks = team.share(B * blocks);
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t b = task / blocks, t0 = task % blocks * block, t1 = min64(T, t0 + block);
    rope_start(r, position(b) + static_cast<double>(t0), sign);
    for (int64_t t = t0; t < t1; t++) {
      if (t > t0) rope_next(r);
      for (int64_t i = 0; i < r.half; i++) {
        r.c[i] = static_cast<float>(r.cosine[i]), r.s[i] = static_cast<float>(r.sine[i]);
      }
      fn(b, t);
    }
  }
}

static int64_t s_rope(const Node& node, int threads) {
  const int64_t heads = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  return threads * Rotation::bytes(node.in(at::rope::in::x).cols() / heads / 2);
}

static void k_rope(const Node& node, const Team& team) {
  const Tensor &x = node.in(at::rope::in::x), &y = node.out(at::rope::out::y);
  const int64_t B = x.dim(0), T = x.dim(1), heads = static_cast<int64_t>(node.attr(at::rope::attr::heads));
  const int64_t half = x.dim(2) / heads / 2;
  const double first = node.attr(at::rope::attr::first);
  const double sign = node.attr(at::rope::attr::inverse) != 0 ? -1 : 1;
  const Rotation r(team.scratch + team.index * Rotation::bytes(half), half, node.attr(at::rope::attr::base));
  rope_each(
      team, r, B, T, kRopeSteps, sign, [=](int64_t) { return first; },
      [&](int64_t b, int64_t t) { rope_row(r, heads, x.row<float>(b * T + t), y.row<float>(b * T + t)); });
}

static int64_t s_rope_cache_write(const Node& node, int threads) {
  const int64_t heads = static_cast<int64_t>(node.attr(at::rope_cache_write::attr::heads));
  return threads * Rotation::bytes(node.in(at::rope_cache_write::in::q).cols() / heads / 2);
}

static const char* w_rope_cache_write(const Node& node) {
  namespace in = at::rope_cache_write::in;
  namespace out = at::rope_cache_write::out;
  const DType keys = node.out(out::keys).dtype;
  for (const Tensor* t : {&node.in(in::q), &node.in(in::k), &node.in(in::v), &node.out(out::y)}) {
    if (t->dtype != DType::f32) return "rope_cache_write: expected q, k, v and y to be f32";
  }
  if (keys != node.out(out::values).dtype || !is_cached(keys)) {
    return "rope_cache_write: expected keys and values to be both f32, both bf16 or both f16";
  }
  for (const int i : {in::length, in::position}) {
    if (node.in(i) && node.in(i).dtype != DType::i32) return "rope_cache_write: expected length and position to be i32";
  }
  return nullptr;
}

template <class Cache>
static void rope_to_cache(const Node& node, const Team& team) {
  namespace in = at::rope_cache_write::in;
  namespace out = at::rope_cache_write::out;
  namespace attr = at::rope_cache_write::attr;
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &v = node.in(in::v);
  const Tensor &y = node.out(out::y), &keys = node.out(out::keys), &values = node.out(out::values);
  const int32_t *length = node.in(in::length).ptr<int32_t>(), *position = node.in(in::position).ptr<int32_t>();
  const int64_t B = q.dim(0), T = q.dim(1), S = keys.dim(1), H = static_cast<int64_t>(node.attr(attr::heads));
  const int64_t P = q.dim(2) / H, J = k.dim(2) / P;
  const double first = node.attr(attr::first);
  const Rotation r(team.scratch + team.index * Rotation::bytes(P / 2), P / 2, node.attr(attr::base));
  const auto start = [=](int64_t b) { return static_cast<double>(position ? position[b] : length[b]) + first; };
  rope_each(team, r, B, T, T > kRopeApart ? kRopeSteps : 1, 1, start, [&](int64_t b, int64_t t) {
    const int64_t row = b * T + t, s = length[b] + t;
    rope_row(r, H, q.row<float>(row), y.row<float>(row));
    if (s < 0 || s >= S) return;
    rope_row(r, J, k.row<float>(row), keys.row<Cache>(b * S + s));
    each_part(J * P, [&](int64_t d, int n) {
      store_part(values.row<Cache>(b * S + s) + d, load_part(v.row<float>(row) + d, n), n);
    });
  });
}

static void k_rope_cache_write(const Node& node, const Team& team) {
  with_cached(node.out(at::rope_cache_write::out::keys).dtype,
              [&](auto cached) { rope_to_cache<decltype(cached)>(node, team); });
}

}  // namespace mb::cpu::MB_TARGET
