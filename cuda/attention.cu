// Causal attention and the cache it reads in decoding; equations in native/ops.def. Computed online by tiles of keys
// (Milakov & Gimelshein 2018; Dao 2023), never a row of all scores in memory.
//
// Many steps: a block has 32 queries of a head and walks over the keys they see; in bf16 tensor cores do it
// (attention_mma.cu). Few steps, as in decoding: a block has a piece of the keys for one query, and the block that is
// done last puts the pieces together, in their order whichever it is; the limit is reading keys and values once, though
// the query heads of one key head read it separately, from the second-level cache. Sums are float32 fused multiply-adds
// whatever the operands are.
#include <algorithm>

#include "attention.cuh"
#include "attention_mma.h"
#include "check.h"
#include "early.cuh"

namespace mb::cuda {
namespace {

namespace in = at::attention::in;
namespace out = at::attention::out;

constexpr int kThreads = kAttentionThreads, kWarps = kThreads / 32;
constexpr int kFewSteps = 8;                  // up to here keys are always split
constexpr int kMostPieces = 128;              // into so many pieces,
constexpr int kFewKeys = 64, kKeyRound = 16;  // each of at least so many keys and a multiple of these
constexpr int kBlocksTogether = 4;            // of them, on one multiprocessor
constexpr int kLaneColumns = kMaxHeadWidth / 32;

struct Args {
  AttentionSizes size;
  ScanRows q, k, v, y, lse;  // lse may be absent
  const int32_t* length;     // may be null
  float* partials;           // [b][h][t][piece]: top, sum, P weighted values
  uint32_t* done;            // [b][h][t]: pieces that are done, 0 before and after
  int pieces;                // of the keys of a query, at most
};

template <int kColumns>
__global__ void __launch_bounds__(kThreads) attend_many(const Args a) {
  extern __shared__ float shared[];
  const AttentionSizes& z = a.size;
  float* queries = shared;
  float* keys = queries + kTile * tile_stride(z.P);  // then values
  float* weights = keys + kTile * tile_stride(z.P);
  const int64_t b = blockIdx.y / z.H, t0 = int64_t{blockIdx.x} * kTile, n = min(int64_t{kTile}, z.T - t0);
  const int h = blockIdx.y % z.H, column = z.key_column(h), r = threadIdx.x / kShare, c = threadIdx.x % kShare;
  const int64_t first = z.first_key(a.length, b), last = first + t0 + r, end = first < 0 ? 0 : first + t0 + n;
  load_tile(a.q, b * z.T + t0, n, h * z.P, z.P, queries);
  float top = kNoScore, sum = 0, o[kColumns] = {};
  for (int64_t s0 = 0; s0 < end; s0 += kTile) {
    const int64_t some = min(int64_t{kTile}, end - s0);
    load_tile(a.k, b * z.S + s0, some, column, z.P, keys);
    __syncthreads();
    float score[kScores];
    multiply_rows(queries + r * tile_stride(z.P), keys, z.P, score);
    float best = top, part = 0;
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      score[i] = s0 + c + kShare * i <= last ? score[i] * z.scale : kNoScore;
      best = fmaxf(best, score[i]);
    }
    best = warp_reduce<kShare>(best, Max{});
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const float w = exp2f(score[i] - best);
      weights[r * tile_stride(kTile) + c + kShare * i] = w;
      part += w;
    }
    const float shrink = exp2f(top - best);
    sum = sum * shrink + warp_sum<kShare>(part);
    top = best;
#pragma unroll
    for (int j = 0; j < kColumns; j++) o[j] *= shrink;
    __syncthreads();
    load_tile(a.v, b * z.S + s0, some, column, z.P, keys);
    __syncthreads();
    add_rows(weights + r * tile_stride(kTile), keys, some, z.P, o);
    __syncthreads();
  }
  if (r >= n) return;
  const int64_t row = b * z.T + t0 + r;
  store_row(a.y, row, h * z.P, z.P, first < 0 ? nanf("") : 1.0f / sum, o);
  if (a.lse.data && c == 0) a.lse.store(row, h, first < 0 ? nanf("") : kLn2 * (top + log2f(sum)));
}

