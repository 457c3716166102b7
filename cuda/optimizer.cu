// The global gradient norm, and AdamW (Loshchilov & Hutter 2019, algorithm 2); equations in native/ref/optimizer.h.
//
// A model has hundreds of parameters, many of them small, so a launch takes a list of tensors in its parameters and its
// blocks share the elements of all of them. A tensor with gaps between rows is listed row by row.
#include <cmath>
#include <cstring>

#include "check.h"
#include "optimizer.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

constexpr int kThreads = 256;

// Vectors of 4 along n elements of `Arrays` arrays; a list fills most of the 4 KB of parameters a kernel may have.
template <int Arrays, int Capacity>
struct TensorList {
  float* data[Capacity][Arrays];
  int64_t n[Capacity];
  int32_t first_block[Capacity];  // of the launch
  int32_t count;
};

struct Share {
  int tensor;
  int64_t begin, end;
};

// The elements of this block.
template <int kChunk, class List>
__device__ __forceinline__ Share share_of_block(const List& list) {
  int low = 0, high = list.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (list.first_block[middle] <= static_cast<int>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t begin = (static_cast<int>(blockIdx.x) - list.first_block[low]) * int64_t{kChunk};
  return {low, begin, min(list.n[low], begin + kChunk)};
}

// Collects runs of elements and launches whenever the list is full.
template <int Arrays, int Capacity, int kChunk, class LaunchList>
struct Lister {
  LaunchList launch_list;  // Status(const List&, unsigned blocks)
  TensorList<Arrays, Capacity> list = {};
  int64_t blocks = 0;

  Status add(float* const (&data)[Arrays], int64_t n) {
    if (n == 0) return {};
    if (list.count == Capacity || blocks + ceil_div(n, kChunk) > INT32_MAX) MB_TRY(flush());
    std::memcpy(list.data[list.count], data, sizeof data);
    list.n[list.count] = n;
    list.first_block[list.count++] = static_cast<int32_t>(blocks);
    blocks += ceil_div(n, kChunk);
    return {};
  }

  Status flush() {
    if (blocks == 0) return {};
    MB_TRY(launch_list(list, static_cast<unsigned>(blocks)));
    list.count = 0;
    blocks = 0;
    return {};
  }
};

// Calls add(row, n) for each run of neighbouring elements.
template <class Add>
Status for_each_run(int64_t rows, int64_t cols, bool contiguous, Add add) {
  if (contiguous) return add(int64_t{0}, rows * cols);
  for (int64_t r = 0; r < rows; r++) MB_TRY(add(r, cols));
  return {};
}

template <int Arrays, class List>
__device__ __forceinline__ bool whole_vectors(const List& list, int tensor) {
  uintptr_t bits = 0;
#pragma unroll
  for (int i = 0; i < Arrays; i++) bits |= reinterpret_cast<uintptr_t>(list.data[tensor][i]);
  return bits % 16 == 0;
}

constexpr int kNormChunk = 16384, kNormCapacity = 180;
using NormList = TensorList<1, kNormCapacity>;
static_assert(sizeof(NormList) <= 4000);

__device__ __forceinline__ float square_sum(const float (&g)[4]) {
  return g[0] * g[0] + g[1] * g[1] + (g[2] * g[2] + g[3] * g[3]);
}

// partial[block] = sum of g^2 over its elements.
__global__ void __launch_bounds__(kThreads) squares_kernel(const __grid_constant__ NormList list, float* partial) {
  __shared__ float room[kThreads / 32];
  const Share share = share_of_block<kNormChunk>(list);
  const float* g = list.data[share.tensor][0];
  float sum = 0;
  if (whole_vectors<1>(list, share.tensor)) {
    const int64_t whole = share.end - (share.end - share.begin) % 4;
#pragma unroll 4
    for (int64_t i = share.begin + int64_t{threadIdx.x} * 4; i < whole; i += kThreads * 4) {
      float v[4];
      load_vector<4>(g + i, v);
      sum += square_sum(v);
    }
    if (whole + threadIdx.x < share.end) sum += g[whole + threadIdx.x] * g[whole + threadIdx.x];
  } else {
#pragma unroll 4
    for (int64_t i = share.begin + threadIdx.x; i < share.end; i += kThreads) sum += g[i] * g[i];
  }
  sum = block_sum<kThreads>(sum, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

constexpr int kFinishThreads = 1024;
__global__ void __launch_bounds__(kFinishThreads)
    norm_kernel(const float* partial, int64_t n, double scale, float* norm) {
  __shared__ double room[kFinishThreads / 32];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += kFinishThreads) sum += partial[i];
  sum = block_sum<kFinishThreads>(sum, room);
  if (threadIdx.x == 0) *norm = static_cast<float>(scale * sqrt(sum));
}

// Elements that lie in one run: all, or a row.
int64_t chunks_of(const Tensor& t, int chunk) {
  return t.contiguous() ? ceil_div(t.elems(), chunk) : t.rows() * ceil_div(t.cols(), chunk);
}

Status run_global_norm(const Node& node, const Launch& launch) {
  auto* partial = reinterpret_cast<float*>(launch.scratch);
  int64_t done = 0;
  const auto launch_list = [&](const NormList& list, unsigned blocks) -> Status {
    squares_kernel<<<blocks, kThreads, 0, launch.stream>>>(list, partial + done);
    MB_CUDA_LAUNCHED("global_norm");
    done += blocks;
    return {};
  };
  Lister<1, kNormCapacity, kNormChunk, decltype(launch_list)> lister{launch_list};
  for (int i = 0; i < node.n_in; i++) {
    const Tensor& g = node.in(i);
    MB_TRY(for_each_run(g.rows(), g.cols(), g.contiguous(),
                        [&](int64_t r, int64_t n) { return lister.add({g.row<float>(r)}, n); }));
  }
  MB_TRY(lister.flush());
  norm_kernel<<<1, kFinishThreads, 0, launch.stream>>>(partial, done, node.attr(at::global_norm::attr::scale),
                                                       node.out(at::global_norm::out::norm).ptr<float>());
  MB_CUDA_LAUNCHED("global_norm");
  return {};
}

int64_t global_norm_scratch(const Node& node, const Props&) {
  int64_t chunks = 0;
  for (int i = 0; i < node.n_in; i++) chunks += chunks_of(node.in(i), kNormChunk);
  return chunks * 4;
}

const char* all_f32(const Node& node, const Props&) {
  for (int i = 0; i < node.n_in; i++) {
    if (node.in(i) && node.in(i).dtype != DType::f32) return "an input is not f32";
  }
  for (int i = 0; i < node.n_out; i++) {
    if (node.out(i).dtype != DType::f32) return "an output is not f32";
  }
  return nullptr;
}

constexpr int kAdamChunk = 4096, kAdamCapacity = 88;
enum { kParam, kM, kV, kGrad, kAdamArrays };
using AdamList = TensorList<kAdamArrays, kAdamCapacity>;
static_assert(sizeof(AdamList) <= 4000);

struct AdamArgs {
  const float *scalars, *norm;                 // norm may be null
  float log_beta1, log_beta2;                  // of the exact betas, whose 1 - beta^step would cancel near step 1
  float beta1, beta2, beta1_rest, beta2_rest;  // rest: 1 - beta
  float eps, weight_decay, clip, scale;
};

// What is the same for all elements.
struct AdamStep {
  float factor, decay, rate, m_correction, v_correction;
};

__device__ AdamStep adam_step(const AdamArgs& a) {
  AdamStep s;
  const float step = a.scalars[1];
  s.rate = a.scalars[0];
  s.decay = s.rate * a.weight_decay;
  s.factor = a.scale;
  if (a.clip > 0 && a.norm) s.factor *= fminf(1.0f, a.clip / (*a.norm + 1e-6f));
  s.m_correction = 1.0f / -expm1f(step * a.log_beta1);
  s.v_correction = 1.0f / -expm1f(step * a.log_beta2);
  return s;
}

__device__ __forceinline__ void adam_element(const AdamArgs& a, const AdamStep& s, float& param, float& m, float& v,
                                             float grad) {
  const float g = s.factor * grad;
  m = a.beta1 * m + a.beta1_rest * g;
  v = a.beta2 * v + a.beta2_rest * g * g;
  param -= s.decay * param;
  param -= s.rate * (m * s.m_correction) / (sqrtf(v * s.v_correction) + a.eps);
}

__global__ void __launch_bounds__(kThreads)
    adamw_list_kernel(const __grid_constant__ AdamList list, const __grid_constant__ AdamArgs args) {
  __shared__ AdamStep shared_step;
  const Share share = share_of_block<kAdamChunk>(list);
  float* const(&data)[kAdamArrays] = list.data[share.tensor];
  constexpr int kVectors = kAdamChunk / (kThreads * 4);
  if (threadIdx.x == 0) shared_step = adam_step(args);
  const bool whole = whole_vectors<kAdamArrays>(list, share.tensor) && share.end - share.begin == kAdamChunk;
  if (!whole) {
    __syncthreads();
    for (int64_t i = share.begin + threadIdx.x; i < share.end; i += kThreads) {
      adam_element(args, shared_step, data[kParam][i], data[kM][i], data[kV][i], data[kGrad][i]);
    }
    return;
  }
  // Two vectors of each array are under way before the step is known.
  constexpr int kAhead = 2;
  float value[kAhead][kAdamArrays][4];
  const int64_t first = share.begin + int64_t{threadIdx.x} * 4;
  const auto load = [&](int k) {
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
#pragma unroll
      for (int t = 0; t < kAdamArrays; t++) {
        load_vector<4>(data[t] + first + int64_t{k + i} * kThreads * 4, value[i][t]);
      }
    }
  };
  load(0);
  __syncthreads();
  const AdamStep step = shared_step;
#pragma unroll
  for (int k = 0; k < kVectors; k += kAhead) {
    if (k > 0) load(k);
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        adam_element(args, step, value[i][kParam][j], value[i][kM][j], value[i][kV][j], value[i][kGrad][j]);
      }
#pragma unroll
      for (int t = 0; t < kGrad; t++) {
        store_vector<4>(data[t] + first + int64_t{k + i} * kThreads * 4, value[i][t]);
      }
    }
  }
}

