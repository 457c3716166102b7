// Softmax cross-entropy over the classes of logits(R,V), in nats, and its gradient; equations in
// native/ref/cross_entropy.h. A warp takes a row and keeps it in registers; wide rows take a block and two readings.
#include "check.h"
#include "dtype.cuh"
#include "ids.cuh"
#include "kernel.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRowsPerWarp = 4;
constexpr int kWarpElements = 32;  // of a row, that a lane holds

struct LossArgs {
  const void* logits;
  Ids targets;
  int64_t ignore, R, V, stride;
  float *nll, *lse;
  float* sums;      // of nll, one a block
  int32_t* counts;  // of counted rows, one a block
};

// sum_v exp(x[v] - max) - 1: the largest logit itself, whose 1 would swallow what a sure row has beside it, is left
// out.
struct Excess {
  float rest = 0;  // of logits below the largest
  int largest = 0;
  __device__ __forceinline__ void add(float x, float max) {
    rest += x == max ? 0.0f : expf(x - max);
    largest += x == max;
  }
};

// The excess is that of the whole row. A row whose largest logit is infinite has it as its lse, as in the reference.
struct RowLoss {
  float lse, nll;
};
__device__ __forceinline__ RowLoss row_loss(float max, Excess excess, float at_target) {
  if (isinf(max)) return {max, max - at_target};
  const float log_sum = log1pf(excess.rest + static_cast<float>(excess.largest - 1));
  return {max + log_sum, log_sum - (at_target - max)};
}

// Writes row r and returns its share of the loss; one thread.
template <class T>
__device__ __forceinline__ float write_row(const LossArgs& a, const T* row, int64_t r, float max, Excess excess,
                                           bool& counted) {
  const int target = a.targets[r];
  const bool inside = target >= 0 && target < a.V;
  counted = target != a.ignore;
  const RowLoss loss = row_loss(max, excess, inside ? to_float(row[target]) : 0.0f);
  const float nll = !counted ? 0.0f : inside ? loss.nll : __int_as_float(0x7FC00000);
  a.lse[r] = loss.lse;
  a.nll[r] = nll;
  return nll;
}

// Rows of at most 32 * Units * N classes; N 1 takes any alignment.
template <int N, int Units, class T>
__global__ void __launch_bounds__(kThreads) loss_warps_kernel(LossArgs a) {
  __shared__ float shared_sum[kWarps];
  __shared__ int shared_count[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float loss = 0;
  int count = 0;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + warp) * kRowsPerWarp;
#pragma unroll 1
  for (int64_t r = first; r < min(a.R, first + kRowsPerWarp); r++) {
    const T* row = static_cast<const T*>(a.logits) + r * a.stride;
    float x[Units][N];
    float max = -INFINITY;
#pragma unroll
    for (int u = 0; u < Units; u++) {
      const int64_t c = (int64_t{u} * 32 + lane) * N;
      if (c < a.V) load_vector<N>(row + c, x[u]);
#pragma unroll
      for (int j = 0; j < N; j++) {
        if (c >= a.V) x[u][j] = -INFINITY;
        max = fmaxf(max, x[u][j]);
      }
    }
    max = warp_max(max);
    Excess excess;
#pragma unroll
    for (int u = 0; u < Units; u++) {
#pragma unroll
      for (int j = 0; j < N; j++) {
        if ((int64_t{u} * 32 + lane) * N < a.V) excess.add(x[u][j], max);
      }
    }
    excess = {warp_sum(excess.rest), __reduce_add_sync(kFullWarp, excess.largest)};
    if (lane == 0) {
      bool counted;
      loss += write_row(a, row, r, max, excess, counted);
      count += counted;
    }
  }
  if (lane == 0) {
    shared_sum[warp] = loss;
    shared_count[warp] = count;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; w++) {
    loss += shared_sum[w];
    count += shared_count[w];
  }
  a.sums[blockIdx.x] = loss;
  a.counts[blockIdx.x] = count;
}

// A block a row.
template <class T>
__global__ void __launch_bounds__(kThreads) loss_blocks_kernel(LossArgs a) {
  __shared__ float room[2][kWarps];
  __shared__ int count_room[kWarps];
  const int64_t r = blockIdx.x;
  const T* row = static_cast<const T*>(a.logits) + r * a.stride;
  float max = -INFINITY;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < a.V; c += kThreads) max = fmaxf(max, to_float(row[c]));
  max = block_reduce<kThreads>(max, room[0], Max{});
  Excess excess;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < a.V; c += kThreads) excess.add(to_float(row[c]), max);
  excess = {block_sum<kThreads>(excess.rest, room[1]), block_sum<kThreads>(excess.largest, count_room)};
  if (threadIdx.x != 0) return;
  bool counted;
  a.sums[r] = write_row(a, row, r, max, excess, counted);
  a.counts[r] = counted;
}

