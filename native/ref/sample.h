// Draws one class for each row of logits(B,V): the op around core/sample_row.h, which defines it.
#pragma once
#include "core/sample_row.h"
#include "operand.h"

namespace mb::ref {

inline void sample(const Node &node) {
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  const Tensor &logits = node.in(in::logits), &bias = node.in(in::bias);
  const Tensor &seen = node.out(out::seen), &logprob = node.out(out::logprob);
  const int64_t V = logits.cols();
  std::vector<float> scores(V);
  std::vector<int32_t> order(V);
  for (int64_t b = 0; b < logits.rows(); b++) {
    SampleParams params;
    std::memcpy(&params, node.in(in::params).row<float>(b), sizeof params);
    const SampleRow row{V,
                        logits.row<float>(b),
                        bias ? bias.row<float>(b) : nullptr,
                        seen ? seen.row<uint8_t>(b) : nullptr,
                        &params,
                        node.out(out::rng).row<uint32_t>(b),
                        scores.data(),
                        order.data(),
                        logprob ? logprob.ptr<float>() + b : nullptr};
    node.out(out::ids).ptr<int32_t>()[b] = sample_row(row);
  }
}

}  // namespace mb::ref
