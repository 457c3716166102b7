// Rows of a table, y[r] = table[ids[r]], and its gradient dtable[ids[r]] += dy[r].
//
// y, dy (R,D); table, dtable (V,D); ids (R). An id outside 0 .. V-1, which the host refuses, gives a row of zeros and
// no gradient.
//
// The gradient must add thousands of rows into one class in a fixed order and still run at the speed of memory, so rows
// are first sorted by class (a stable radix sort of the ids alone), then summed in slices of kSlice sorted rows. A
// class that lies inside one slice is written at once; one that spans several leaves a partial sum in each, which a
// last kernel adds in order.
#include "check.h"
#include "dtype.cuh"
#include "ids.cuh"
#include "kernel.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

template <int N, class T, class Y>
__global__ void __launch_bounds__(kMapThreads)
    embedding_rows_kernel(const T* table, int64_t table_stride, Ids ids, Y* y, int64_t y_stride, int64_t R, int64_t V,
                          int64_t D) {
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= R) return;
  const int id = ids[r];
  const bool inside = id >= 0 && id < V;
  const T* from = table + (inside ? id : 0) * table_stride;
  for (int64_t c = int64_t{threadIdx.x} * N; c < D; c += int64_t{blockDim.x} * N) {
    float v[N];
    load_vector<N>(from + c, v);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = inside ? v[j] : 0.0f;
    store_vector<N>(y + r * y_stride + c, v);
  }
}

template <int N, class T, class Y>
Status launch_rows(const Tensor& table, const Tensor& ids, const Tensor& y, const Launch& launch) {
  const int64_t R = y.rows(), D = y.cols();
  const dim3 block = row_block(ceil_div(D, N));
  embedding_rows_kernel<N, T, Y><<<static_cast<unsigned>(ceil_div(R, block.y)), block, 0, launch.stream>>>(
      table.ptr<T>(), table.row_stride, ids_of(ids), y.ptr<Y>(), y.row_stride, R, table.rows(), D);
  MB_CUDA_LAUNCHED("embedding");
  return {};
}

Status run_embedding(const Node& node, const Launch& launch) {
  const Tensor &table = node.in(at::embedding::in::table), &ids = node.in(at::embedding::in::ids);
  const Tensor& y = node.out(at::embedding::out::y);
  if (y.elems() == 0) return {};
  return with_activation(table.dtype, [&](auto t) {
    return with_activation(y.dtype, [&](auto u) {
      using T = decltype(t);
      using Y = decltype(u);
      constexpr int N = sizeof(T) == 2 || sizeof(Y) == 2 ? 8 : 4;
      const bool whole = y.cols() % N == 0 && vectors_fit(table, N) && vectors_fit(y, N);
      return whole ? launch_rows<N, T, Y>(table, ids, y, launch) : launch_rows<1, T, Y>(table, ids, y, launch);
    });
  });
}

const char* embedding_why_not(const Node& node, const Props&) {
  if (!is_activation(node.in(at::embedding::in::table))) return "the table is neither f32 nor bf16";
  if (!is_activation(node.out(at::embedding::out::y))) return "y is neither f32 nor bf16";
  return ids_why_not(node.in(at::embedding::in::ids));
}

// The sort. A key is a class; its row goes along, negative (-1 - row) where the id is outside the table.
constexpr int kSortThreads = 256, kSortWarps = kSortThreads / 32, kDigits = 256, kMostTiles = 64;

// Rows that a block sorts; its warps take equal runs of whole warps of rows.
int64_t tile_of(int64_t R) { return std::max<int64_t>(512, ceil_div(R, kMostTiles * kSortThreads) * kSortThreads); }

struct Sorted {
  uint32_t* key;
  int32_t* row;
};

// Reads position i of the first pass (the ids themselves) or of a later one.
struct SortSource {
  Ids ids;
  Sorted sorted;  // key null: the first pass
  int64_t V;
  __device__ __forceinline__ uint32_t key(int64_t i) const {
    if (sorted.key) return sorted.key[i];
    const int id = ids[i];
    return id >= 0 && id < V ? id : 0;
  }
  __device__ __forceinline__ int32_t row(int64_t i) const {
    if (sorted.key) return sorted.row[i];
    const int id = ids[i];
    return id >= 0 && id < V ? static_cast<int32_t>(i) : -1 - static_cast<int32_t>(i);
  }
};

