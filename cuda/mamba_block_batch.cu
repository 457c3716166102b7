// One step of mamba_block for many sequences: the products on tensor cores, with activations rounded to bf16, and each
// stage in a kernel of its own. y(B,D) = x + out_proj(scan(conv(in_proj(norm(x))))).
//
// A step reads every weight and reads and writes every state once; at 353M and 64 sequences these are 13 and 17 MB a
// layer, and that is the limit. So each kernel starts before the one in front of it has ended (early.cuh), fetches what
// does not depend on it (weights, states) and waits only then. What is fetched when is what measurement says: states
// that are read while in_proj still writes, or out_proj's weights any earlier, hold up the products, which wait for
// activations from the second-level cache.
#include <algorithm>

#include "check.h"
#include "copy.cuh"
#include "dtype.cuh"
#include "early.cuh"
#include "mamba_block_batch.h"
#include "mma.cuh"
#include "reduce.cuh"
#include "scan.cuh"
#include "vector.cuh"

namespace mb::cuda {
namespace {

namespace in = at::mamba_block::in;
namespace to = at::mamba_block::out;

constexpr int kStates = 16;
constexpr int kMaxTaps = 4;  // of the convolution

// What a later kernel will read, fetched into the second-level cache by all threads of a grid.
struct Ahead {
  const void* data;
  int64_t bytes;
};
__device__ __forceinline__ void prefetch(const Ahead& a) {
  const int64_t threads = int64_t{gridDim.x} * gridDim.y * blockDim.x;
  const int64_t me = (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t at = me * kLine; at < a.bytes; at += threads * kLine) {
    prefetch_line(static_cast<const char*>(a.data) + at);
  }
}
Ahead ahead(const Tensor& t) { return {t.data, t.elems() * dtype_size(t.dtype)}; }

struct Sizes {
  int64_t batch, d, e, rank, taps, selected, padded;
  explicit Sizes(const Node& node)
      : batch(node.in(in::ssm_state).dim(0)),
        d(node.in(in::x).cols()),
        e(node.in(in::A).dim(0)),
        rank(node.in(in::dt_proj).cols()),
        taps(node.in(in::conv_weight).cols()),
        selected(rank + 2 * kStates),
        padded((batch + 63) / 64 * 64) {}
};

// Scratch: normed (B,D), u (B,E), gate (B,E), scanned (B,E) in bf16, selected (B,rank+2N) in f32. B is rounded up to
// whole tiles, whose last rows are read but never used.
struct Parts {
  bf16 *normed, *u, *gate, *scanned;
  float* selected;
  int64_t bytes;
  Parts(const Sizes& s, char* scratch) {
    int64_t at = 0;
    const auto take = [&](int64_t count) {
      char* p = scratch + at;
      at += (count + 255) / 256 * 256;
      return p;
    };
    normed = reinterpret_cast<bf16*>(take(s.padded * s.d * 2));
    u = reinterpret_cast<bf16*>(take(s.padded * s.e * 2));
    gate = reinterpret_cast<bf16*>(take(s.padded * s.e * 2));
    scanned = reinterpret_cast<bf16*>(take(s.padded * s.e * 2));
    selected = reinterpret_cast<float*>(take(s.padded * s.selected * 4));
    bytes = at;
  }
};

// --- norm ---

constexpr int kNormThreads = 128;

struct Norm {
  const float *x, *weight, *bias;  // (B,D), (D), (D) or null: RMSNorm
  bf16* y;                         // (B,D)
  int64_t x_stride;
  Ahead ahead[4];  // what the kernels up to the scan read
  int d;
  float eps;
};

// A block a row. The squares are those of differences from the mean, so they do not cancel.
__global__ void __launch_bounds__(kNormThreads) norm(const Norm p) {
  __shared__ float sums[kNormThreads / 32], squares[kNormThreads / 32];
  let_next_start();
  for (const Ahead& a : p.ahead) prefetch(a);
  wait_for_previous();
  const float* x = p.x + blockIdx.x * p.x_stride;
  bf16* y = p.y + int64_t{blockIdx.x} * p.d;
  float mean = 0.0f;
  if (p.bias) {
    float sum = 0.0f;
    for (int j = threadIdx.x * 4; j < p.d; j += kNormThreads * 4) {
      const float4 v = *reinterpret_cast<const float4*>(x + j);
      sum += (v.x + v.y) + (v.z + v.w);
    }
    mean = block_sum<kNormThreads>(sum, sums) / static_cast<float>(p.d);
  }
  float square = 0.0f;
  for (int j = threadIdx.x * 4; j < p.d; j += kNormThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(x + j);
    const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
    square += (a * a + b * b) + (c * c + d * d);
  }
  const float rstd = rsqrtf(block_sum<kNormThreads>(square, squares) / static_cast<float>(p.d) + p.eps);
  for (int j = threadIdx.x * 4; j < p.d; j += kNormThreads * 4) {
    float v[4], w[4], b[4] = {};
    load_vector<4>(x + j, v);
    load_vector<4>(p.weight + j, w);
    if (p.bias) load_vector<4>(p.bias + j, b);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = fmaf((v[i] - mean) * rstd, w[i], b[i]);
    store_vector<4>(y + j, v);
  }
}

// --- products ---

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kMostWeights = 64 << 10;  // bytes that a block keeps
constexpr int kChunk = 32;              // columns that a warp multiplies at once: eight a lane, 16 bytes of bf16

struct Product {
  const void* weight;  // (M,K), contiguous
  const float* scale;  // (M) of i8 weights
  const bf16* x;       // (B,K), contiguous, B padded to whole tiles
  int m, k, batch;
};

// A tile of 16 MTiles rows of the weight by 8 NTiles sequences, made in turns of kWarps chunks of columns. Each warp
// takes one chunk for the whole tile, so each lane fetches what itself will multiply, in the order of fragments, and
// waits for nobody. Weights may come before the kernels in front have ended: all of them if they are few, else those of
// the first turns, as many as there are turns of activations under way.
template <class W, int MTiles, int NTiles>
struct Tile {
  static constexpr int kM = 16 * MTiles, kN = 8 * NTiles;
  static constexpr int kAhead = NTiles >= 8 ? 3 : NTiles >= 4 ? 6 : 8;
  static constexpr int kResident = MTiles * NTiles > 16 ? 1 : 2;  // blocks that registers must suffice for
  static constexpr int kPitch = kM + 4;  // of sums: lanes of a fragment write to different banks
  static constexpr int kLane = 8 * sizeof(W);
  static constexpr int kWeightTurn = MTiles * 2 * kThreads * kLane;      // bytes
  static constexpr int kEach = (kM * kN / 4 + kThreads - 1) / kThreads;  // quads of rows that a thread finishes

