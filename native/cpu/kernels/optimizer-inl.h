// The global gradient norm, and AdamW (Loshchilov & Hutter 2019, algorithm 2) in one pass.
//   norm = scale sqrt(sum over all gradients of g^2)
//   g' = g scale min(1, clip / (norm + 1e-6));  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2
//   param = param (1 - lr weight_decay) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)
#pragma once

namespace mb::cpu::MB_TARGET {

// Null when every operand present is f32 and lies without gaps.
static const char* w_flat_f32(const Node& node) {
  for (int i = 0; i < node.n_out + node.n_in; i++) {
    const Tensor& t = i < node.n_out ? node.outs[i] : node.ins[i - node.n_out];
    if (t && (t.dtype != DType::f32 || !t.contiguous())) return "expected every operand to be f32 without gaps";
  }
  return nullptr;
}

constexpr int64_t kNormBlock = 16384;

static int64_t norm_blocks(const Node& node) {
  int64_t blocks = 0;
  for (int i = 0; i < node.n_in; i++) blocks += (node.in(i).elems() + kNormBlock - 1) / kNormBlock;
  return blocks;
}

static int64_t s_global_norm(const Node& node, int) { return norm_blocks(node) * static_cast<int64_t>(sizeof(double)); }

// In f32 over runs of 1024, in double above, so that the sum does not lose small gradients.
static double sum_of_squares(const float* x, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 1024) {
    const int64_t run = n - i < 1024 ? n - i : 1024;
    V sum = zero();
    each_part(run, [&](int64_t d, int lanes) {
      const V v = load_part(x + i + d, lanes);
      sum = fma(v, v, sum);
    });
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

static void k_global_norm(const Node& node, const Team& team) {
  double* sums = reinterpret_cast<double*>(team.scratch);
  const Team::Range mine = team.share(norm_blocks(node));
  int64_t block = 0;
  for (int i = 0; i < node.n_in; i++) {
    const int64_t n = node.in(i).elems();
    for (int64_t first = 0; first < n; first += kNormBlock, block++) {
      if (block < mine.begin || block >= mine.end) continue;
      sums[block] = sum_of_squares(node.in(i).ptr<float>() + first, n - first < kNormBlock ? n - first : kNormBlock);
    }
  }
  team.barrier();
  if (team.index != 0) return;
  double total = 0;
  for (int64_t i = 0; i < block; i++) total += sums[i];
  const double scale = node.attr(at::global_norm::attr::scale);
  node.out(at::global_norm::out::norm).ptr<float>()[0] = static_cast<float>(scale * __builtin_sqrt(total));
}

static void k_adamw(const Node& node, const Team& team) {
  namespace in = at::adamw::in;
  namespace out = at::adamw::out;
  namespace attr = at::adamw::attr;
  const float* scalars = node.in(in::scalars).ptr<float>();
  const double lr = static_cast<double>(scalars[0]), step = static_cast<double>(scalars[1]);
  const double beta1 = node.attr(attr::beta1), beta2 = node.attr(attr::beta2), clip = node.attr(attr::clip);
  double factor = node.attr(attr::scale);
  if (const Tensor& norm = node.in(in::norm); clip > 0 && norm) {
    const double ratio = clip / (static_cast<double>(norm.ptr<float>()[0]) + 1e-6);
    // A NaN norm must reach the parameters, not pass as "no clipping".
    factor *= ratio >= 1.0 ? 1.0 : ratio;
  }
  const auto f = [](double x) { return set1(static_cast<float>(x)); };
  const V g_scale = f(factor), keep1 = f(beta1), take1 = f(1 - beta1), keep2 = f(beta2), take2 = f(1 - beta2);
  const V rate = f(lr / (1 - __builtin_pow(beta1, step))), eps = f(node.attr(attr::eps));
  const V v_scale = f(1 / __builtin_sqrt(1 - __builtin_pow(beta2, step)));
  const V decay = f(1 - lr * node.attr(attr::weight_decay));
  float *param = node.out(out::param).ptr<float>(), *m = node.out(out::m).ptr<float>();
  float* v = node.out(out::v).ptr<float>();
  const float* grad = node.in(in::grad).ptr<float>();
  const int64_t n = node.out(out::param).elems();
  const Team::Range blocks = team.share((n + kElementBlock - 1) / kElementBlock);
  const int64_t first = blocks.begin * kElementBlock;
  const int64_t last = blocks.end * kElementBlock < n ? blocks.end * kElementBlock : n;
  each_part(last - first, [&](int64_t d, int lanes) {
    const int64_t i = first + d;
    const V g = load_part(grad + i, lanes) * g_scale;
    const V m1 = fma(keep1, load_part(m + i, lanes), take1 * g);
    const V v1 = fma(keep2, load_part(v + i, lanes), take2 * (g * g));
    store_part(m + i, m1, lanes);
    store_part(v + i, v1, lanes);
    const V move = rate * m1 / fma(sqrt(v1), v_scale, eps);
    store_part(param + i, load_part(param + i, lanes) * decay - move, lanes);
  });
}

}  // namespace mb::cpu::MB_TARGET
