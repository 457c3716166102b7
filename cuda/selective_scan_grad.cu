// The gradient of the selective scan: plan of its kernels, scratch, and the last sums. Shapes are those of
// native/ops.def, equations those of docs/math/selective-scan-gradient.md.
#include "check.h"
#include "scan_grad.cuh"

namespace mb::cuda {
namespace {

namespace in = at::selective_scan_grad::in;
namespace out = at::selective_scan_grad::out;
namespace attr = at::selective_scan_grad::attr;

// How the time axis is cut. Segments: what one block of the main kernel walks. Pieces: parts of segments whose effect
// on earlier ones is found first; none where there is one segment.
struct Cut {
  int64_t chunks = 0, segments = 1, chunks_per_segment = 1, pieces = 0, chunks_per_piece = 1;
};

// The last wave of blocks should be as full as the others; a cut costs the pieces' pass, about a quarter of the rest.
Cut cut_time(int64_t chunks, int64_t blocks, const Props& props) {
  Cut cut{chunks, 1, chunks, 0, chunks};
  double best = 0;
  for (int64_t per = chunks; per >= 1; per--) {
    const int64_t segments = ceil_div(chunks, per);
    if (per > 1 && ceil_div(chunks, per - 1) == segments) continue;  // the same number, less even
    const int64_t waves = ceil_div(blocks * segments, props.sm_count);
    const double cost = static_cast<double>(waves * per) +
                        (segments > 1 ? 0.25 : 0.0) * static_cast<double>(blocks * (chunks - per)) / props.sm_count +
                        0.3 * waves;
    if (best == 0 || cost < best) {
      best = cost;
      cut.segments = segments;
      cut.chunks_per_segment = per;
    }
  }
  if (cut.segments == 1) return cut;
  // Four blocks of the pieces' kernel fit a processor.
  const int64_t wanted = ceil_div(4 * props.sm_count, blocks * cut.segments);
  int64_t split = 1;
  while (2 * split <= wanted && cut.chunks_per_segment % (2 * split) == 0) split *= 2;
  cut.chunks_per_piece = cut.chunks_per_segment / split;
  cut.pieces = ceil_div(chunks, cut.chunks_per_piece);
  return cut;
}

struct Sizes {
  int64_t B, T, E, N, channel_blocks, passes;
  Cut cut;
  Sizes(const Node& node, const Props& props) {
    const Tensor& u = node.in(in::u);
    B = u.dim(0), T = u.dim(1), E = u.dim(2), N = node.in(in::A).cols();
    channel_blocks = ceil_div(E, scan_grad_warps(props) * kGradChannels);
    passes = ceil_div(N, kGradStates);
    cut = cut_time(ceil_div(T, kGradChunk), channel_blocks * B, props);
  }
  int64_t parts() const { return B * cut.segments; }
};

// Hands out scratch, or counts it where base is null.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  float* take(int64_t floats) {
    float* p = base_ ? reinterpret_cast<float*>(base_ + bytes_) : nullptr;
    bytes_ += ceil_div(floats * 4, 256) * 256;
    return p;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

template <class T>
int64_t carve(ScanGradArgs<T>& args, const Sizes& s, char* base) {
  Carver carver(base);
  args.bc_sums = carver.take(s.channel_blocks * s.B * s.cut.chunks * kGradCells * 4);
  args.piece_end = carver.take(s.B * s.cut.pieces * s.E * kGradStates);
  args.piece_time = carver.take(s.B * s.cut.pieces * s.E);
  args.dA_sums = carver.take(s.parts() * s.E * kGradStates);
  args.dD_sums = carver.take(s.parts() * s.E);
  args.bias_sums = carver.take(s.parts() * s.E);
  args.passes = carver.take(s.passes > 1 ? 3 * s.B * s.T * s.E : 0);
  return carver.bytes();
}

int64_t scratch(const Node& node, const Props& props) {
  ScanGradArgs<float> args;
  return carve(args, Sizes(node, props), nullptr);
}

template <class T>
GradRows<T> rows_of(const Tensor& t) {
  return {t.ptr<T>(), t.row_stride, static_cast<uint32_t>(t.row_stride * sizeof(T))};
}

template <class T>
ScanGradArgs<T> args_of(const Node& node, const Sizes& s, char* base) {
  ScanGradArgs<T> a{};
  a.B = s.B, a.time = s.T, a.E = s.E, a.N = s.N;
  a.chunks_per_batch = s.cut.chunks, a.chunks_per_segment = s.cut.chunks_per_segment, a.segments = s.cut.segments;
  a.chunks_per_piece = s.cut.chunks_per_piece, a.pieces = s.cut.pieces, a.channel_blocks = s.channel_blocks;
  a.softplus = node.attr(attr::softplus) != 0;
  a.whole = s.E % 2 == 0 && s.passes == 1;
  for (int i : {in::dy, in::u, in::delta, in::z}) a.whole = a.whole && rows_aligned(node.in(i), 2 * sizeof(T));
  for (int i : {out::du, out::ddelta, out::dz}) a.whole = a.whole && rows_aligned(node.out(i), 2 * sizeof(T));
  a.vector_states = s.N % 4 == 0 && rows_aligned(node.in(in::A), 16) && rows_aligned(node.in(in::chunks), 16) &&
                    rows_aligned(node.in(in::dstate_out), 16);
  a.vector_projections = s.N % kGradStates == 0 && rows_aligned(node.in(in::B), 16) && rows_aligned(node.in(in::C), 16);
  a.dy = rows_of<const T>(node.in(in::dy)), a.u = rows_of<const T>(node.in(in::u));
  a.delta = rows_of<const T>(node.in(in::delta)), a.z = rows_of<const T>(node.in(in::z));
  a.B_in = rows_of<const T>(node.in(in::B)), a.C_in = rows_of<const T>(node.in(in::C));
  a.du = rows_of<T>(node.out(out::du)), a.ddelta = rows_of<T>(node.out(out::ddelta));
  a.dz = rows_of<T>(node.out(out::dz));
  a.A = rows_of<const float>(node.in(in::A)), a.chunks = rows_of<const float>(node.in(in::chunks));
  a.dstate_out = rows_of<const float>(node.in(in::dstate_out)), a.dstate = rows_of<float>(node.out(out::dstate));
  a.D = node.in(in::D).template ptr<const float>();
  a.delta_bias = node.in(in::delta_bias).template ptr<const float>();
  carve(a, s, base);
  return a;
}

// What the last sums of a pass write; null where not wanted.
template <class T>
struct Results {
  GradRows<T> dB, dC;
  GradRows<float> dA;
  float *dD, *ddelta_bias;
  bool accumulate;
};

// dB and dC: sums over channel blocks in their order, a cell a thread.
template <class T>
__device__ __forceinline__ void sum_projections(const ScanGradArgs<T>& p, const Results<T>& to, int64_t i) {
  const int64_t chunks = p.B * p.chunks_per_batch, chunk = i / kGradCells;
  const int sub = static_cast<int>(i % kGradCells) / 64, cell = static_cast<int>(i % 32);
  const int64_t t = chunk % p.chunks_per_batch * kGradChunk + sub * kGradSteps + cell / 4;
  const GradRows<T>& rows = i / 32 % 2 ? to.dC : to.dB;
  if (chunk >= chunks || t >= p.time || !rows.data) return;
  const float4* from = reinterpret_cast<const float4*>(p.bc_sums) + i;
  float4 sum = *from;
#pragma unroll 4
  for (int64_t block = 1; block < p.channel_blocks; block++) sum = sum + from[block * chunks * kGradCells];
  const int64_t n = p.first_state + 4 * (cell % 4);
  T* row = rows.data + (chunk / p.chunks_per_batch * p.time + t) * rows.stride + n;
  const float v[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (n + j < p.N) row[j] = from_float<T>(v[j]);
  }
}

// Over segments and batches, in their order.
__device__ __forceinline__ void sum_parts(float* to, const float* from, int64_t parts, int64_t stride,
                                          bool accumulate) {
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t part = 0; part < parts; part++) sum += from[part * stride];
  *to = accumulate ? *to + sum : sum;
}

// dA, then dD, then ddelta_bias.
template <class T>
__device__ __forceinline__ void sum_parameters(const ScanGradArgs<T>& p, const Results<T>& to, int64_t i) {
  const int64_t parts = p.B * p.segments, of_A = p.E * kGradStates;
  if (i < of_A) {
    const int64_t e = i / kGradStates, n = p.first_state + i % kGradStates;
    if (!to.dA.data || n >= p.N) return;
    sum_parts(&to.dA.data[e * to.dA.stride + n], p.dA_sums + i, parts, of_A, to.accumulate);
    return;
  }
  const int64_t e = (i - of_A) % p.E;
  const bool bias = i - of_A >= p.E;
  float* result = bias ? to.ddelta_bias : to.dD;
  if (i >= of_A + 2 * p.E || !result || !p.last_pass) return;
  sum_parts(result + e, (bias ? p.bias_sums : p.dD_sums) + e, parts, p.E, to.accumulate);
}

constexpr int kSumThreads = 256;

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    scan_grad_sums_kernel(const __grid_constant__ ScanGradArgs<T> p, const __grid_constant__ Results<T> to,
                          int64_t projection_blocks) {
  const int64_t block = blockIdx.x;
  if (block < projection_blocks) {
    sum_projections(p, to, block * kSumThreads + threadIdx.x);
  } else {
    sum_parameters(p, to, (block - projection_blocks) * kSumThreads + threadIdx.x);
  }
}

template <class T>
Status launch_sums(const ScanGradArgs<T>& args, const Node& node, cudaStream_t stream) {
  const Results<T> to{rows_of<T>(node.out(out::dB)),
                      rows_of<T>(node.out(out::dC)),
                      rows_of<float>(node.out(out::dA)),
                      node.out(out::dD).template ptr<float>(),
                      node.out(out::ddelta_bias).template ptr<float>(),
                      node.attr(attr::accumulate) != 0};
  const int64_t projection_blocks = ceil_div(args.B * args.chunks_per_batch * kGradCells, kSumThreads);
  const int64_t parameter_blocks = ceil_div(args.E * (kGradStates + 2), kSumThreads);
  scan_grad_sums_kernel<T><<<static_cast<unsigned>(projection_blocks + parameter_blocks), kSumThreads, 0, stream>>>(
      args, to, projection_blocks);
  MB_CUDA_LAUNCHED("selective_scan_grad");
  return {};
}

template <class T>
Status launch_pass(ScanGradArgs<T> args, const Node& node, const Sizes& s, int64_t pass, const Launch& launch) {
  args.first_state = pass * kGradStates;
  args.first_pass = pass == 0;
  args.last_pass = pass + 1 == s.passes;
  if (s.cut.segments > 1) MB_TRY(launch_scan_grad_pieces(args, launch.stream));
  MB_TRY(launch_scan_grad_main(args, scan_grad_warps(*launch.props), launch.stream));
  return launch_sums(args, node, launch.stream);
}

Status launch(const Node& node, const Launch& launch) {
  const Sizes sizes(node, *launch.props);
  if (sizes.B * sizes.T * sizes.E == 0) return {};
  return with_activation(node.in(in::u).dtype, [&](auto zero) -> Status {
    using T = decltype(zero);
    const ScanGradArgs<T> args = args_of<T>(node, sizes, launch.scratch);
    for (int64_t pass = 0; pass < sizes.passes; pass++) MB_TRY(launch_pass(args, node, sizes, pass, launch));
    return {};
  });
}

bool all_of(const Node& node, std::initializer_list<int> ins, std::initializer_list<int> outs, DType dtype) {
  for (int i : ins) {
    if (node.in(i) && node.in(i).dtype != dtype) return false;
  }
  for (int i : outs) {
    if (node.out(i) && node.out(i).dtype != dtype) return false;
  }
  return true;
}

const char* why_not(const Node& node, const Props& props) {
  if (!is_activation(node.in(in::u))) return "u must be f32 or bf16";
  if (!all_of(node, {in::dy, in::u, in::delta, in::B, in::C, in::z}, {out::du, out::ddelta, out::dB, out::dC, out::dz},
              node.in(in::u).dtype)) {
    return "dy, delta, B, C, z, du, ddelta, dB, dC and dz must have the dtype of u";
  }
  if (!all_of(node, {in::A, in::D, in::delta_bias, in::chunks, in::dstate_out},
              {out::dA, out::dD, out::ddelta_bias, out::dstate}, DType::f32)) {
    return "A, D, delta_bias, chunks, states and their gradients must be f32";
  }
  if (node.attr(attr::chunk) != kGradChunk) return "chunk must be 64";
  if (node.in(in::u).rows() >= int64_t{1} << 31) return "more than 2^31 steps";
  for (int i : {in::dy, in::u, in::delta, in::z}) {
    if (node.in(i).row_stride >= int64_t{1} << 30) return "a row stride is 2^30 or more";
  }
  for (int i : {out::du, out::ddelta, out::dz}) {
    if (node.out(i).row_stride >= int64_t{1} << 30) return "a row stride is 2^30 or more";
  }
  if (props.max_shared_per_block < 96 * 1024) return "a block needs 96 KiB of shared memory";
  return nullptr;
}

}  // namespace

const Kernel selective_scan_grad_kernel = {launch, scratch, why_not};

}  // namespace mb::cuda