  __host__ __device__ static constexpr int weight_turns(int k) {
    const int turns = (k / kChunk + kWarps - 1) / kWarps;
    return turns * kWeightTurn <= kMostWeights ? turns : turns < kAhead ? turns : kAhead;
  }
  __host__ __device__ static constexpr int shared_bytes(int k) {
    const int factors = weight_turns(k) * kWeightTurn + kAhead * NTiles * kThreads * 16,
              sums = kWarps * kN * kPitch * 4;
    return factors > sums ? factors : sums;
  }

  char *weights, *activations;
  int lane, warp;
  int turns, first;  // of the warp; which of its chunks comes first
  int kept;          // turns whose weights are in shared memory

  __device__ __forceinline__ Tile(char* shared, int k) : weights(shared) {
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    turns = (k / kChunk - warp + kWarps - 1) / kWarps;
    first = turns > 0 ? blockIdx.x % turns : 0;  // blocks read the same activations, so not all in one order
    kept = weight_turns(k);
    activations = shared + kept * kWeightTurn;
  }
  __device__ __forceinline__ W* weight_slot(int turn, int half) const {
    return reinterpret_cast<W*>(weights + turn % kept * kWeightTurn + (half * kThreads + threadIdx.x) * kLane);
  }
  __device__ __forceinline__ bf16* activation_slot(int turn, int n) const {
    return reinterpret_cast<bf16*>(activations + ((turn % kAhead * NTiles + n) * kThreads + threadIdx.x) * 16);
  }
  // The first of a lane's columns.
  __device__ __forceinline__ int column(int turn) const {
    const int t = first + turn;
    return ((t < turns ? t : t - turns) * kWarps + warp) * kChunk + lane % 4 * 8;
  }