// counts(tiles, kDigits)
__global__ void __launch_bounds__(kSortThreads)
    sort_count_kernel(SortSource from, int shift, int64_t R, int64_t tile, uint32_t* counts) {
  __shared__ uint32_t count[kDigits];
  count[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * tile, end = min(R, begin + tile);
  for (int64_t i = begin + threadIdx.x; i < end; i += kSortThreads) {
    atomicAdd(&count[from.key(i) >> shift & (kDigits - 1)], 1u);
  }
  __syncthreads();
  counts[int64_t{blockIdx.x} * kDigits + threadIdx.x] = count[threadIdx.x];
}

// Where the rows of this block with digit threadIdx.x begin: after all rows of smaller digits, and those of this digit
// in the tiles before.
__device__ __forceinline__ uint32_t first_position(const uint32_t* counts) {
  __shared__ uint32_t warp_total[kSortWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t all = 0, before = 0;
#pragma unroll 16
  for (unsigned t = 0; t < gridDim.x; t++) {
    const uint32_t count = counts[int64_t{t} * kDigits + threadIdx.x];
    all += count;
    before += t < blockIdx.x ? count : 0;
  }
  uint32_t through = all;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t less = __shfl_up_sync(kFullWarp, through, step);
    if (lane >= step) through += less;
  }
  if (lane == 31) warp_total[warp] = through;
  __syncthreads();
  for (int w = 0; w < warp; w++) before += warp_total[w];
  return before + through - all;
}

// Stable: each warp takes a run of the tile in order, and the lanes that share a digit rank by lane.
__global__ void __launch_bounds__(kSortThreads)
    sort_scatter_kernel(SortSource from, Sorted to, int shift, int64_t R, int64_t tile, const uint32_t* counts) {
  __shared__ uint32_t next[kSortWarps][kDigits];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int w = 0; w < kSortWarps; w++) next[w][threadIdx.x] = 0;
  __syncthreads();
  const int64_t run = tile / kSortWarps;
  const int64_t begin = blockIdx.x * tile + warp * run, end = min(R, begin + run);
  for (int64_t i = begin + lane; i < end; i += 32) {
    atomicAdd(&next[warp][from.key(i) >> shift & (kDigits - 1)], 1u);
  }
  uint32_t running = first_position(counts);
  __syncthreads();
  for (int w = 0; w < kSortWarps; w++) {
    const uint32_t count = next[w][threadIdx.x];
    next[w][threadIdx.x] = running;
    running += count;
  }
  __syncthreads();
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t i = first + lane;
    const unsigned active = __ballot_sync(kFullWarp, i < end);
    if (i < end) {
      const uint32_t key = from.key(i), digit = key >> shift & (kDigits - 1);
      const unsigned peers = __match_any_sync(active, digit);
      const uint32_t start = next[warp][digit];
      const uint32_t position = start + __popc(peers & ((1u << lane) - 1));
      __syncwarp(active);
      if (lane == 31 - __clz(peers)) next[warp][digit] = start + __popc(peers);
      to.key[position] = key;
      to.row[position] = from.row(i);
    }
    __syncwarp();
  }
}

constexpr int kSlice = 64;  // sorted rows a block adds
constexpr int kBatch = 8;   // rows a thread loads at once

struct GradArgs {
  Sorted sorted;
  int64_t R, V, D;
  int64_t dy_stride, dtable_stride;
  float* dtable;
  float* partial;  // (slices, 2, D): of the class that began before the slice, and of the one that goes on after it
  bool accumulate;
};

template <int N>
__device__ __forceinline__ void add_to_table(const GradArgs& a, int64_t id, int64_t c, float (&sum)[N]) {
  float* to = a.dtable + id * a.dtable_stride + c;
  if (a.accumulate) {
    float before[N];
    load_vector<N>(to, before);
#pragma unroll
    for (int j = 0; j < N; j++) sum[j] += before[j];
  }
  store_vector<N>(to, sum);
}