AdamArgs adam_args(const Node& node) {
  namespace attr = at::adamw::attr;
  const double beta1 = node.attr(attr::beta1), beta2 = node.attr(attr::beta2);
  return {node.in(at::adamw::in::scalars).ptr<float>(),
          node.in(at::adamw::in::norm).ptr<float>(),
          static_cast<float>(std::log(beta1)),
          static_cast<float>(std::log(beta2)),
          static_cast<float>(beta1),
          static_cast<float>(beta2),
          static_cast<float>(1 - beta1),
          static_cast<float>(1 - beta2),
          static_cast<float>(node.attr(attr::eps)),
          static_cast<float>(node.attr(attr::weight_decay)),
          static_cast<float>(node.attr(attr::clip)),
          static_cast<float>(node.attr(attr::scale))};
}

Status run_adamw(const Node& node, const Launch& launch) {
  const Node* one = &node;
  return launch_adamw_group(&one, 1, launch);
}

}  // namespace

bool same_adamw_group(const Node& a, const Node& b) {
  namespace in = at::adamw::in;
  if (a.in(in::scalars).data != b.in(in::scalars).data || a.in(in::norm).data != b.in(in::norm).data) return false;
  for (int i = 0; i <= at::adamw::attr::scale; i++) {
    if (a.attr(i) != b.attr(i)) return false;
  }
  return true;
}