// A block's piece of the keys for one query of one head. Where the pieces lie follows from the keys that the query sees
// alone, so a query has the same bits whatever runs beside it. Blocks of all heads run side by side: together they read
// whole rows of the cache.
struct Piece {
  int64_t b, t, begin, end;  // keys [begin, end) of those that the query sees; may be none
  int64_t pieces;            // of this query that have any; 0: the sequence does not fit its cache
  int h, warp, lane;
  __device__ __forceinline__ explicit Piece(const Args& a) : b(blockIdx.x / a.size.H), t(blockIdx.z) {
    const int64_t first = a.size.first_key(a.length, b);
    const unsigned keys = first < 0 ? 0 : static_cast<unsigned>(first + t + 1), of_all = a.pieces * kKeyRound;
    const unsigned size = max(kFewKeys, (keys + of_all - 1) / of_all * kKeyRound);
    begin = int64_t{blockIdx.y} * size;
    end = min(begin + size, int64_t{keys});
    pieces = (keys + size - 1) / size;
    h = blockIdx.x % a.size.H;
    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
  }
  __device__ __forceinline__ int64_t query(const Args& a) const { return (b * a.size.H + h) * a.size.T + t; }
};

// Whether the block's piece has no keys: then there is nothing to do but to say so of a sequence that has none at all.
__device__ __forceinline__ bool is_empty(const Args& a, const Piece& piece) {
  if (piece.begin < piece.end) return false;
  if (piece.pieces == 0 && blockIdx.y == 0) {
    const int64_t row = piece.b * a.size.T + piece.t;
    for (int d = threadIdx.x; d < a.size.P; d += kThreads) a.y.store(row, piece.h * a.size.P + d, nanf(""));
    if (a.lse.data && threadIdx.x == 0) a.lse.store(row, piece.h, nanf(""));
  }
  return true;
}

// Whether this block is the last of the query's to come here. Then it sees what the others wrote before they came, by
// loads that pass the first-level cache by.
__device__ __forceinline__ bool is_last(const Args& a, const Piece& piece) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  const unsigned others = static_cast<unsigned>(piece.pieces) - 1;
  if (threadIdx.x == 0) last = atomicInc(a.done + piece.query(a), others) == others;
  __syncthreads();
  __threadfence();
  return last;
}

// The query's y and lse from its pieces.
__device__ __forceinline__ void gather_pieces(const Args& a, const Piece& own) {
  const AttentionSizes& z = a.size;
  const int64_t row = own.b * z.T + own.t;
  const float* from = a.partials + own.query(a) * a.pieces * (z.P + 2);
  __shared__ float weights[kMostPieces], tops[kWarps], sums[kWarps];
  const int piece = threadIdx.x;
  const bool has = piece < own.pieces;
  const float top_of = has ? __ldcg(from + piece * (z.P + 2)) : kNoScore;
  const float top = block_reduce<kThreads>(top_of, tops, Max{}), weight = has ? exp2f(top_of - top) : 0.0f;
  __syncthreads();
  if (piece < kMostPieces) weights[piece] = weight;
  const float sum = block_sum<kThreads>(has ? __ldcg(from + piece * (z.P + 2) + 1) * weight : 0.0f, sums);
  constexpr int kAtOnce = 16;
  static_assert(kMostPieces % kAtOnce == 0);
  for (int d = threadIdx.x; d < z.P; d += kThreads) {
    float value = 0;
    for (int p = 0; p < own.pieces; p += kAtOnce) {
      float part[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        part[i] = p + i < own.pieces ? __ldcg(from + (p + i) * (z.P + 2) + 2 + d) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) value = fmaf(weights[p + i], part[i], value);
    }
    a.y.store(row, own.h * z.P + d, value / sum);
  }
  if (a.lse.data && threadIdx.x == 0) a.lse.store(row, own.h, kLn2 * (top + log2f(sum)));
}

// The piece's sums of all warps, to y where there is no other piece. keep: puts a warp's P weighted values.
template <class Keep>
__device__ __forceinline__ void gather_warps(const Args& a, const Piece& piece, float top, float sum, Keep keep) {
  __shared__ float tops[kWarps], sums[kWarps], values[kWarps][kMaxHeadWidth];
  const AttentionSizes& z = a.size;
  if (piece.lane == 0) tops[piece.warp] = top, sums[piece.warp] = sum;
  keep(values[piece.warp]);
  __syncthreads();
  float best = tops[0], total = 0;
#pragma unroll
  for (int w = 1; w < kWarps; w++) best = fmaxf(best, tops[w]);
#pragma unroll
  for (int w = 0; w < kWarps; w++) total += sums[w] * exp2f(tops[w] - best);
  const bool alone = piece.pieces == 1;
  const int64_t row = piece.b * z.T + piece.t;
  float* to = a.partials + (piece.query(a) * a.pieces + blockIdx.y) * (z.P + 2);
  for (int d = threadIdx.x; d < z.P; d += kThreads) {
    float value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) value += values[w][d] * exp2f(tops[w] - best);
    if (alone) {
      a.y.store(row, piece.h * z.P + d, value / total);
    } else {
      to[2 + d] = value;
    }
  }
  if (alone) {
    if (a.lse.data && threadIdx.x == 0) a.lse.store(row, piece.h, kLn2 * (best + log2f(total)));
    return;
  }
  if (threadIdx.x == 0) to[0] = best, to[1] = total;
  if (is_last(a, piece)) gather_pieces(a, piece);
}