  __device__ __forceinline__ void fetch_weights(const Product& p, int turn) const {
    const int top = static_cast<int>(blockIdx.x) * kM + lane / 4;
    const W* from = static_cast<const W*>(p.weight) + column(turn);
#pragma unroll
    for (int h = 0; h < 2 * MTiles; h++)
      copy_async<kLane>(weight_slot(turn, h), from + min(top + 8 * h, p.m - 1) * p.k);
  }
  __device__ __forceinline__ void fetch_first_weights(const Product& p) const {
    for (int turn = 0; turn < min(kept, turns); turn++) fetch_weights(p, turn);
  }

  // Leaves the warps' sums in shared memory, (kWarps,kN,kPitch), for finish().
  __device__ __forceinline__ void multiply(const Product& p) const {
    const bf16* x = p.x + (int64_t{blockIdx.y} * kN + lane / 4) * p.k;
    const auto fetch = [&](int turn) {
      if (turn < turns) {
        if (turn >= kept) fetch_weights(p, turn);
        const bf16* from = x + column(turn);
#pragma unroll
        for (int n = 0; n < NTiles; n++) copy_async<16>(activation_slot(turn, n), from + n * 8 * p.k);
      }
      commit_copies();
    };
    float acc[MTiles][NTiles][4] = {};
#pragma unroll
    for (int turn = 0; turn < kAhead; turn++) fetch(turn);
    for (int turn = 0; turn < turns; turn++) {
      wait_for_groups<kAhead - 1>();
      Fragment a[2 * MTiles];
#pragma unroll
      for (int h = 0; h < 2 * MTiles; h++) a[h] = fragment_at(weight_slot(turn, h));
#pragma unroll
      for (int n = 0; n < NTiles; n++) {
        const Fragment b = fragment_at(activation_slot(turn, n));
#pragma unroll
        for (int m = 0; m < MTiles; m++) multiply_add(acc[m][n], a[2 * m], a[2 * m + 1], b);
      }
      fetch(turn + kAhead);
    }
    __syncthreads();  // the sums take the place of the factors
    float* sums = reinterpret_cast<float*>(weights) + (warp * kN + lane % 4 * 2) * kPitch + lane / 4;
#pragma unroll
    for (int n = 0; n < NTiles; n++) {
#pragma unroll
      for (int m = 0; m < MTiles; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[(n * 8 + i % 2) * kPitch + m * 16 + i / 2 * 8] = acc[m][n][i];
      }
    }
  }

  // use(i, first of four rows of the weight, sequence) for this thread's part of the tile; neighbouring threads have
  // neighbouring rows. m is a multiple of 4.
  template <class Use>
  __device__ __forceinline__ void each(const Product& p, Use use) const {
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      const int quad = i * kThreads + threadIdx.x, n = quad / (kM / 4);
      const int row = blockIdx.x * kM + quad % (kM / 4) * 4, sequence = blockIdx.y * kN + n;
      if (n < kN && row < p.m && sequence < p.batch) use(i, row, sequence);
    }
  }

