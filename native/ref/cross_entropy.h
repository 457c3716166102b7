// Softmax cross-entropy over the classes of logits(R,V), in nats, and its gradient.
//
//   lse[r] = log sum_v exp(logits[r,v]);   nll[r] = lse[r] - logits[r, targets[r]], 0 where not counted
//   loss = mean of nll over counted rows, 0 when none is counted
//   dlogits[r,v] = dloss / counted (exp(logits[r,v] - lse[r]) - [v = targets[r]]), 0 where not counted
// A row whose target equals `ignore` is not counted. The host refuses other targets outside 0 .. V-1; should one
// arrive, its nll and its gradient are NaN, so that it cannot pass unseen.
#pragma once
#include <algorithm>
#include <limits>

#include "operand.h"

namespace mb::ref {

inline int64_t counted_rows(const std::vector<int64_t>& targets, int64_t ignore) {
  return static_cast<int64_t>(targets.size()) - std::count(targets.begin(), targets.end(), ignore);
}

inline double log_sum_exp(const double* x, int64_t n) {
  const double max = *std::max_element(x, x + n);
  if (std::isinf(max)) return max;
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

inline void cross_entropy(const Node& node) {
  namespace in = at::cross_entropy::in;
  namespace out = at::cross_entropy::out;
  const Vec logits = load(node.in(in::logits));
  const std::vector<int64_t> targets = load_ids(node.in(in::targets));
  const int64_t R = node.in(in::logits).rows(), V = node.in(in::logits).cols();
  const int64_t ignore = static_cast<int64_t>(node.attr(at::cross_entropy::attr::ignore));
  Vec nll(R), lse(R);
  double sum = 0;
  for (int64_t r = 0; r < R; r++) {
    lse[r] = log_sum_exp(&logits[r * V], V);
    if (targets[r] == ignore) continue;
    const bool inside = targets[r] >= 0 && targets[r] < V;
    nll[r] = inside ? lse[r] - logits[r * V + targets[r]] : std::numeric_limits<double>::quiet_NaN();
    sum += nll[r];
  }
  const int64_t counted = counted_rows(targets, ignore);
  store(node.out(out::loss), {counted ? sum / static_cast<double>(counted) : 0});
  store(node.out(out::nll), nll);
  store(node.out(out::lse), lse);
}

inline void cross_entropy_grad(const Node& node) {
  namespace in = at::cross_entropy_grad::in;
  const Vec logits = load(node.in(in::logits)), lse = load(node.in(in::lse)), dloss = load(node.in(in::dloss));
  const std::vector<int64_t> targets = load_ids(node.in(in::targets));
  const int64_t R = node.in(in::logits).rows(), V = node.in(in::logits).cols();
  const int64_t ignore = static_cast<int64_t>(node.attr(at::cross_entropy_grad::attr::ignore));
  const double share = dloss[0] / static_cast<double>(counted_rows(targets, ignore));
  Vec dlogits(R * V);
  for (int64_t r = 0; r < R; r++) {
    if (targets[r] == ignore) continue;
    const bool inside = targets[r] >= 0 && targets[r] < V;
    for (int64_t v = 0; v < V; v++) {
      const double p = std::exp(logits[r * V + v] - lse[r]);
      dlogits[r * V + v] = inside ? share * (p - (v == targets[r] ? 1 : 0)) : std::numeric_limits<double>::quiet_NaN();
    }
  }
  store(node.out(at::cross_entropy_grad::out::dlogits), dlogits);
}

}  // namespace mb::ref