// A block's warps take every fourth group of kAtOnce keys of the piece.
__global__ void __launch_bounds__(kThreads) attend_few(const Args a) {
  let_next_start();
  wait_for_previous();
  constexpr int kAtOnce = 4;
  const AttentionSizes& z = a.size;
  const Piece piece(a);
  const auto [b, t, begin, end, pieces, h, warp, lane] = piece;
  const int column = z.key_column(h);
  if (is_empty(a, piece)) return;  // no thread of the block goes on
  float q[kLaneColumns], o[kLaneColumns] = {}, top = kNoScore, sum = 0;
#pragma unroll
  for (int j = 0; j < kLaneColumns; j++) {
    const int d = lane + 32 * j;
    q[j] = d < z.P ? a.q.load(b * z.T + t, h * z.P + d) * z.scale : 0.0f;
  }
  for (int64_t s0 = begin + warp * kAtOnce; s0 < end; s0 += kWarps * kAtOnce) {
    float score[kAtOnce], best = top;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int64_t row = b * z.S + min(s0 + i, end - 1);
      float part = 0;
#pragma unroll
      for (int j = 0; j < kLaneColumns; j++) {
        const int d = lane + 32 * j;
        if (d < z.P) part = fmaf(q[j], a.k.load(row, column + d), part);
      }
      score[i] = warp_sum(part);
      if (s0 + i >= end) score[i] = kNoScore;
      best = fmaxf(best, score[i]);
    }
    const float shrink = exp2f(top - best);
    sum *= shrink;
    top = best;
#pragma unroll
    for (int j = 0; j < kLaneColumns; j++) o[j] *= shrink;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      if (s0 + i >= end) break;
      const float w = exp2f(score[i] - top);
      sum += w;
#pragma unroll
      for (int j = 0; j < kLaneColumns; j++) {
        const int d = lane + 32 * j;
        if (d < z.P) o[j] = fmaf(w, a.v.load(b * z.S + s0 + i, column + d), o[j]);
      }
    }
  }
  gather_warps(a, piece, top, sum, [&](float* to) {
#pragma unroll
    for (int j = 0; j < kLaneColumns; j++) to[lane + 32 * j] = o[j];
  });
}

// The same of rows that lie in whole vectors: kLanes lanes have 16 bytes of a key each, so a warp reads 32 / kLanes
// keys at once, and each group of lanes has a top and sums of its own until the end.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksTogether) attend_few_wide(const Args a) {
  let_next_start();
  wait_for_previous();
  constexpr int kEach = 16 / sizeof(T), kGroups = 32 / kLanes, kAtOnce = 8, kRound = kWarps * kGroups;
  const AttentionSizes& z = a.size;
  const Piece piece(a);
  const auto [b, t, begin, end, pieces, h, warp, lane] = piece;
  const int column = lane % kLanes * kEach;
  if (is_empty(a, piece)) return;  // no thread of the block goes on
  const T* keys = static_cast<const T*>(a.k.data) + b * z.S * a.k.stride + z.key_column(h) + column;
  const T* values = static_cast<const T*>(a.v.data) + b * z.S * a.v.stride + z.key_column(h) + column;
  float q[kEach], o[kEach] = {}, top = kNoScore, sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; j++) q[j] = a.q.load(b * z.T + t, h * z.P + column + j) * z.scale;
  for (int64_t s0 = begin + warp * kGroups + lane / kLanes; s0 - lane / kLanes < end; s0 += kRound * kAtOnce) {
    T k[kAtOnce][kEach], v[kAtOnce][kEach];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int64_t s = min(s0 + i * kRound, end - 1);
      load_raw<kEach>(keys + s * a.k.stride, k[i]);
      load_raw<kEach>(values + s * a.v.stride, v[i]);
    }
    float score[kAtOnce], best = top;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      float part = 0;
