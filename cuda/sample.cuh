// Draws one class from one row of logits by one block, as native/core/sample_row.h defines it: the same random words
// and weights, and the race in double. Logarithms may differ from there in their last bit, which could change a draw
// only where two classes arrive within 1e-15 of each other.
#pragma once
#include "../native/core/sample_row.h"
#include "reduce.cuh"

namespace mb::cuda {

// Shared memory of a drawing block of Threads threads; 32 KB and a little.
template <int Threads>
struct SampleShared {
  static constexpr int kBits = Threads <= 256   ? 4
                               : Threads <= 512 ? 3
                                                : 2;  // of a key, that one pass of select settles
  static constexpr int kBins = 1 << kBits, kWarps = Threads / 32;
  union {
    double bins[kBins][Threads];
    struct {
      alignas(16) uint32_t key[Threads];  // of each class
      int order[Threads];                 // classes in falling order
      double weight[Threads];             // in that order
    } sorted;
  };
  double bin_sum[kBins];
  double warp_double[kWarps];
  uint32_t warp_word[kWarps];
};

namespace sampling {

// Unsigned keys in the order of floats; both zeros have one key.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float float_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

// Equal scores weigh 1 at the maximum even where it is infinite.
__device__ __forceinline__ double weight(float score, float max, double temperature) {
  return score == max ? 1.0 : exp((static_cast<double>(score) - max) / temperature);
}

// A place in the falling order of (score, then rising class): everything up to and including it stays.
struct Border {
  uint32_t key;
  int id;
  __device__ __forceinline__ bool keeps(uint32_t k, int v) const { return k > key || (k == key && v <= id); }
};

// The steps of a draw. Thread t owns the classes t, t + Threads, ... in `scores` and `weights`, so only reductions need
// barriers; each starts with one, which frees the shared room of the last.
template <int Threads>
struct Draw {
  static constexpr int kWarps = Threads / 32;
  static constexpr uint32_t kNone = 0xFFFFFFFFu;
  SampleShared<Threads>& shared;
  int V;
  float* scores;
  double* weights;

  __device__ __forceinline__ int lane() const { return threadIdx.x % 32; }
  __device__ __forceinline__ int warp() const { return threadIdx.x / 32; }

  __device__ double sum(double v) {
    __syncthreads();
    return block_sum<Threads>(v, shared.warp_double);
  }

  template <class Op>
  __device__ uint32_t reduce_words(uint32_t of_warp, Op op) {
    __syncthreads();
    if (lane() == 0) shared.warp_word[warp()] = of_warp;
    __syncthreads();
    uint32_t all = shared.warp_word[0];
#pragma unroll
    for (int w = 1; w < kWarps; w++) all = op(all, shared.warp_word[w]);
    return all;
  }
  __device__ uint32_t max_word(uint32_t v) {
    return reduce_words(__reduce_max_sync(kFullWarp, v), [](uint32_t a, uint32_t b) { return max(a, b); });
  }
  __device__ uint32_t min_word(uint32_t v) {
    return reduce_words(__reduce_min_sync(kFullWarp, v), [](uint32_t a, uint32_t b) { return min(a, b); });
  }

  __device__ int lowest_class_with(uint32_t key) {
    uint32_t lowest = kNone;
    for (int v = threadIdx.x; v < V; v += Threads) {
      if (key_of(scores[v]) == key) lowest = min(lowest, static_cast<uint32_t>(v));
    }
    return static_cast<int>(min_word(lowest));
  }

  struct Scanned {
    double through;  // sum over this thread and those before it
    double total;    // over all
  };
  __device__ Scanned scan(double own) {
    double through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const double before = __shfl_up_sync(kFullWarp, through, step);
      if (lane() >= step) through += before;
    }
    __syncthreads();
    if (lane() == 31) shared.warp_double[warp()] = through;
    __syncthreads();
    double total = 0, before = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      if (w == warp()) before = total;
      total += shared.warp_double[w];
    }
    return {before + through, total};
  }

  // The first class with a value at which the sum of value(v) over 0 .. v exceeds the target; where none does, the last
  // with a value, or 0. Runs of classes that cannot hold it are skipped by their sum.
  template <class Value>
  __device__ int first_exceeding(Value value, double target) {
    constexpr int kRun = 8;  // classes of a thread
    double base = 0;
    uint32_t last = 0;
    for (int run = 0; run < V; run += kRun * Threads) {
      if (V > Threads) {
        double own = 0;
#pragma unroll
        for (int i = 0; i < kRun; i++) {
          const int v = run + i * Threads + threadIdx.x;
          const double x = v < V ? value(v) : 0.0;
          if (x != 0) last = v;
          own += x;
        }
        const double total = sum(own);
        if (!(base + total > target)) {
          base += total;
          continue;
        }
      }
      for (int first = run; first < min(V, run + kRun * Threads); first += Threads) {
        const int v = first + threadIdx.x;
        const double own = v < V ? value(v) : 0.0;
        if (own != 0) last = v;
        const Scanned s = scan(own);
        if (base + s.total > target) {
          const bool found = own != 0 && base + s.through > target;
          const uint32_t id = min_word(found ? static_cast<uint32_t>(v) : kNone);
          if (id != kNone) return static_cast<int>(id);
        }
        base += s.total;
      }
    }
    return static_cast<int>(max_word(last));
  }

