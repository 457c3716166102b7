// Softmax cross-entropy over the classes of logits(R,V), in nats, and its gradient; equations in
// native/ref/cross_entropy.h. 8 or 32 lanes take a row and keep it in registers; wide rows take a block and two
// readings.
#include "check.h"
#include "dtype.cuh"
#include "ids.cuh"
#include "kernel.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kHeld = 32;  // elements of a row that a lane holds

// exp of what is at most a little above 0, to 2 ulp there and 1e-7 |x| relative below.
__device__ __forceinline__ float exp_below(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}

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
    rest += x == max ? 0.0f : exp_below(x - max);
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

// Rows of at most Lanes * kHeld classes; N 1 takes any alignment.
template <int N, int Lanes, class T>
__global__ void __launch_bounds__(kThreads) loss_lanes_kernel(LossArgs a) {
  constexpr int kUnits = kHeld / N, kRows = kThreads / Lanes;
  __shared__ float room[kWarps];
  __shared__ int count_room[kWarps];
  const int lane = threadIdx.x % Lanes;
  const int64_t r = int64_t{blockIdx.x} * kRows + threadIdx.x / Lanes;
  const int64_t V = r < a.R ? a.V : 0;
  const T* row = static_cast<const T*>(a.logits) + r * a.stride;
  float x[kUnits][N];
  float max = -INFINITY;
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    const int c = (u * Lanes + lane) * N;
    if (c < V) load_vector<N>(row + c, x[u]);
  }
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    if ((u * Lanes + lane) * N >= V) continue;
#pragma unroll
    for (int j = 0; j < N; j++) max = fmaxf(max, x[u][j]);
  }
  max = warp_reduce<Lanes>(max, Max{});
  Excess excess;
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    if ((u * Lanes + lane) * N >= V) continue;
#pragma unroll
    for (int j = 0; j < N; j++) excess.add(x[u][j], max);
  }
  excess = {warp_sum<Lanes>(excess.rest), warp_sum<Lanes>(excess.largest)};
  float loss = 0;
  bool counted = false;
  if (lane == 0 && r < a.R) loss = write_row(a, row, r, max, excess, counted);
  loss = block_sum<kThreads>(loss, room);
  const int count = block_sum<kThreads>(static_cast<int>(counted), count_room);
  if (threadIdx.x != 0) return;
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

// Lanes that share a row; 0: a block takes it.
int lanes_of_row(int64_t V) { return V <= 8 * kHeld ? 8 : V <= 32 * kHeld ? 32 : 0; }

// Blocks of the first kernel, each of which leaves one sum.
int64_t loss_blocks(const Tensor& logits) {
  const int lanes = lanes_of_row(logits.cols());
  return lanes ? ceil_div(logits.rows(), kThreads / lanes) : logits.rows();
}

template <int N, class T>
void launch_loss_lanes(const LossArgs& a, int64_t blocks, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(blocks);
  if (lanes_of_row(a.V) == 8) {
    loss_lanes_kernel<N, 8, T><<<grid, kThreads, 0, stream>>>(a);
  } else {
    loss_lanes_kernel<N, 32, T><<<grid, kThreads, 0, stream>>>(a);
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
      if (lanes_of_row(a.V) == 0) {
        loss_blocks_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, launch.stream>>>(a);
      } else if (a.V % N == 0 && vectors_fit(logits, N)) {
        launch_loss_lanes<N, T>(a, blocks, launch.stream);
      } else {
        launch_loss_lanes<1, T>(a, blocks, launch.stream);
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
    count_targets_kernel(Ids targets, bool whole_vectors, int64_t R, int64_t ignore, int32_t* counted) {
  __shared__ int room[32];
  const int64_t whole = whole_vectors ? R / kIdsAtOnce * kIdsAtOnce : 0;
  int count = 0;
#pragma unroll 8
  for (int64_t r = int64_t{threadIdx.x} * kIdsAtOnce; r < whole; r += kFinishThreads * kIdsAtOnce) {
    const Ids4 ids = targets.four_at(r);
    count += (ids.id[0] != ignore) + (ids.id[1] != ignore) + (ids.id[2] != ignore) + (ids.id[3] != ignore);
  }
#pragma unroll 8
  for (int64_t r = whole + threadIdx.x; r < R; r += kFinishThreads) count += targets[r] != ignore;
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
      x[j] = counted ? share * (c + j == target ? expm1f(log_p) : exp_below(log_p)) : 0.0f;
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
  const bool whole_vectors = reinterpret_cast<uintptr_t>(a.targets.data) % 16 == 0;
  count_targets_kernel<<<1, kFinishThreads, 0, launch.stream>>>(a.targets, whole_vectors, a.R, a.ignore, counted);
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