  // use(i, first of four rows of the weight, sequence, sums)
  template <class Use>
  __device__ __forceinline__ void finish(const Product& p, Use use) const {
    __syncthreads();
    each(p, [&](int i, int row, int sequence) {
      const int quad = i * kThreads + threadIdx.x;
      const float* sums = reinterpret_cast<const float*>(weights) + quad / (kM / 4) * kPitch + quad % (kM / 4) * 4;
      float v[4] = {};
#pragma unroll
      for (int w = 0; w < kWarps; w++) {
        const float4 part = *reinterpret_cast<const float4*>(sums + w * kN * kPitch);
        v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
      }
      if (p.scale) {
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] *= p.scale[row + j];
      }
      use(i, row, sequence, v);
    });
  }
};

struct InProj {
  Product product;
  const float *conv_weight, *conv_bias, *state;  // (E,K), (E) or null, (B,K-1,E)
  float* state_out;                              // (B,K-1,E)
  bf16 *u, *gate;                                // (B,E)
  int64_t conv_weight_stride, state_stride, state_out_stride;
  int e, taps;
};

// To the second-level cache, where an earlier kernel's writes are seen too.
template <class T>
__device__ __forceinline__ void prefetch_states(const InProj& p) {
  constexpr int kLineRows = kLine / 4, kLines = (T::kM + kLineRows - 1) / kLineRows;
  const int states = p.taps - 1;
  for (int i = threadIdx.x; i < T::kN * states * kLines; i += kThreads) {
    const int row = blockIdx.x * T::kM + i % kLines * kLineRows, state = blockIdx.y * T::kN * states + i / kLines;
    if (row >= p.e || state >= p.product.batch * states) return;
    prefetch_line(p.state + state * p.state_stride + row);
  }
}

// u = silu(conv(first half)), and the convolution's state moves on; gate = silu(second half).
template <class T>
__global__ void __launch_bounds__(kThreads, T::kResident) in_proj(const InProj p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(16) float conv_weight[kMaxTaps][T::kM], conv_bias[T::kM];
  const T tile(shared, p.product.k);
  tile.fetch_first_weights(p.product);
  prefetch_states<T>(p);
  for (int i = threadIdx.x; i < T::kM * p.taps; i += kThreads) {
    const int row = blockIdx.x * T::kM + i / p.taps;
    if (row < p.e) conv_weight[i % p.taps][i / p.taps] = p.conv_weight[row * p.conv_weight_stride + i % p.taps];
  }
  for (int i = threadIdx.x; i < T::kM; i += kThreads) {
    const int row = blockIdx.x * T::kM + i;
    conv_bias[i] = p.conv_bias && row < p.e ? p.conv_bias[row] : 0.0f;
  }
  wait_for_previous();
  // Only now, so that the scan, which fetches its states before it waits, comes after whatever made them.
  let_next_start();
  tile.multiply(p.product);
  // All at once: state_out may be state, so a later load would wait for an earlier store.
  float old[T::kEach][kMaxTaps - 1][4];
  tile.each(p.product, [&](int i, int row, int b) {
#pragma unroll
    for (int j = 0; j < kMaxTaps - 1; j++) {
      if (row < p.e && j < p.taps - 1) {
        load_vector<4>(p.state + (b * (p.taps - 1) + j) * p.state_stride + row, old[i][j]);
      }
    }
  });
  tile.finish(p.product, [&](int i, int row, int b, float(&v)[4]) {
    if (row >= p.e) {
#pragma unroll
      for (int k = 0; k < 4; k++) v[k] *= sigmoid_fast(v[k]);
      store_vector<4>(p.gate + int64_t{b} * p.e + row - p.e, v);
      return;
    }
    float* state_out = p.state_out + b * (p.taps - 1) * p.state_out_stride + row;
    const int own = row - blockIdx.x * T::kM;
    float sum[4], w[4];
    load_vector<4>(conv_bias + own, sum);
#pragma unroll
    for (int j = 0; j < kMaxTaps - 1; j++) {
      if (j >= p.taps - 1) break;
      load_vector<4>(conv_weight[j] + own, w);
#pragma unroll
      for (int k = 0; k < 4; k++) sum[k] = fmaf(w[k], old[i][j][k], sum[k]);
      if (j > 0) store_vector<4>(state_out + (j - 1) * p.state_out_stride, old[i][j]);
    }
    store_vector<4>(state_out + (p.taps - 2) * p.state_out_stride, v);
    load_vector<4>(conv_weight[p.taps - 1] + own, w);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      sum[k] = fmaf(w[k], v[k], sum[k]);
      sum[k] *= sigmoid_fast(sum[k]);
    }
    store_vector<4>(p.u + int64_t{b} * p.e + row, sum);
  });
}