Status launch_adamw_group(const Node* const* nodes, int n, const Launch& launch) {
  namespace out = at::adamw::out;
  if (n == 0) return {};
  const AdamArgs args = adam_args(*nodes[0]);
  const auto launch_list = [&](const AdamList& list, unsigned blocks) -> Status {
    adamw_list_kernel<<<blocks, kThreads, 0, launch.stream>>>(list, args);
    MB_CUDA_LAUNCHED("adamw");
    return {};
  };
  Lister<kAdamArrays, kAdamCapacity, kAdamChunk, decltype(launch_list)> lister{launch_list};
  for (int i = 0; i < n; i++) {
    const Tensor &param = nodes[i]->out(out::param), &m = nodes[i]->out(out::m), &v = nodes[i]->out(out::v);
    const Tensor& grad = nodes[i]->in(at::adamw::in::grad);
    const bool contiguous = param.contiguous() && m.contiguous() && v.contiguous() && grad.contiguous();
    MB_TRY(for_each_run(param.rows(), param.cols(), contiguous, [&](int64_t r, int64_t elements) {
      return lister.add({param.row<float>(r), m.row<float>(r), v.row<float>(r), grad.row<float>(r)}, elements);
    }));
  }
  return lister.flush();
}

const Kernel global_norm_kernel = {run_global_norm, global_norm_scratch, all_f32};
const Kernel adamw_kernel = {run_adamw, nullptr, all_f32};

}  // namespace mb::cuda
