// Softmax cross-entropy over the classes of logits(R,V), in nats, and its gradient.
//   lse = log sum_v exp(logits);  nll = lse - logits[target], 0 where not counted;  loss = mean of nll over counted
//   rows dlogits = dloss / counted (exp(logits - lse) - [v = target]), 0 where not counted
// A row whose target equals `ignore` is not counted. A target outside 0 .. V-1 (the host refuses them) gives NaN.
#pragma once

namespace mb::cpu::MB_TARGET {

static const char* w_cross_entropy(const Node& node) {
  if (node.in(at::cross_entropy::in::logits).dtype != DType::f32) return "cross_entropy: expected f32 logits";
  return why_not_ids(node.in(at::cross_entropy::in::targets));
}
static const char* w_cross_entropy_grad(const Node& node) {
  if (node.in(at::cross_entropy_grad::in::logits).dtype != DType::f32) return "cross_entropy: expected f32 logits";
  return why_not_ids(node.in(at::cross_entropy_grad::in::targets));
}

// In double, so that what is left after taking off a logit is no rounding error.
static double log_sum_exp(const float* x, int64_t n) {
  const float low = -__builtin_inff();
  float top = low;
  bool nan = false;
  V best = set1(low);
  int64_t i = 0;
  for (; i + W <= n; i += W) best = max(load(x + i), best);
  top = reduce_max(best);
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  if (top == low || top == -low) {
    for (i = 0; i < n; i++) nan = nan || x[i] != x[i];
    return nan ? __builtin_nan("") : static_cast<double>(top);
  }
  const V shift = set1(top);
  V sum = zero();
  for (i = 0; i + W <= n; i += W) sum = sum + exp(load(x + i) - shift);
  float total = reduce_add(sum);
  for (; i < n; i++) {
    alignas(64) float one[W];
    store(one, exp(set1(x[i] - top)));
    total += one[0];
  }
  return static_cast<double>(top) + __builtin_log(static_cast<double>(total));
}

static int64_t counted_rows(const Tensor& targets, int64_t R, int64_t ignore) {
  int64_t counted = 0;
  for (int64_t r = 0; r < R; r++) counted += id_at(targets, r) != ignore;
  return counted;
}

static void k_cross_entropy(const Node& node, const Team& team) {
  namespace in = at::cross_entropy::in;
  namespace out = at::cross_entropy::out;
  const Tensor &logits = node.in(in::logits), &targets = node.in(in::targets);
  float *nll = node.out(out::nll).ptr<float>(), *lse = node.out(out::lse).ptr<float>();
  const int64_t R = logits.rows(), classes = logits.cols();
  const int64_t ignore = static_cast<int64_t>(node.attr(at::cross_entropy::attr::ignore));
  const Team::Range rows = team.share(R);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float* x = logits.row<float>(r);
    const int64_t target = id_at(targets, r);
    const double sum = log_sum_exp(x, classes);
    const bool inside = target >= 0 && target < classes;
    lse[r] = static_cast<float>(sum);
    nll[r] = target == ignore ? 0.0f : inside ? static_cast<float>(sum - x[target]) : __builtin_nanf("");
  }
  team.barrier();
  if (team.index != 0) return;
  double sum = 0;
  for (int64_t r = 0; r < R; r++) sum += static_cast<double>(nll[r]);
  const int64_t counted = counted_rows(targets, R, ignore);
  node.out(out::loss).ptr<float>()[0] = counted ? static_cast<float>(sum / static_cast<double>(counted)) : 0.0f;
}

static void k_cross_entropy_grad(const Node& node, const Team& team) {
  namespace in = at::cross_entropy_grad::in;
  const Tensor &logits = node.in(in::logits), &targets = node.in(in::targets);
  const Tensor& dlogits = node.out(at::cross_entropy_grad::out::dlogits);
  const int64_t R = logits.rows(), classes = logits.cols();
  const int64_t ignore = static_cast<int64_t>(node.attr(at::cross_entropy_grad::attr::ignore));
  const float share = node.in(in::dloss).ptr<float>()[0] / static_cast<float>(counted_rows(targets, R, ignore));
  const Team::Range rows = team.share(R);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const float* x = logits.row<float>(r);
    float* dx = dlogits.row<float>(r);
    const int64_t target = id_at(targets, r);
    if (target == ignore) {
      memset(dx, 0, sizeof(float) * static_cast<size_t>(classes));
      continue;
    }
    const bool inside = target >= 0 && target < classes;
    const V factor = set1(inside ? share : __builtin_nanf("")), shift = set1(node.in(in::lse).ptr<float>()[r]);
    each_part(classes, [&](int64_t v, int n) { store_part(dx + v, factor * exp(load_part(x + v, n) - shift), n); });
    if (inside) dx[target] -= share;
  }
}

}  // namespace mb::cpu::MB_TARGET