struct XProj {
  Product product;
  float* y;  // (B,M)
};

template <class T>
__global__ void __launch_bounds__(kThreads, T::kResident) x_proj(const XProj p) {
  extern __shared__ __align__(16) char shared[];
  const T tile(shared, p.product.k);
  tile.fetch_first_weights(p.product);
  wait_for_previous();
  let_next_start();
  tile.multiply(p.product);
  tile.finish(p.product, [&](int, int row, int b, const float(&v)[4]) {
    store_vector<4>(p.y + int64_t{b} * p.product.m + row, v);
  });
}

struct OutProj {
  Product product;
  const float* x;  // (B,M)
  float* y;        // (B,M)
  int64_t x_stride, y_stride;
};

template <class T>
__global__ void __launch_bounds__(kThreads, T::kResident) out_proj(const OutProj p) {
  extern __shared__ __align__(16) char shared[];
  const T tile(shared, p.product.k);
  let_next_start();
  tile.fetch_first_weights(p.product);
  wait_for_previous();
  tile.multiply(p.product);
  float x[T::kEach][4];
  tile.each(p.product, [&](int i, int row, int b) { load_vector<4>(p.x + b * p.x_stride + row, x[i]); });
  tile.finish(p.product, [&](int i, int row, int b, float(&v)[4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] += x[i][k];
    store_vector<4>(p.y + b * p.y_stride + row, v);
  });
}

// --- scan ---

constexpr int kScanChannels = 64, kScanRows = 8;
constexpr int kQuad = kStates / 4;  // lanes that share a channel, each with four states

struct Scan {
  const bf16 *u, *gate, *dt_proj;           // (B,E), (B,E), (E,rank)
  const float *selected, *A, *D, *dt_bias;  // (B,rank+2N), (E,N), (E), (E)
  const float* state;                       // (B,E,N)
  float* state_out;
  bf16* y;  // (B,E)
  int64_t A_stride;
  int e, rank, batch;
};

// Elements from row to row of dt_proj, so that neighbouring channels lie in different banks.
__host__ __device__ constexpr int dt_pitch_for(int rank) { return (rank + 15) / 32 * 32 + 16; }

int scan_shared(int64_t rank) {
  return static_cast<int>(2 * kScanRows * kScanChannels * 2 + kScanRows * (rank + 2 * kStates) * 4) +
         kScanChannels * dt_pitch_for(static_cast<int>(rank)) * 2;
}

