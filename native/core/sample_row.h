// Draws one class from one row of logits. This is policy rather than a fast kernel, so every CPU backend shares it.
//
// Order of the steps (that of Hugging Face transformers' logits processors):
//   1. repetition penalty p: a class seen before has its logit divided by p when positive, multiplied by p otherwise;
//   2. the bias is added;
//   3. temperature t: class v weighs exp((x[v] - max x) / t); t = 0 takes the largest x (ties: the lowest class);
//   4. top_k: the k largest x stay (ties at the border: the lowest classes);
//   5. top_p: of those, the smallest set of most probable classes whose share of the mass reaches p stays, at least
//   one;
//   6. min_p: of those, the ones that are at least min_p times as probable as the most probable one stay;
//   7. a race: class v arrives after an exponential time e[v] / weight[v], e[v] = -log of a Philox uniform of (seed,
//   counter, v), and the first one is drawn (ties: the lowest class), each with probability weight / sum of weights.
// A race, as Gumbel-max is, and not the inverse CDF, because draws from two distributions that are alike then agree
// with probability at least (1 - TV) / (1 + TV), TV their total variation, wherever they differ
// (docs/math/speculative-decoding.md). The counter grows by one a draw, greedy or not. NaN logits count as -inf; where
// all are -inf, all classes are equally likely (greedy: class 0). Sums run in double. logprob is log softmax of the
// unmodified logits at the drawn class, in nats.
#pragma once
#include <cmath>
#include <cstdint>

#include "philox.h"