#pragma unroll
      for (int j = 0; j < kEach; j++) part = fmaf(q[j], to_float(k[i][j]), part);
      score[i] = warp_sum<kLanes>(part);
      if (s0 + i * kRound < end) best = fmaxf(best, score[i]);
    }
    const float shrink = exp2f(top - best);
    sum *= shrink;
    top = best;
#pragma unroll
    for (int j = 0; j < kEach; j++) o[j] *= shrink;
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const float w = s0 + i * kRound < end ? exp2f(score[i] - top) : 0.0f;
      sum += w;
#pragma unroll
      for (int j = 0; j < kEach; j++) o[j] = fmaf(w, to_float(v[i][j]), o[j]);
    }
  }
  // The groups of the warp together.
  const float best = warp_reduce(top, Max{}), shrink = exp2f(top - best);
  sum *= shrink;
#pragma unroll
  for (int step = 16; step >= kLanes; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
#pragma unroll
  for (int j = 0; j < kEach; j++) {
    o[j] *= shrink;
#pragma unroll
    for (int step = 16; step >= kLanes; step /= 2) o[j] += __shfl_xor_sync(kFullWarp, o[j], step);
  }
  gather_warps(a, piece, best, sum, [&](float* to) {
    if (lane >= kLanes) return;
#pragma unroll
    for (int j = 0; j < kEach; j++) to[column + j] = o[j];
  });
}

// As many as run together for one query, so that all end at once.
int pieces_of(const AttentionSizes& z, const Props& props) {
  const int64_t together = int64_t{props.sm_count} * kBlocksTogether / z.H;
  return static_cast<int>(std::clamp<int64_t>(together, 1, std::min<int64_t>(kMostPieces, ceil_div(z.S, kFewKeys))));
}

// attend_few's kernel for the node: by whole vectors where keys and values lie so.
using FewKernel = void (*)(Args);
template <class T>
FewKernel few_kernel_of(const Node& node, int P) {
  const bool vectors = rows_aligned(node.in(in::k), 16) && rows_aligned(node.in(in::v), 16);
  switch (vectors ? P * static_cast<int>(sizeof(T)) / 16 : 0) {
    case 4:
      return attend_few_wide<T, 4>;
    case 8:
      return attend_few_wide<T, 8>;
    case 16:
      return attend_few_wide<T, 16>;
    case 32:
      return attend_few_wide<T, 32>;
    default:
      return attend_few;
  }
}
FewKernel few_kernel(const Node& node, int P) {
  const DType k = node.in(in::k).dtype;
  if (k != node.in(in::v).dtype || P % 8) return attend_few;
  return k == DType::bf16 ? few_kernel_of<bf16>(node, P) : few_kernel_of<float>(node, P);
}

enum class Way { pieces, tensor_cores, tiles };

Way way_of(const Node& node, const AttentionSizes& z, const Props& props) {
  if (z.T <= kFewSteps) return Way::pieces;
  if (takes_attention_mma(node)) return Way::tensor_cores;
  // Where tiles of queries would leave multiprocessors without work, keys are split too.
  const bool few_tiles = z.B * z.H * ceil_div(z.T, kTile) < props.sm_count;
  return few_tiles && z.T <= 64 && z.S >= 1024 ? Way::pieces : Way::tiles;
}

// Queries of all heads, which have a counter each.
static_assert(kFewSteps * 65535 <= kCounters);

int64_t attention_scratch(const Node& node, const Props& props) {
  const AttentionSizes z(node);
  if (way_of(node, z, props) != Way::pieces) return 0;
  return z.B * z.H * z.T * pieces_of(z, props) * (z.P + 2) * 4;
}

Status run_attention(const Node& node, const Launch& launch) {
  const AttentionSizes z(node);
  if (node.in(in::q).elems() == 0) return {};
  const Way way = way_of(node, z, *launch.props);
  if (way == Way::tensor_cores) return launch_attention_mma(node, launch);
  const Args a{z,
               ScanRows(node.in(in::q)),
               ScanRows(node.in(in::k)),
               ScanRows(node.in(in::v)),
               ScanRows(node.out(out::y)),
               ScanRows(node.out(out::lse)),
               node.in(in::length).ptr<int32_t>(),
               reinterpret_cast<float*>(launch.scratch),
               launch.props->counters,
               pieces_of(z, *launch.props)};
  const unsigned heads = static_cast<unsigned>(z.B * z.H);
  if (way == Way::pieces) {
    const dim3 grid(heads, static_cast<unsigned>(a.pieces), static_cast<unsigned>(z.T));
    return start_early(few_kernel(node, z.P), grid, kThreads, 0, *launch.props, launch.stream, a);
  }
  const int bytes = static_cast<int>(2 * tile_bytes(z.P) + weights_bytes());
  const dim3 grid(static_cast<unsigned>(ceil_div(z.T, kTile)), heads);
  return with_columns(z.P, [&](auto columns) -> Status {
    const auto kernel = attend_many<columns()>;
    MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, kThreads, bytes, launch.stream>>>(a);
    MB_CUDA_LAUNCHED("attention");
    return {};
  });
}