// A thread keeps four states of one channel for each of kScanRows sequences.
__global__ void __launch_bounds__(kThreads, 2) scan(const Scan p) {
  extern __shared__ __align__(16) char shared[];
  const int selected_cols = p.rank + 2 * kStates, dt_pitch = dt_pitch_for(p.rank);
  bf16* u = reinterpret_cast<bf16*>(shared);  // (rows,channels); y in its place afterwards
  bf16* gate = u + kScanRows * kScanChannels;
  float* selected = reinterpret_cast<float*>(gate + kScanRows * kScanChannels);   // (rows,rank+2N)
  bf16* dt_proj = reinterpret_cast<bf16*>(selected + kScanRows * selected_cols);  // (channels,dt_pitch)
  const int quarter = threadIdx.x % kQuad, channel = threadIdx.x / kQuad;
  const int e0 = blockIdx.x * kScanChannels, e = e0 + channel, b0 = blockIdx.y * kScanRows;
  const int rows = min(p.batch - b0, kScanRows);
  let_next_start();
  // What does not depend on the kernels before.
  float state[kScanRows][4], A[4];
#pragma unroll
  for (int r = 0; r < kScanRows; r++) {
    if (r >= rows) break;
    const float4 v =
        __ldcs(reinterpret_cast<const float4*>(p.state + (int64_t{b0 + r} * p.e + e) * kStates + quarter * 4));
    state[r][0] = v.x, state[r][1] = v.y, state[r][2] = v.z, state[r][3] = v.w;
  }
  for (int i = threadIdx.x * 4; i < kScanChannels * p.rank; i += kThreads * 4) {
    copy_async<8>(dt_proj + i / p.rank * dt_pitch + i % p.rank, p.dt_proj + int64_t{e0} * p.rank + i);
  }
  load_vector<4>(p.A + e * p.A_stride + quarter * 4, A);
#pragma unroll
  for (int i = 0; i < 4; i++) A[i] *= kLog2e;
  const float D = p.D[e], bias = p.dt_bias[e];

  wait_for_previous();
  constexpr int kVectors = kScanRows * kScanChannels / 8;  // of u, of the gate
  if (threadIdx.x < 2 * kVectors) {
    const int i = threadIdx.x % kVectors, r = i / (kScanChannels / 8), c = i % (kScanChannels / 8) * 8;
    copy_async<16>((threadIdx.x < kVectors ? u : gate) + i * 8,
                   (threadIdx.x < kVectors ? p.u : p.gate) + int64_t{b0 + r} * p.e + e0 + c);
  }
  for (int i = threadIdx.x * 4; i < kScanRows * selected_cols; i += kThreads * 4) {
    copy_async<16>(selected + i, p.selected + int64_t{b0} * selected_cols + i);
  }
  wait_for_copies();
  __syncthreads();

  float delta[kScanRows] = {};
  for (int k = quarter * 4; k < p.rank; k += kQuad * 4) {
    float w[4];
    load_vector<4>(dt_proj + channel * dt_pitch + k, w);
#pragma unroll
    for (int r = 0; r < kScanRows; r++) {
      float v[4];
      load_vector<4>(selected + r * selected_cols + k, v);
#pragma unroll
      for (int i = 0; i < 4; i++) delta[r] = fmaf(w[i], v[i], delta[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kScanRows; r++) {
    if (r >= rows) break;
    const float dt = softplus_fast(warp_sum<kQuad>(delta[r]) + bias);
    const float v = to_float(u[r * kScanChannels + channel]), dtu = dt * v;
    float B[4], C[4], sum = 0.0f;
    load_vector<4>(selected + r * selected_cols + p.rank + quarter * 4, B);
    load_vector<4>(selected + r * selected_cols + p.rank + kStates + quarter * 4, C);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      state[r][i] = fmaf(exp2_fast(dt * A[i]), state[r][i], dtu * B[i]);
      sum = fmaf(C[i], state[r][i], sum);
    }
    __stcs(reinterpret_cast<float4*>(p.state_out + (int64_t{b0 + r} * p.e + e) * kStates + quarter * 4),
           make_float4(state[r][0], state[r][1], state[r][2], state[r][3]));
    const float y = fmaf(D, v, warp_sum<kQuad>(sum)) * to_float(gate[r * kScanChannels + channel]);
    // In the place of u, which these four lanes alone read, and have read.
    __syncwarp();
    if (quarter == r % kQuad) u[r * kScanChannels + channel] = from_float<bf16>(y);
  }
  __syncthreads();
  if (threadIdx.x < kVectors) {
    const int r = threadIdx.x / (kScanChannels / 8), c = threadIdx.x % (kScanChannels / 8) * 8;
    if (r < rows) {
      *reinterpret_cast<uint4*>(p.y + int64_t{b0 + r} * p.e + e0 + c) =
          *reinterpret_cast<const uint4*>(u + r * kScanChannels + c);
    }
  }
}

// --- launches ---

template <class Args>
Status start(void (*kernel)(Args), dim3 grid, int threads, int shared, const Launch& l, const Args& args) {
  MB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  return start_early(kernel, grid, dim3(static_cast<unsigned>(threads)), shared, *l.props, l.stream, args);
}

template <class T>
struct Chosen {
  using Tile = T;
};

template <class T>
int64_t blocks_of(int64_t m, int64_t batch) {
  return ceil_div(m, T::kM) * ceil_div(batch, T::kN);
}

// Calls start with the first tile, of the largest on, that keeps three quarters of the multiprocessors busy, or the
// last.
template <class T, class... Smaller, class Start>
Status with_tile(int64_t m, int64_t batch, const Launch& l, Start start) {
  if constexpr (sizeof...(Smaller) > 0) {
    if (blocks_of<T>(m, batch) * 4 < 3 * l.props->sm_count) return with_tile<Smaller...>(m, batch, l, start);
  }
  return start(Chosen<T>{});
}

template <class T, class Args>
Status start_product(void (*kernel)(Args), const Launch& l, const Args& args) {
  const Product& p = args.product;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.m, T::kM)), static_cast<unsigned>(ceil_div(p.batch, T::kN)));
  return start(kernel, grid, kThreads, T::shared_bytes(p.k), l, args);
}