  // Adds value(v) over classes in falling order of score until the sum reaches the target, which is above 0: the key
  // where it does, and the sum over greater keys. Not found: the sum stays below.
  struct Selected {
    bool found;
    uint32_t key;
    double above;
  };
  template <class Value>
  __device__ Selected select(Value value, double target) {
    using Room = SampleShared<Threads>;
    Selected s{true, 0, 0};
    for (int shift = 32 - Room::kBits; shift >= 0; shift -= Room::kBits) {
      __syncthreads();
#pragma unroll
      for (int b = 0; b < Room::kBins; b++) shared.bins[b][threadIdx.x] = 0;
      constexpr int kAhead = 4;  // scores under way
      for (int first = threadIdx.x; first < V; first += kAhead * Threads) {
        uint32_t key[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
          key[i] = first + i * Threads < V ? key_of(scores[first + i * Threads]) : ~s.key;
        }
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
          const bool inside = (uint64_t{key[i] ^ s.key} >> (shift + Room::kBits)) == 0;
          if (inside && first + i * Threads < V) {
            shared.bins[key[i] >> shift & (Room::kBins - 1)][threadIdx.x] += value(first + i * Threads);
          }
        }
      }
      __syncthreads();
      for (int b = warp(); b < Room::kBins; b += kWarps) {
        double bin = 0;
#pragma unroll
        for (int w = 0; w < kWarps; w++) bin += shared.bins[b][w * 32 + lane()];
        bin = warp_sum(bin);
        if (lane() == 0) shared.bin_sum[b] = bin;
      }
      __syncthreads();
      int digit = -1;
      double sum = s.above;
      for (int b = Room::kBins - 1; b >= 0; b--) {
        const double bin = shared.bin_sum[b];
        if (bin == 0) continue;
        digit = b;
        s.above = sum;  // where rounding keeps the sum below the target, its last bin is meant
        sum += bin;
        if (sum >= target) break;
      }
      if (shift == 32 - Room::kBits && !(sum >= target)) return {false, 0, 0};
      s.key |= static_cast<uint32_t>(max(digit, 0)) << shift;
    }
    return s;
  }

  // The n-th class, in rising order, whose score has this key.
  __device__ Border nth_with(uint32_t key, double n) {
    return {key, first_exceeding([&](int v) { return key_of(scores[v]) == key ? 1.0 : 0.0; }, n - 0.5)};
  }

  __device__ Border top_k_border(int k) {
    const Selected s = select([](int) { return 1.0; }, k);
    return nth_with(s.key, k - s.above);
  }

  __device__ Border top_p_border(Border kept, float top_p, float max, double temperature) {
    double mass = 0;
    for (int v = threadIdx.x; v < V; v += Threads) {
      if (kept.keeps(key_of(scores[v]), v)) mass += weights[v];
    }
    // The most probable class weighs 1 and always stays.
    const double target = fmax(top_p * sum(mass), 1.0);
    const Selected s = select([&](int v) { return weights[v]; }, target);
    if (!s.found) return kept;
    const Border border =
        nth_with(s.key, fmax(1.0, ceil((target - s.above) / weight(float_of(s.key), max, temperature))));
    return kept.keeps(border.key, border.id) ? border : kept;
  }

  // The border of top_k and top_p where every class has a thread: it counts the classes before its own.
  __device__ Border border_of_few(int k, float top_p) {
    auto& sorted = shared.sorted;
    const int v = threadIdx.x;
    const uint32_t key = v < V ? key_of(scores[v]) : 0;  // 0: after all others
    __syncthreads();
    sorted.key[v] = key;
    __syncthreads();
    const auto four_at = [&](int u) { return *reinterpret_cast<const uint4*>(sorted.key + u); };
    int rank = 0;
    const int own = warp() * 32;
#pragma unroll 8
    for (int u = 0; u < own; u += 4) {
      const uint4 four = four_at(u);
      rank += (four.x >= key) + (four.y >= key) + (four.z >= key) + (four.w >= key);
    }
#pragma unroll 8
    for (int u = own; u < own + 32; u++) rank += sorted.key[u] > key || (sorted.key[u] == key && u < v);
#pragma unroll 8
    for (int u = own + 32; u < Threads; u += 4) {
      const uint4 four = four_at(u);
      rank += (four.x > key) + (four.y > key) + (four.z > key) + (four.w > key);
    }
    if (v < V) {
      sorted.order[rank] = v;
      sorted.weight[rank] = weights[v];
    }
    __syncthreads();
    int last = k - 1;
    if (top_p < 1) {
      const Scanned s = scan(v < k ? sorted.weight[v] : 0.0);
      const bool reached = v < k && s.through >= top_p * s.total;
      last = static_cast<int>(min(min_word(reached ? static_cast<uint32_t>(v) : kNone), static_cast<uint32_t>(last)));
    }
    const int id = sorted.order[last];
    return {sorted.key[id], id};
  }

  __device__ Border border_of_many(bool cut_k, int k, float top_p, float max, double temperature) {
    Border border{0, V};  // keeps all
    if (cut_k) border = top_k_border(k);
    return top_p < 1 ? top_p_border(border, top_p, max, temperature) : border;
  }

  // The class with the largest value that is above 0, the lowest of them; 0 where there is none.
  template <class Value>
  __device__ int largest(Value value) {
    Largest best;
    for (int v = threadIdx.x; v < V; v += Threads) {
      const double own = value(v);
      if (own > best.value) best = {own, v};
    }
    best = warp_largest(best);
    __syncthreads();
    if (lane() == 0) {
      shared.warp_double[warp()] = best.value;
      shared.warp_word[warp()] = static_cast<uint32_t>(best.place);
    }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; w++) best.add(shared.warp_double[w], static_cast<int>(shared.warp_word[w]));
    return best.place;
  }

  __device__ int draw(const SampleParams& params, float max, uint64_t seed, uint64_t counter) {
    const double temperature = params.temperature;
    for (int v = threadIdx.x; v < V; v += Threads) weights[v] = weight(scores[v], max, temperature);
    const bool cut_k = params.top_k >= 1 && params.top_k < static_cast<float>(V);
    const int k = cut_k ? static_cast<int>(params.top_k) : V;
    Border border{0, V};  // keeps all
    if (cut_k || params.top_p < 1) {
      border = V <= Threads ? border_of_few(k, params.top_p) : border_of_many(cut_k, k, params.top_p, max, temperature);
    }
    const double least = params.min_p < 1 ? params.min_p : 1.0;
    return largest([&](int v) {
      const double w = border.keeps(key_of(scores[v]), v) ? weights[v] : 0.0;
      const float kept = w >= least ? static_cast<float>(w) : 0.0f;
      return kept > 0 ? sample_detail::race_speed(kept, philox_word(seed, counter, v)) : 0.0;
    });
  }

  // log softmax of the unmodified logits at `id`, in nats; NaN where one of them is.
  __device__ float log_softmax_at(const float* logits, int id) {
    uint32_t top = 0;
    for (int v = threadIdx.x; v < V; v += Threads) {
      if (!isnan(logits[v])) top = ::max(top, key_of(logits[v]));
    }
    const float max = float_of(max_word(top));
    double total = 0;
    for (int v = threadIdx.x; v < V; v += Threads) total += expf(logits[v] - max);
    total = sum(total);
    return static_cast<float>(static_cast<double>(logits[id]) - max - log(total));
  }
};

}  // namespace sampling