const char* why_not_attention(const Node& node, const Props&) {
  for (const Tensor* t : {&node.in(in::q), &node.in(in::k), &node.in(in::v), &node.out(out::y)}) {
    if (!is_activation(*t)) return "cuda: attention takes q, k, v and y in f32 or bf16";
  }
  if (node.out(out::lse) && node.out(out::lse).dtype != DType::f32) return "cuda: attention gives lse in f32";
  if (node.in(in::length) && node.in(in::length).dtype != DType::i32) return "cuda: attention takes lengths in i32";
  return attention_why_not(AttentionSizes(node));
}

struct CacheArgs {
  ScanRows cache, x;
  const int32_t* length;
  int64_t T, S, D;
};

// kEach neighbouring elements a thread.
template <class Cache, class X, int kEach>
__global__ void __launch_bounds__(kThreads) write_cache(const CacheArgs p) {
  let_next_start();
  wait_for_previous();
  const int64_t b = blockIdx.x / p.T, s = p.length[b] + blockIdx.x % p.T;
  if (s < 0 || s >= p.S) return;
  const X* from = static_cast<const X*>(p.x.data) + blockIdx.x * p.x.stride;
  Cache* to = static_cast<Cache*>(const_cast<void*>(p.cache.data)) + (b * p.S + s) * p.cache.stride;
  for (int64_t d = threadIdx.x * kEach; d < p.D; d += kThreads * kEach) {
    float v[kEach];
    load_vector<kEach>(from + d, v);
    store_vector<kEach>(to + d, v);
  }
}

Status run_cache_write(const Node& node, const Launch& launch) {
  const Tensor &cache = node.out(at::cache_write::out::cache), &x = node.in(at::cache_write::in::x);
  if (x.elems() == 0) return {};
  const CacheArgs p{ScanRows(cache), ScanRows(x),  node.in(at::cache_write::in::length).ptr<int32_t>(),
                    x.dim(1),        cache.dim(1), x.dim(2)};
  const bool vectors = p.D % 8 == 0 && vectors_fit(x, 8) && vectors_fit(cache, 8);
  return with_activation(cache.dtype, [&](auto to) {
    return with_activation(x.dtype, [&](auto from) {
      using Cache = decltype(to);
      using X = decltype(from);
      return start_early(vectors ? write_cache<Cache, X, 8> : write_cache<Cache, X, 1>, static_cast<unsigned>(x.rows()),
                         kThreads, 0, *launch.props, launch.stream, p);
    });
  });
}

const char* why_not_cache_write(const Node& node, const Props&) {
  if (!is_activation(node.out(at::cache_write::out::cache)) || !is_activation(node.in(at::cache_write::in::x))) {
    return "cuda: cache_write takes x and the cache in f32 or bf16";
  }
  return node.in(at::cache_write::in::length).dtype == DType::i32 ? nullptr : "cuda: cache_write takes lengths in i32";
}

__global__ void advance_lengths(int32_t* to, const int32_t* from, int64_t n, int32_t steps) {
  const int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b < n) to[b] = from[b] + steps;
}

Status run_advance(const Node& node, const Launch& launch) {
  const int64_t n = node.in(0).elems();
  if (n == 0) return {};
  advance_lengths<<<static_cast<unsigned>(ceil_div(n, kThreads)), kThreads, 0, launch.stream>>>(
      node.out(0).ptr<int32_t>(), node.in(0).ptr<int32_t>(), n,
      static_cast<int32_t>(node.attr(at::advance::attr::steps)));
  MB_CUDA_LAUNCHED("advance");
  return {};
}

const char* why_not_advance(const Node& node, const Props&) {
  return node.in(0).dtype == DType::i32 && node.out(0).dtype == DType::i32 ? nullptr
                                                                           : "cuda: advance takes lengths in i32";
}

}  // namespace

const Kernel attention_kernel = {run_attention, attention_scratch, why_not_attention};
const Kernel cache_write_kernel = {run_cache_write, nullptr, why_not_cache_write};
const Kernel advance_kernel = {run_advance, nullptr, why_not_advance};

}  // namespace mb::cuda