Product product(const Tensor& weight, const Tensor& scale, const bf16* x, const Sizes& s) {
  return {weight.data,
          weight.dtype == DType::i8 ? scale.ptr<float>() : nullptr,
          x,
          static_cast<int>(weight.dim(0)),
          static_cast<int>(weight.cols()),
          static_cast<int>(s.batch)};
}

template <class W>
Status start_in_proj(const Node& node, const Sizes& s, const Parts& p, const Launch& l) {
  const Tensor &state = node.in(in::conv_state), &state_out = node.out(to::conv_state_out);
  InProj a{};
  a.product = product(node.in(in::in_proj), node.in(in::in_scale), p.normed, s);
  a.conv_weight = node.in(in::conv_weight).ptr<float>();
  a.conv_weight_stride = node.in(in::conv_weight).row_stride;
  a.conv_bias = node.in(in::conv_bias).ptr<float>();
  a.state = state.ptr<float>();
  a.state_stride = state.row_stride;
  a.state_out = state_out.ptr<float>();
  a.state_out_stride = state_out.row_stride;
  a.u = p.u;
  a.gate = p.gate;
  a.e = static_cast<int>(s.e);
  a.taps = static_cast<int>(s.taps);
  return with_tile<Tile<W, 4, 8>, Tile<W, 2, 8>, Tile<W, 1, 8>>(2 * s.e, s.batch, l, [&](auto tile) {
    using T = typename decltype(tile)::Tile;
    return start_product<T>(in_proj<T>, l, a);
  });
}

template <class W>
using XTile = Tile<W, 1, 1>;