// loss = the sums over the counts; one block.
constexpr int kFinishThreads = 1024;
__global__ void __launch_bounds__(kFinishThreads)
    loss_mean_kernel(const float* sums, const int32_t* counts, int64_t n, float* loss) {
  __shared__ double room[32];
  __shared__ int64_t count_room[32];
  double sum = 0;
  int64_t count = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kFinishThreads) {
    sum += sums[i];
    count += counts[i];
  }
  sum = block_sum<kFinishThreads>(sum, room);
  count = block_sum<kFinishThreads>(count, count_room);
  if (threadIdx.x == 0) *loss = count ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
}

bool rows_fit_warps(const Tensor& logits) { return logits.cols() <= 32 * kWarpElements; }

// Blocks of the first kernel, each of which leaves one sum.
int64_t loss_blocks(const Tensor& logits) {
  return rows_fit_warps(logits) ? ceil_div(logits.rows(), kWarps * kRowsPerWarp) : logits.rows();
}

template <int N, class T>
void launch_loss_warps(const LossArgs& a, int64_t blocks, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(blocks);
  if (a.V <= 32 * 8) {
    loss_warps_kernel<N, 8 / N, T><<<grid, kThreads, 0, stream>>>(a);
  } else {
    loss_warps_kernel<N, kWarpElements / N, T><<<grid, kThreads, 0, stream>>>(a);
  }
}

Status run_cross_entropy(const Node& node, const Launch& launch) {
  namespace out = at::cross_entropy::out;
  const Tensor &logits = node.in(at::cross_entropy::in::logits), &targets = node.in(at::cross_entropy::in::targets);
  const int64_t blocks = loss_blocks(logits);
  auto* sums = reinterpret_cast<float*>(launch.scratch);
  auto* counts = reinterpret_cast<int32_t*>(sums + blocks);
  const LossArgs a{logits.data,
                   ids_of(targets),
                   static_cast<int64_t>(node.attr(at::cross_entropy::attr::ignore)),
                   logits.rows(),
                   logits.cols(),
                   logits.row_stride,
                   node.out(out::nll).ptr<float>(),
                   node.out(out::lse).ptr<float>(),
                   sums,
                   counts};
  if (blocks > 0) {
    with_activation(logits.dtype, [&](auto t) {
      using T = decltype(t);
      constexpr int N = 16 / sizeof(T);
      if (!rows_fit_warps(logits)) {
        loss_blocks_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, launch.stream>>>(a);
      } else if (a.V % N == 0 && vectors_fit(logits, N)) {
        launch_loss_warps<N, T>(a, blocks, launch.stream);
      } else {
        launch_loss_warps<1, T>(a, blocks, launch.stream);
      }
    });
  }
  loss_mean_kernel<<<1, kFinishThreads, 0, launch.stream>>>(sums, counts, blocks, node.out(out::loss).ptr<float>());
  MB_CUDA_LAUNCHED("cross_entropy");
  return {};
}

int64_t cross_entropy_scratch(const Node& node, const Props&) {
  return loss_blocks(node.in(at::cross_entropy::in::logits)) * 8;
}

const char* cross_entropy_why_not(const Node& node, const Props&) {
  if (!is_activation(node.in(at::cross_entropy::in::logits))) return "logits are neither f32 nor bf16";
  for (int i = 0; i < node.n_out; i++) {
    if (node.out(i).dtype != DType::f32) return "loss, nll or lse is not f32";
    if (!node.out(i).contiguous()) return "nll or lse has gaps between rows";
  }
  return ids_why_not(node.in(at::cross_entropy::in::targets));
}

// counted = number of targets unlike `ignore`; one block.
__global__ void __launch_bounds__(kFinishThreads)
    count_targets_kernel(Ids targets, int64_t R, int64_t ignore, int32_t* counted) {
  __shared__ int room[32];
  int count = 0;
#pragma unroll 8
  for (int64_t r = threadIdx.x; r < R; r += kFinishThreads) count += targets[r] != ignore;
  count = block_sum<kFinishThreads>(count, room);
  if (threadIdx.x == 0) *counted = count;
}