// Every thread of a block of Threads threads calls this and gets the class; V in 1 .. 65536. row.scores is scratch for
// V floats and `weights` for V doubles, in shared or global memory; row.order is not used. Updates rng, seen and
// logprob. All that the row points to must be visible to the block; a barrier before its next use is the caller's.
template <int Threads>
__device__ int sample_row_block(const SampleRow& row, double* weights, SampleShared<Threads>& shared) {
  using namespace sampling;
  const int V = static_cast<int>(row.V);
  const SampleParams params = *row.params;
  const uint64_t seed = row.rng[0] | uint64_t{row.rng[1]} << 32;
  const uint64_t counter = row.rng[2] | uint64_t{row.rng[3]} << 32;
  Draw<Threads> draw{shared, V, row.scores, weights};
  const float penalty = params.repetition_penalty;
  const bool penalise = row.seen && penalty != 1.0f;
  uint32_t top = 0;
  for (int v = threadIdx.x; v < V; v += Threads) {
    float x = row.logits[v];
    if (penalise && row.seen[v]) x = x > 0 ? __fdiv_rn(x, penalty) : __fmul_rn(x, penalty);
    if (row.bias) x = __fadd_rn(x, row.bias[v]);
    x = isnan(x) ? -INFINITY : x;
    row.scores[v] = x;
    top = max(top, key_of(x));
  }
  top = draw.max_word(top);
  const int id = params.temperature > 0 ? draw.draw(params, float_of(top), seed, counter) : draw.lowest_class_with(top);
  const float logprob = row.logprob ? draw.log_softmax_at(row.logits, id) : 0.0f;
  if (threadIdx.x == 0) {
    row.rng[2] = static_cast<uint32_t>(counter + 1);
    row.rng[3] = static_cast<uint32_t>((counter + 1) >> 32);
    if (row.logprob) *row.logprob = logprob;
    if (row.seen) row.seen[id] = 1;
  }
  return id;
}

}  // namespace mb::cuda
