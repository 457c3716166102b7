// Draws one class from one row of logits, as native/core/sample_row.h defines it, by the working warps of a decoding
// block. Vocabularies are small here, so a class finds its place in the order by comparing itself with all others.
// Sums run in another order than there, and logarithms may differ in their last bit, which could change a draw only
// where two classes arrive within 1e-15 of each other, or top_p falls between two as close.
#pragma once
#include "../../native/core/sample_row.h"
#include "product.cuh"

namespace mb::cuda::decode {

// Room in shared memory: V weights, V scores, and what the warps add up.
struct DrawRoom {
  double* weights;  // V
  double* partial;  // 2 * kWarps
  float* scores;    // V
  int* result;      // 1
  __device__ DrawRoom(char* at, int V)
      : weights(reinterpret_cast<double*>(at)),
        partial(weights + V),
        scores(reinterpret_cast<float*>(partial + 2 * kWarps)),
        result(reinterpret_cast<int*>(scores + V)) {}
  static constexpr int bytes(int V) { return V * 12 + 2 * kWarps * 8 + 16; }
};

template <class Op>
__device__ double workers_reduce(double v, double* partial, Op op) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = op(v, __shfl_xor_sync(kFullWarp, v, step));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  worker_barrier();
  v = partial[0];
  for (int w = 1; w < kWarps; w++) v = op(v, partial[w]);
  worker_barrier();
  return v;
}
__device__ __forceinline__ double workers_sum(double v, double* partial) { return workers_reduce(v, partial, Plus{}); }
__device__ __forceinline__ double workers_max(double v, double* partial) {
  return workers_reduce(v, partial, [](double a, double b) { return fmax(a, b); });
}

// The class with the largest value that is above 0, the lowest of them; 0 where there is none. One warp.
template <class Value>
__device__ int largest(int V, Value value) {
  Largest best;
#pragma unroll 1
  for (int v = threadIdx.x % 32; v < V; v += 32) {
    const double own = value(v);
    if (own > best.value) best = {own, v};
  }
  return warp_largest(best).place;
}

// weights(v) = 0 for the classes that top_k, top_p and min_p leave out.
__device__ inline void cut(const SampleParams& params, const DrawRoom& room, int V) {
  const bool order = (params.top_k >= 1 && params.top_k < static_cast<float>(V)) || params.top_p < 1;
  const int k = params.top_k >= 1 && params.top_k < static_cast<float>(V) ? static_cast<int>(params.top_k) : V;
  constexpr int kMost = kMaxClasses / kWorkers;  // classes of a thread
  uint32_t keep = 0;
  double mass = 0;
  double before[kMost];
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    const int v = threadIdx.x + i * kWorkers;
    if (v >= V) break;
    const float score = room.scores[v];
    int rank = 0;
    double sum = 0;
#pragma unroll 4
    for (int u = 0; order && u < V; u++) {
      const bool ahead = room.scores[u] > score || (room.scores[u] == score && u < v);
      rank += ahead;
      sum += ahead ? room.weights[u] : 0.0;
    }
    before[i] = rank == 0 ? -1.0 : sum;
    if (rank < k) keep |= 1u << i, mass += room.weights[v];
  }
  const double target = params.top_p * workers_sum(mass, room.partial);
  const double least = params.min_p < 1 ? params.min_p : 1.0;
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    const int v = threadIdx.x + i * kWorkers;
    if (v >= V) break;
    const bool stays = (keep >> i & 1) && (params.top_p >= 1 || before[i] < target);
    const double w = room.weights[v];
    room.weights[v] = stays && w >= least ? static_cast<double>(static_cast<float>(w)) : 0.0;
  }
}

// All workers call this and get the class; V <= kMaxClasses.
__device__ inline int draw_row(const SampleRow& row, const DrawRoom& room) {
  const int V = static_cast<int>(row.V);
  const SampleParams params = *row.params;
  const uint64_t seed = row.rng[0] | uint64_t{row.rng[1]} << 32;
  const uint64_t counter = row.rng[2] | uint64_t{row.rng[3]} << 32;
  const bool penalise = row.seen && params.repetition_penalty != 1.0f;
  float max_score = -INFINITY;
#pragma unroll 1
  for (int v = threadIdx.x; v < V; v += kWorkers) {
    float x = row.logits[v];
    if (penalise && row.seen[v]) {
      x = x > 0 ? __fdiv_rn(x, params.repetition_penalty) : __fmul_rn(x, params.repetition_penalty);
    }
    if (row.bias) x = __fadd_rn(x, row.bias[v]);
    x = isnan(x) ? -INFINITY : x;
    room.scores[v] = x;
    max_score = fmaxf(max_score, x);
  }
  const float max = static_cast<float>(workers_max(max_score, room.partial));
  if (params.temperature > 0) {
    const double temperature = params.temperature;
#pragma unroll 1
    for (int v = threadIdx.x; v < V; v += kWorkers) {
      const float x = room.scores[v];
      room.weights[v] = x == max ? 1.0 : exp((static_cast<double>(x) - max) / temperature);
    }
    worker_barrier();
    cut(params, room, V);
    // The race: every worker has classes of its own.
#pragma unroll 1
    for (int v = threadIdx.x; v < V; v += kWorkers) {
      const float w = static_cast<float>(room.weights[v]);
      room.weights[v] = w > 0 ? sample_detail::race_speed(w, philox_word(seed, counter, v)) : 0.0;
    }
  } else {
#pragma unroll 1
    for (int v = threadIdx.x; v < V; v += kWorkers) room.weights[v] = room.scores[v] == max ? 1.0 : 0.0;
  }
  worker_barrier();
  if (threadIdx.x < 32) {
    const int id = largest(V, [&](int v) { return room.weights[v]; });
    if (threadIdx.x == 0) *room.result = id;
  }
  worker_barrier();
  const int id = *room.result;
  if (threadIdx.x == 0) {
    row.rng[2] = static_cast<uint32_t>(counter + 1);
    row.rng[3] = static_cast<uint32_t>((counter + 1) >> 32);
    if (row.seen) row.seen[id] = 1;
  }
  return id;
}

// Log softmax of the unmodified logits at the drawn class, in nats. All workers call this.
__device__ inline void store_logprob(const SampleRow& row, const DrawRoom& room, int id) {
  const int V = static_cast<int>(row.V);
  double top = -INFINITY;
#pragma unroll 1
  for (int v = threadIdx.x; v < V; v += kWorkers) top = fmax(top, static_cast<double>(row.logits[v]));
  top = workers_max(top, room.partial);
  double total = 0;
#pragma unroll 1
  for (int v = threadIdx.x; v < V; v += kWorkers) total += exp(row.logits[v] - top);
  total = workers_sum(total, room.partial);
  if (threadIdx.x == 0) *row.logprob = static_cast<float>(row.logits[id] - top - log(total));
}

}  // namespace mb::cuda::decode