struct LossGradArgs {
  const void* logits;
  void* dlogits;
  Ids targets;
  const float *dloss, *lse;
  const int32_t* counted;
  int64_t ignore, R, V, stride, dstride;
};

// Threads along x share a row; a block has blockDim.y rows.
template <int N, class T, class Y>
__global__ void __launch_bounds__(kMapThreads) loss_grad_kernel(LossGradArgs a) {
  const int64_t r = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (r >= a.R) return;
  const int64_t target = a.targets[r];
  const bool counted = target != a.ignore, inside = target >= 0 && target < a.V;
  float share = counted ? *a.dloss / static_cast<float>(*a.counted) : 0.0f;
  if (counted && !inside) share = __int_as_float(0x7FC00000);
  const float lse = a.lse[r];
  const T* row = static_cast<const T*>(a.logits) + r * a.stride;
  Y* out = static_cast<Y*>(a.dlogits) + r * a.dstride;
  for (int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N; c < a.V;
       c += int64_t{gridDim.y} * blockDim.x * N) {
    float x[N];
    load_vector<N>(row + c, x);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float log_p = x[j] - lse;
      x[j] = counted ? share * (c + j == target ? expm1f(log_p) : expf(log_p)) : 0.0f;
    }
    store_vector<N>(out + c, x);
  }
}

template <int N, class T, class Y>
void launch_loss_grad(const LossGradArgs& a, cudaStream_t stream) {
  const int64_t units = ceil_div(a.V, N);
  const dim3 block = row_block(units);
  const dim3 grid(static_cast<unsigned>(ceil_div(a.R, block.y)),
                  static_cast<unsigned>(std::clamp<int64_t>(units / (4 * block.x), 1, 64)));
  loss_grad_kernel<N, T, Y><<<grid, block, 0, stream>>>(a);
}

Status run_cross_entropy_grad(const Node& node, const Launch& launch) {
  namespace in = at::cross_entropy_grad::in;
  const Tensor &logits = node.in(in::logits), &dlogits = node.out(at::cross_entropy_grad::out::dlogits);
  if (logits.elems() == 0) return {};
  auto* counted = reinterpret_cast<int32_t*>(launch.scratch);
  const LossGradArgs a{logits.data,
                       dlogits.data,
                       ids_of(node.in(in::targets)),
                       node.in(in::dloss).ptr<float>(),
                       node.in(in::lse).ptr<float>(),
                       counted,
                       static_cast<int64_t>(node.attr(at::cross_entropy_grad::attr::ignore)),
                       logits.rows(),
                       logits.cols(),
                       logits.row_stride,
                       dlogits.row_stride};
  count_targets_kernel<<<1, kFinishThreads, 0, launch.stream>>>(a.targets, a.R, a.ignore, counted);
  with_activation(logits.dtype, [&](auto t) {
    with_activation(dlogits.dtype, [&](auto u) {
      using T = decltype(t);
      using Y = decltype(u);
      constexpr int N = 16 / sizeof(T);
      const bool whole = a.V % N == 0 && vectors_fit(logits, N) && vectors_fit(dlogits, N);
      whole ? launch_loss_grad<N, T, Y>(a, launch.stream) : launch_loss_grad<1, T, Y>(a, launch.stream);
    });
  });
  MB_CUDA_LAUNCHED("cross_entropy_grad");
  return {};
}

int64_t cross_entropy_grad_scratch(const Node&, const Props&) { return sizeof(int32_t); }

const char* cross_entropy_grad_why_not(const Node& node, const Props&) {
  namespace in = at::cross_entropy_grad::in;
  if (!is_activation(node.in(in::logits))) return "logits are neither f32 nor bf16";
  if (!is_activation(node.out(at::cross_entropy_grad::out::dlogits))) return "dlogits are neither f32 nor bf16";
  if (node.in(in::dloss).dtype != DType::f32 || node.in(in::lse).dtype != DType::f32) return "dloss or lse is not f32";
  if (!node.in(in::lse).contiguous()) return "lse has gaps between rows";
  return ids_why_not(node.in(in::targets));
}

}  // namespace

const Kernel cross_entropy_kernel = {run_cross_entropy, cross_entropy_scratch, cross_entropy_why_not};
const Kernel cross_entropy_grad_kernel = {run_cross_entropy_grad, cross_entropy_grad_scratch,
                                          cross_entropy_grad_why_not};

}  // namespace mb::cuda