// Block (slice, columns).
template <int N, class T>
__global__ void __launch_bounds__(256) sum_slices_by_class_kernel(GradArgs a, const T* dy) {
  __shared__ uint32_t key[kSlice + 2];  // with the neighbours on both sides
  __shared__ int32_t row[kSlice];
  constexpr uint32_t kNone = 0xFFFFFFFFu;
  const int64_t begin = int64_t{blockIdx.x} * kSlice;
  const int n = static_cast<int>(min(int64_t{kSlice}, a.R - begin));
  for (int i = threadIdx.x; i < n + 2; i += blockDim.x) {
    const int64_t p = begin + i - 1;
    key[i] = p >= 0 && p < a.R ? a.sorted.key[p] : kNone;
    if (i < n) row[i] = a.sorted.row[begin + i];
  }
  __syncthreads();
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (c >= a.D) return;
  float sum[N] = {};
  int first = 0;  // of the class in hand
  for (int i0 = 0; i0 < n; i0 += kBatch) {
    alignas(16) T raw[kBatch][N];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (i0 + i < n && row[i0 + i] >= 0) load_raw<N>(dy + row[i0 + i] * a.dy_stride + c, raw[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int p = i0 + i;
      if (p >= n) break;
      if (row[p] >= 0) {
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += to_float(raw[i][j]);
      }
      const uint32_t id = key[p + 1];
      const bool goes_on = key[p + 2] == id;
      if (goes_on && p + 1 < n) continue;
      const bool began_before = first == 0 && key[0] == id;
      if (began_before || goes_on) {
        store_vector<N>(a.partial + (2 * int64_t{blockIdx.x} + (began_before ? 0 : 1)) * a.D + c, sum);
      } else {
        add_to_table<N>(a, id, c, sum);
      }
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] = 0;
      first = p + 1;
    }
  }
}

// The first position whose key is at least `id`, found by a whole warp.
__device__ __forceinline__ int64_t lower_bound(const uint32_t* key, int64_t n, uint32_t id) {
  int64_t low = 0, high = n;  // the answer is in low .. high
  const int lane = threadIdx.x % 32;
  while (low < high) {
    const int64_t step = (high - low + 31) / 32;
    const int64_t p = low + lane * step;
    const unsigned less = __ballot_sync(kFullWarp, p < high && key[p] < id);
    const int n_less = __popc(less);
    if (n_less == 0) return low;
    high = min(high, low + n_less * step);
    low = low + (n_less - 1) * step + 1;
  }
  return low;
}

// Block (class, columns): classes without rows, and those that span slices.
template <int N>
__global__ void __launch_bounds__(256) join_slices_kernel(GradArgs a) {
  const uint32_t id = blockIdx.x;
  __shared__ int64_t bound[2];
  if (threadIdx.x < 64) {  // blocks have at least two warps
    const int64_t at = lower_bound(a.sorted.key, a.R, id + threadIdx.x / 32);
    if (threadIdx.x % 32 == 0) bound[threadIdx.x / 32] = at;
  }
  __syncthreads();
  const int64_t begin = bound[0], end = bound[1];
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (c >= a.D) return;
  float sum[N] = {};
  if (begin == end) {
    if (!a.accumulate) store_vector<N>(a.dtable + id * a.dtable_stride + c, sum);
    return;
  }
  const int64_t first = begin / kSlice, last = (end - 1) / kSlice;
  if (first == last) return;
  load_vector<N>(a.partial + (2 * first + 1) * a.D + c, sum);
#pragma unroll 8
  for (int64_t s = first + 1; s <= last; s++) {
    float part[N];
    load_vector<N>(a.partial + 2 * s * a.D + c, part);
#pragma unroll
    for (int j = 0; j < N; j++) sum[j] += part[j];
  }
  add_to_table<N>(a, id, c, sum);
}

struct GradScratch {
  uint32_t* counts;
  Sorted sorted[2];
  float* partial;
  int64_t bytes;
};

GradScratch grad_scratch(char* base, int64_t R, int64_t D) {
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    char* p = base + at;
    at += ceil_div(bytes, 256) * 256;
    return p;
  };
  GradScratch s;
  s.counts = reinterpret_cast<uint32_t*>(take(kMostTiles * kDigits * 4));
  for (Sorted& sorted : s.sorted) {
    sorted.key = reinterpret_cast<uint32_t*>(take(R * 4));
    sorted.row = reinterpret_cast<int32_t*>(take(R * 4));
  }
  s.partial = reinterpret_cast<float*>(take(ceil_div(R, kSlice) * 2 * D * 4));
  s.bytes = at;
  return s;
}

