// Draws one class for each row of logits(B,V): the op around core/sample_row.h, which defines it.
#pragma once

namespace mb::cpu::MB_TARGET {

static const char* w_sample(const Node& node) {
  return node.in(at::sample::in::logits).dtype == DType::f32 ? nullptr : "sample: expected f32 logits";
}

// Scores and order of one row, for each thread.
static int64_t s_sample(const Node& node, int threads) { return threads * 8 * node.in(at::sample::in::logits).cols(); }

static void k_sample(const Node& node, const Team& team) {
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  const Tensor &logits = node.in(in::logits), &bias = node.in(in::bias);
  const Tensor &seen = node.out(out::seen), &logprob = node.out(out::logprob);
  const int64_t classes = logits.cols();
  float* scores = reinterpret_cast<float*>(team.scratch) + 2 * classes * team.index;
  const Team::Range rows = team.share(logits.rows());
  for (int64_t b = rows.begin; b < rows.end; b++) {
    SampleParams params;
    memcpy(&params, node.in(in::params).row<float>(b), sizeof params);
    const SampleRow row{classes,
                        logits.row<float>(b),
                        bias ? bias.row<float>(b) : nullptr,
                        seen ? seen.row<uint8_t>(b) : nullptr,
                        &params,
                        node.out(out::rng).row<uint32_t>(b),
                        scores,
                        reinterpret_cast<int32_t*>(scores + classes),
                        logprob ? logprob.ptr<float>() + b : nullptr};
    node.out(out::ids).ptr<int32_t>()[b] = sample_row(row);
  }
}

}  // namespace mb::cpu::MB_TARGET
