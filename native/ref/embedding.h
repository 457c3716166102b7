// Rows of a table: y[r] = table[ids[r]], and its gradient dtable[ids[r]] += dy[r].
//
// y(R,D), table(V,D), ids(R) u8 or i32. The host refuses ids outside 0 .. V-1; should one arrive, its row is zeros and
// it has no gradient.
#pragma once
#include "operand.h"

namespace mb::ref {

inline void embedding(const Node& node) {
  const Tensor& table = node.in(at::embedding::in::table);
  const Vec rows = load(table);
  const std::vector<int64_t> ids = load_ids(node.in(at::embedding::in::ids));
  const int64_t V = table.rows(), D = table.cols();
  Vec y(ids.size() * D);
  for (size_t r = 0; r < ids.size(); r++) {
    if (ids[r] < 0 || ids[r] >= V) continue;
    for (int64_t d = 0; d < D; d++) y[r * D + d] = rows[ids[r] * D + d];
  }
  store(node.out(at::embedding::out::y), y);
}

inline void embedding_grad(const Node& node) {
  const Tensor& table = node.out(at::embedding_grad::out::dtable);
  const Vec dy = load(node.in(at::embedding_grad::in::dy));
  const std::vector<int64_t> ids = load_ids(node.in(at::embedding_grad::in::ids));
  const int64_t V = table.rows(), D = table.cols();
  Vec dtable(V * D);
  for (size_t r = 0; r < ids.size(); r++) {
    if (ids[r] < 0 || ids[r] >= V) continue;
    for (int64_t d = 0; d < D; d++) dtable[ids[r] * D + d] += dy[r * D + d];
  }
  store_gradient(table, dtable, node.attr(at::embedding_grad::attr::accumulate) != 0);
}

}  // namespace mb::ref