namespace mb {

struct SampleParams {
  float temperature;         // 0: greedy
  float top_k;               // 0: off
  float top_p;               // 1: off
  float min_p;               // 0: off
  float repetition_penalty;  // 1: off
  float unused[3];
};

struct SampleRow {
  int64_t V;
  const float* logits;         // V
  const float* bias;           // V, or null
  uint8_t* seen;               // V, or null; the drawn class is marked
  const SampleParams* params;  // a row of the op's `params`
  uint32_t* rng;               // seed low, seed high, counter low, counter high; the counter is advanced
  float* scores;               // scratch, V
  int32_t* order;              // scratch, V
  float* logprob;              // 1, or null
};

namespace sample_detail {

// Classes in falling order of score, equal scores in rising order of class.
static inline bool before(const float* scores, int32_t a, int32_t b) {
  return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
}

static inline void sift_down(const float* scores, int32_t* heap, int64_t i, int64_t n) {
  const int32_t moved = heap[i];
  for (int64_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(scores, heap[child + 1], heap[child])) child++;
    if (!before(scores, heap[child], moved)) break;
    heap[i] = heap[child];
  }
  heap[i] = moved;
}

// A max heap that hands out classes in order: the i-th class taken ends at order[V - 1 - i].
static inline void heapify(const float* scores, int32_t* order, int64_t V) {
  for (int64_t v = 0; v < V; v++) order[v] = static_cast<int32_t>(v);
  for (int64_t i = V / 2 - 1; i >= 0; i--) sift_down(scores, order, i, V);
}

static inline int32_t take(const float* scores, int32_t* order, int64_t V, int64_t& taken) {
  const int64_t last = V - 1 - taken++;
  const int32_t top = order[0];
  order[0] = order[last];
  order[last] = top;
  sift_down(scores, order, 0, last);
  return top;
}

// Equal scores weigh 1 at the maximum even where it is infinite.
static inline double weight(float score, float max, double temperature) {
  return score == max ? 1.0 : std::exp((static_cast<double>(score) - max) / temperature);
}

static inline void adjust(const SampleRow& row) {
  const float penalty = row.params->repetition_penalty;
  const bool penalise = row.seen && penalty != 1.0f;
  for (int64_t v = 0; v < row.V; v++) {
    float x = row.logits[v];
    if (penalise && row.seen[v]) x = x > 0 ? x / penalty : x * penalty;
    if (row.bias) x += row.bias[v];
    row.scores[v] = std::isnan(x) ? -INFINITY : x;
  }
}

static inline int32_t argmax(const float* x, int64_t V) {
  int32_t best = 0;
  for (int64_t v = 1; v < V; v++) {
    if (x[v] > x[best]) best = static_cast<int32_t>(v);
  }
  return best;
}

// The last class, in falling order, that top_k and top_p let stay.
static inline int32_t last_kept(const SampleRow& row, float max, double temperature) {
  const int64_t V = row.V;
  const float top_k = row.params->top_k;
  const bool cut_k = top_k >= 1 && top_k < static_cast<float>(V);
  const bool cut_p = row.params->top_p < 1;
  const int64_t k = cut_k ? static_cast<int64_t>(top_k) : V;
  heapify(row.scores, row.order, V);
  int64_t taken = 0;
  if (cut_k) {
    while (taken < k) take(row.scores, row.order, V, taken);
    if (!cut_p) return row.order[V - k];
  }
  double mass = 0;
  for (int64_t i = 0; i < k; i++) mass += weight(row.scores[cut_k ? row.order[V - 1 - i] : i], max, temperature);
  double sum = 0;
  int32_t last = 0;
  for (int64_t i = 0; i < k; i++) {
    if (i == taken) take(row.scores, row.order, V, taken);
    last = row.order[V - 1 - i];
    sum += weight(row.scores[last], max, temperature);
    if (sum >= row.params->top_p * mass) break;
  }
  return last;
}

// The uniform number of a word, in (0, 1).
MB_HOST_DEVICE static inline double open_uniform(uint32_t word) { return (word + 0.5) * (1.0 / 4294967296.0); }
// 1 / the time at which a class arrives.
MB_HOST_DEVICE static inline double race_speed(double weight, uint32_t word) {
  return weight / -log(open_uniform(word));
}

// The class that arrives first; weights are in `scores`.
static inline int32_t race(const SampleRow& row, uint64_t seed, uint64_t counter) {
  double best = 0;  // the largest weight / e
  int32_t first = 0;
  for (int32_t v = 0; v < row.V; v += 4) {
    const int32_t end = v + 4 < row.V ? v + 4 : static_cast<int32_t>(row.V);
    bool any = false;
    for (int32_t i = v; i < end; i++) any |= row.scores[i] > 0;
    if (!any) continue;
    const PhiloxWords words = philox_draw(seed, counter, static_cast<uint32_t>(v / 4));
    for (int32_t i = v; i < end; i++) {
      const double weight = row.scores[i];
      // -log(u) >= 1 - u: most classes need no logarithm.
      if (!(weight > best * (1 - open_uniform(words.word[i - v])))) continue;
      const double speed = race_speed(weight, words.word[i - v]);
      if (speed > best) {
        best = speed;
        first = i;
      }
    }
  }
  return first;
}

static inline int32_t draw(const SampleRow& row, uint64_t seed, uint64_t counter) {
  const double temperature = row.params->temperature;
  const int64_t V = row.V;
  const float max = row.scores[argmax(row.scores, V)];
  const bool cut = (row.params->top_k >= 1 && row.params->top_k < static_cast<float>(V)) || row.params->top_p < 1;
  const int32_t last = cut ? last_kept(row, max, temperature) : 0;
  const float last_score = row.scores[last];
  const double least = row.params->min_p < 1 ? row.params->min_p : 1.0;
  for (int32_t v = 0; v < V; v++) {
    const float x = row.scores[v];
    const bool stays = !cut || x > last_score || (x == last_score && v <= last);
    const double w = stays ? weight(x, max, temperature) : 0.0;
    row.scores[v] = w >= least ? static_cast<float>(w) : 0.0f;
  }
  return race(row, seed, counter);
}

static inline float log_softmax_at(const float* logits, int64_t V, int32_t id) {
  const double max = logits[argmax(logits, V)];
  double sum = 0;
  for (int64_t v = 0; v < V; v++) sum += std::exp(logits[v] - max);
  return static_cast<float>(logits[id] - max - std::log(sum));
}

}  // namespace sample_detail

// Returns the class; V in 1 .. 65536.
static inline int32_t sample_row(const SampleRow& row) {
  const uint64_t seed = row.rng[0] | uint64_t{row.rng[1]} << 32;
  const uint64_t counter = row.rng[2] | uint64_t{row.rng[3]} << 32;
  sample_detail::adjust(row);
  const int32_t id =
      row.params->temperature > 0 ? sample_detail::draw(row, seed, counter) : sample_detail::argmax(row.scores, row.V);
  row.rng[2] = static_cast<uint32_t>(counter + 1);
  row.rng[3] = static_cast<uint32_t>((counter + 1) >> 32);
  if (row.logprob) *row.logprob = sample_detail::log_softmax_at(row.logits, row.V, id);
  if (row.seen) row.seen[id] = 1;
  return id;
}

}  // namespace mb