// Returns which of the two buffers holds the result.
Status sort_rows(const Tensor& ids, int64_t R, int64_t V, const GradScratch& scratch, const Launch& launch,
                 int* result) {
  SortSource from{ids_of(ids), {nullptr, nullptr}, V};
  const int64_t tile = tile_of(R);
  const auto tiles = static_cast<unsigned>(ceil_div(R, tile));
  int shift = 0, to = 0;
  do {
    sort_count_kernel<<<tiles, kSortThreads, 0, launch.stream>>>(from, shift, R, tile, scratch.counts);
    sort_scatter_kernel<<<tiles, kSortThreads, 0, launch.stream>>>(from, scratch.sorted[to], shift, R, tile,
                                                                   scratch.counts);
    MB_CUDA_LAUNCHED("embedding_grad: sort");
    from.sorted = scratch.sorted[to];
    *result = to;
    to ^= 1;
    shift += 8;
  } while (shift < 32 && (V - 1) >> shift != 0);
  return {};
}

unsigned column_threads(int64_t units) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(units, 32) * 32, 64, 256));
}

template <int N, class T>
Status launch_grad(const GradArgs& a, const Tensor& dy, const Launch& launch) {
  const int64_t units = ceil_div(a.D, N);
  const unsigned threads = column_threads(units);
  const dim3 grid(static_cast<unsigned>(ceil_div(a.R, kSlice)), static_cast<unsigned>(ceil_div(units, threads)));
  if (a.R > 0) sum_slices_by_class_kernel<N, T><<<grid, threads, 0, launch.stream>>>(a, dy.ptr<T>());
  constexpr int kJoin = N == 1 ? 1 : 4;
  const int64_t join_units = ceil_div(a.D, kJoin);
  const unsigned join_threads = column_threads(join_units);
  const dim3 join_grid(static_cast<unsigned>(a.V), static_cast<unsigned>(ceil_div(join_units, join_threads)));
  join_slices_kernel<kJoin><<<join_grid, join_threads, 0, launch.stream>>>(a);
  MB_CUDA_LAUNCHED("embedding_grad");
  return {};
}

Status run_embedding_grad(const Node& node, const Launch& launch) {
  const Tensor &dy = node.in(at::embedding_grad::in::dy), &ids = node.in(at::embedding_grad::in::ids);
  const Tensor& dtable = node.out(at::embedding_grad::out::dtable);
  const int64_t R = dy.rows(), V = dtable.rows(), D = dtable.cols();
  if (V * D == 0) return {};
  const GradScratch scratch = grad_scratch(launch.scratch, R, D);
  int result = 0;
  if (R > 0) MB_TRY(sort_rows(ids, R, V, scratch, launch, &result));
  const GradArgs a{scratch.sorted[result],
                   R,
                   V,
                   D,
                   dy.row_stride,
                   dtable.row_stride,
                   dtable.ptr<float>(),
                   scratch.partial,
                   node.attr(at::embedding_grad::attr::accumulate) != 0};
  return with_activation(dy.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = sizeof(T) == 2 ? 8 : 4;
    const bool whole = D % N == 0 && vectors_fit(dy, N) && vectors_fit(dtable, N);
    return whole ? launch_grad<N, T>(a, dy, launch) : launch_grad<1, T>(a, dy, launch);
  });
}

int64_t embedding_grad_scratch(const Node& node, const Props&) {
  const Tensor& dy = node.in(at::embedding_grad::in::dy);
  return grad_scratch(nullptr, dy.rows(), dy.cols()).bytes;
}

const char* embedding_grad_why_not(const Node& node, const Props&) {
  const Tensor& dy = node.in(at::embedding_grad::in::dy);
  if (!is_activation(dy)) return "dy is neither f32 nor bf16";
  if (node.out(at::embedding_grad::out::dtable).dtype != DType::f32) return "dtable is not f32";
  if (dy.rows() >= int64_t{1} << 31) return "dy has 2^31 rows or more";
  return ids_why_not(node.in(at::embedding_grad::in::ids));
}

}  // namespace

const Kernel embedding_kernel = {run_embedding, nullptr, embedding_why_not};
const Kernel embedding_grad_kernel = {run_embedding_grad, embedding_grad_scratch, embedding_grad_why_not};

}  // namespace mb::cuda