template <class W>
Status launch_as(const Node& node, const Launch& l) {
  const Sizes s(node);
  const Parts p(s, l.scratch);
  const Tensor &x = node.in(in::x), &y = node.out(to::y);
  const Norm n{
      x.ptr<float>(),
      node.in(in::norm_weight).ptr<float>(),
      node.in(in::norm_bias).ptr<float>(),
      p.normed,
      x.row_stride,
      {ahead(node.in(in::in_proj)), ahead(node.in(in::x_proj)), ahead(node.in(in::dt_proj)), ahead(node.in(in::A))},
      static_cast<int>(s.d),
      static_cast<float>(node.attr(at::mamba_block::attr::eps))};
  MB_TRY(start(norm, dim3(static_cast<unsigned>(s.batch)), kNormThreads, 0, l, n));
  MB_TRY(start_in_proj<W>(node, s, p, l));
  const XProj xp{product(node.in(in::x_proj), node.in(in::x_scale), p.u, s), p.selected};
  MB_TRY((start_product<XTile<W>>(x_proj<XTile<W>>, l, xp)));
  const Scan sc{p.u,
                p.gate,
                node.in(in::dt_proj).ptr<bf16>(),
                p.selected,
                node.in(in::A).ptr<float>(),
                node.in(in::D).ptr<float>(),
                node.in(in::dt_bias).ptr<float>(),
                node.in(in::ssm_state).ptr<float>(),
                node.out(to::ssm_state_out).ptr<float>(),
                p.scanned,
                node.in(in::A).row_stride,
                static_cast<int>(s.e),
                static_cast<int>(s.rank),
                static_cast<int>(s.batch)};
  const dim3 grid(static_cast<unsigned>(s.e / kScanChannels), static_cast<unsigned>(ceil_div(s.batch, kScanRows)));
  MB_TRY(start(scan, grid, kThreads, scan_shared(s.rank), l, sc));
  const OutProj o{product(node.in(in::out_proj), node.in(in::out_scale), p.scanned, s), x.ptr<float>(), y.ptr<float>(),
                  x.row_stride, y.row_stride};
  return with_tile<Tile<W, 2, 4>, Tile<W, 1, 4>>(s.d, s.batch, l, [&](auto tile) {
    using T = typename decltype(tile)::Tile;
    return start_product<T>(out_proj<T>, l, o);
  });
}

constexpr int kStaticShared = 2048;  // at most

int most_shared(const Sizes& s) {
  const auto d = static_cast<int>(s.d), e = static_cast<int>(s.e);
  return std::max({Tile<bf16, 4, 8>::shared_bytes(d), Tile<bf16, 2, 8>::shared_bytes(d), XTile<bf16>::shared_bytes(e),
                   Tile<bf16, 2, 4>::shared_bytes(e), scan_shared(s.rank)});
}

}  // namespace

bool takes_batch(const Node& node, const Props& props) {
  const Tensor &x = node.in(in::x), &state = node.in(in::ssm_state), &weight = node.in(in::in_proj);
  const int64_t rows = x.rows();
  if (rows <= kRowsInOrder || state.dim(0) != rows || rows > 65535) return false;
  const Sizes s(node);
  if (node.in(in::A).cols() != kStates || s.taps < 2 || s.taps > kMaxTaps) return false;
  if (s.d % 32 || s.e % kScanChannels || s.rank % 4 || s.e > 1 << 20) return false;
  if (weight.dtype != DType::bf16 && weight.dtype != DType::i8) return false;
  for (const int i : {in::in_proj, in::x_proj, in::out_proj}) {
    const Tensor& w = node.in(i);
    if (w.dtype != weight.dtype || !w.contiguous() || !rows_aligned(w, 16)) return false;
  }
  const Tensor& dt = node.in(in::dt_proj);
  if (dt.dtype != DType::bf16 || !dt.contiguous() || !rows_aligned(dt, 8)) return false;
  for (const Tensor* t : {&state, &node.out(to::ssm_state_out)}) {
    if (!t->contiguous() || !rows_aligned(*t, 16)) return false;
  }
  if (node.out(to::kept_conv) || node.out(to::kept_ssm)) return false;
  for (const int i : {in::x, in::norm_weight, in::norm_bias, in::conv_bias, in::A, in::conv_state}) {
    if (!rows_aligned(node.in(i), 16)) return false;
  }
  if (!rows_aligned(node.out(to::y), 16) || !rows_aligned(node.out(to::conv_state_out), 16)) return false;
  return s.e * s.d < 1 << 29 && most_shared(s) + kStaticShared <= props.max_shared_per_block;
}

int64_t batch_scratch(const Node& node) { return Parts(Sizes(node), nullptr).bytes; }

Status launch_batch(const Node& node, const Launch& launch) {
  return node.in(in::in_proj).dtype == DType::i8 ? launch_as<int8_t>(node, launch) : launch_as<bf16>(node, launch);
}

}  // namespace mb::cuda
