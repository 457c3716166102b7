#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "../../native/ops.h"
#include "../check.h"
#include "../mamba_block_batch.h"
#include "constants.h"
#include "decode.h"
#include "kernels.h"

namespace mb::cuda {

using namespace decode;

struct Decode {
  decode::Plan plan;
  const void* kernel = nullptr;
  Layer* layers = nullptr;
  float* constants = nullptr;  // find_constants()
  uint32_t* exchanges = nullptr;
  size_t exchange_words = 0;
  Control* control = nullptr;  // page-locked
  int32_t* watched = nullptr;  // page-locked: drawn ids, or the bits of logits
  int64_t watched_words = 0;
  int32_t* stops = nullptr;  // of the device: stops, their ends, recent ids
  int64_t stop_words = 0;
  uint32_t before = 0;

  ~Decode() {
    for (void* p : {static_cast<void*>(layers), static_cast<void*>(constants), static_cast<void*>(exchanges),
                    static_cast<void*>(stops)}) {
      if (p) cudaFree(p);
    }
    for (void* p : {static_cast<void*>(control), static_cast<void*>(watched)}) {
      if (p) cudaFreeHost(p);
    }
  }
};

namespace {

constexpr int64_t kLaunchSteps = 16384;  // the most steps of one launch
constexpr int kStageBytes = 40 << 10;    // at most, of the ring
constexpr int kStaticShared = 1024;      // barriers, and what the system takes

struct Found {
  const Node *embedding = nullptr, *blocks = nullptr, *norm = nullptr, *head = nullptr, *sample = nullptr;
  int layers = 0;
};

bool aligned(const Tensor& t, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(t.data) % bytes == 0; }
bool is_f32(const Tensor& t) { return !t || (t.dtype == DType::f32 && t.contiguous() && aligned(t, 4)); }
bool is_matrix(const Tensor& t, DType dtype) { return t.dtype == dtype && t.contiguous() && aligned(t, 16); }

bool find(const Node* nodes, size_t n, Found* f) {
  if (n < 4) return false;
  size_t i = 0;
  if (nodes[i].op != op::embedding) return false;
  f->embedding = &nodes[i++];
  f->blocks = &nodes[i];
  while (i < n && nodes[i].op == op::mamba_block) i++;
  f->layers = static_cast<int>(&nodes[i] - f->blocks);
  if (f->layers == 0 || i + 2 > n) return false;
  if (nodes[i].op != op::rms_norm && nodes[i].op != op::layer_norm) return false;
  f->norm = &nodes[i++];
  if (nodes[i].op != op::linear) return false;
  f->head = &nodes[i++];
  if (i < n && nodes[i].op == op::sample) f->sample = &nodes[i++];
  return i == n;
}

// One node's output is the next one's input.
bool chained(const Found& f) {
  namespace block = at::mamba_block;
  const void* x = f.embedding->out(at::embedding::out::y).data;
  for (int l = 0; l < f.layers; l++) {
    if (f.blocks[l].in(block::in::x).data != x) return false;
    x = f.blocks[l].out(block::out::y).data;
  }
  if (f.norm->in(0).data != x || f.head->in(at::linear::in::x).data != f.norm->out(0).data) return false;
  if (f.head->in(at::linear::in::add)) return false;
  return !f.sample || f.sample->in(at::sample::in::logits).data == f.head->out(at::linear::out::y).data;
}
// Whether drawn ids are what the next step reads, as in decoding; a verify pass only reports them.
bool feeds(const Found& f) {
  return f.sample && f.sample->out(at::sample::out::ids).data == f.embedding->in(at::embedding::in::ids).data;
}

DType weight_type(const Found& f) { return f.blocks[0].in(at::mamba_block::in::in_proj).dtype; }

bool block_fits(const Node& b, const Node& first, DType dtype) {
  namespace in = at::mamba_block::in;
  namespace out = at::mamba_block::out;
  for (const int i : {in::in_proj, in::x_proj, in::out_proj}) {
    if (!is_matrix(b.in(i), dtype)) return false;
  }
  if (!is_matrix(b.in(in::dt_proj), DType::bf16)) return false;
  for (const int i : {in::norm_weight, in::norm_bias, in::in_scale, in::conv_weight, in::conv_bias, in::x_scale,
                      in::dt_bias, in::A, in::D, in::out_scale, in::conv_state, in::ssm_state}) {
    if (!is_f32(b.in(i))) return false;
  }
  for (const int i : {out::conv_state_out, out::ssm_state_out, out::kept_conv, out::kept_ssm}) {
    if (!is_f32(b.out(i))) return false;
  }
  if (dtype == DType::i8 && !(b.in(in::in_scale) && b.in(in::x_scale) && b.in(in::out_scale))) {
    return false;
  }
  if (static_cast<bool>(b.in(in::norm_bias)) != static_cast<bool>(first.in(in::norm_bias))) return false;
  for (const int i : {in::x, in::in_proj, in::x_proj, in::dt_proj, in::out_proj, in::conv_weight, in::A}) {
    for (int k = 0; k < b.in(i).rank; k++) {
      if (b.in(i).dim(k) != first.in(i).dim(k)) return false;
    }
  }
  return b.in(in::x).dtype == DType::f32;
}

bool head_fits(const Found& f, DType dtype) {
  const Tensor& w = f.head->in(at::linear::in::weight);
  const Tensor &scale = f.head->in(at::linear::in::scale), &logits = f.head->out(at::linear::out::y);
  if (!is_matrix(w, DType::bf16) && !(dtype == DType::i8 && is_matrix(w, DType::i8) && scale)) return false;
  if (!is_f32(scale) || !is_f32(f.head->in(at::linear::in::bias)) || !is_f32(logits)) return false;
  const bool layer = f.norm->op == op::layer_norm;
  const Tensor bias = layer ? f.norm->in(at::layer_norm::in::bias) : Tensor{};
  // The blocks' norm and the last one are of a kind.
  if (static_cast<bool>(bias) != static_cast<bool>(f.blocks[0].in(at::mamba_block::in::norm_bias))) return false;
  return layer == static_cast<bool>(bias) && is_f32(bias) && is_f32(f.norm->in(1));
}

bool sample_fits(const Node& s, int64_t rows) {
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  const Tensor &rng = s.out(out::rng), &seen = s.out(out::seen);
  return s.in(in::logits).cols() <= kMaxClasses && s.out(out::ids).elems() == rows && s.out(out::ids).contiguous() &&
         rng.contiguous() && rng.rows() == rows && (!seen || seen.contiguous()) && s.in(in::params).contiguous() &&
         is_f32(s.in(in::bias)) && is_f32(s.out(out::logprob));
}

constexpr int up(int n, int to) { return (n + to - 1) / to * to; }

// Bytes from row to row: the rows that a quarter or half of a warp reads together start 64 (bf16) or 32 (i8) bytes
// apart, modulo 128.
int pitch_for(int columns, int element) {
  const int step = element == 2 ? 64 : 32, bytes = columns * element;
  int pitch = up(bytes, step);
  while (pitch % 128 != step) pitch += step;
  return pitch;
}

// The fewest slices whose rows fit into a stage.
Stream stream_for(int columns, int rows, int element, int stage_bytes) {
  for (int slices = 1;; slices++) {
    Stream s;
    s.columns = columns;
    s.slice = up((columns + slices - 1) / slices, 32);
    s.slices = (columns + s.slice - 1) / s.slice;
    s.pitch = pitch_for(s.slice, element);
    if (static_cast<int64_t>(s.pitch) * std::max(rows, 1) <= stage_bytes || s.slice == 32) return s;
  }
}

struct Bump {
  int at = 0;
  int operator()(int64_t bytes) {
    const int here = at;
    at += static_cast<int>((bytes + 15) / 16 * 16);
    return here;
  }
};

void lay_out_small(decode::Plan& p, int element, int v_rows) {
  Bump take;
  Small& s = p.small;
  const int ce = p.channels;
  s.layer = take(sizeof(Layer));
  s.norm_weight = take(p.D * 4);
  const int in_rows = std::max(2 * ce, v_rows);
  s.norm_in = take(p.layer_norm ? in_rows * 4 : 0);
  s.norm_bias = take(p.layer_norm ? in_rows * 4 : 0);
  s.x_pitch = up(ce * element, 16);
  if (s.x_pitch / 16 % 2 == 0) s.x_pitch += 16;  // an odd number of 16 bytes: eight rows in different banks
  s.x_proj = take(int64_t{p.S} * s.x_pitch);
  s.dt_proj = take(int64_t{ce} * p.R * 2);
  s.conv_weight = take(ce * p.K * 4);
  s.conv_bias = take(std::max(ce, v_rows) * 4);
  s.dt_bias = take(ce * 4);
  s.A = take(ce * kStates * 4);
  s.D = take(ce * 4);
  s.in_scale = take(in_rows * 4);
  s.x_scale = take(p.S * 4);
  s.out_scale = take((p.D / p.blocks + 1) * 4);
  s.bytes = up(take.at, 128);
}

// Slices that a warp keeps at once: those that hold a group's columns.
int most_slices_of_a_group(const Stream& s) {
  int most = 1;
  const int chunks = s.columns / 32, per_slice = s.slice / 32;
  for (int begin = 0; begin < chunks; begin += s.share) {
    const int last = std::min(begin + s.share, chunks) - 1;
    most = std::max(most, last / per_slice - begin / per_slice + 1);
  }
  return most;
}

int draw_bytes(int V) { return V * 12 + 2 * kWarps * 8 + 64; }

// False where the ring would be too small to be worth it.
bool lay_out_shared(decode::Plan& p, int element, int head_element, int v_rows, int max_shared) {
  const int d_rows = (p.D + p.blocks - 1) / p.blocks, m_rows = 2 * p.channels, rows = p.rows;
  Bump take;
  Shared& s = p.shared;
  s.small = take(2 * p.small.bytes);
  const int64_t partials = partials_for(rows, p.m_tiles);
  s.red = take(partials * rows * std::max(m_rows, v_rows) * 4);
  s.red_out = take(partials * rows * d_rows * 4);
  s.moments = take(kGroups * rows * 8);
  s.room = take(is_one(rows, p.K) ? kRoomBytes : 0);
  s.conv_in = take(is_one(rows, p.K) ? 0 : (rows + p.batch * (p.K - 1)) * p.channels * 4);
  s.u = take(rows * p.channels * 4);
  s.gate = take(rows * p.channels * 4);
  s.delta = take(p.steps > 1 ? rows * p.channels * 4 : 0);
  s.selected = take(rows * p.S * 4);
  s.residual = take(rows * d_rows * 4);
  s.logits = take(p.sampled ? up(p.V * 4, 8) + draw_bytes(p.V) : 0);
  s.ids = take((kMaxRows + 1) * 4);
  s.ring = up(take.at, 128);
  const int room = max_shared - kStaticShared - s.ring;
  const int most = std::min(kStageBytes, room / 4 / 128 * 128);
  if (most < 8 << 10) return false;
  p.streams[kIn] = stream_for(p.D, m_rows, element, most);
  p.streams[kOut] = stream_for(p.E, d_rows, element, most);
  p.streams[kHead] = stream_for(p.D, v_rows, head_element, most);
  const auto bytes = [](const Stream& t, int of) { return t.pitch * of; };
  for (Stream& t : p.streams) t.share = (t.columns / 32 + kGroups - 1) / kGroups;
  p.stage_bytes = up(
      std::max({bytes(p.streams[kIn], m_rows), bytes(p.streams[kOut], d_rows), bytes(p.streams[kHead], v_rows)}), 128);
  p.stages = std::min(kMaxStages, room / p.stage_bytes);
  s.bytes = s.ring + p.stages * p.stage_bytes;
  // A warp that keeps as many slices as there are stages would wait for ever for the next one.
  return p.stages >= 3 &&
         std::all_of(p.streams, p.streams + 3, [&](const Stream& t) { return most_slices_of_a_group(t) <= p.stages; });
}

// Fills in everything but pointers.
bool plan_for(const Found& f, const Props& props, decode::Plan* plan) {
  namespace in = at::mamba_block::in;
  const Node& b = f.blocks[0];
  decode::Plan& p = *plan;
  p = {};
  const Tensor& x = b.in(in::x);
  if (x.rows() > kMaxRows || b.in(in::A).cols() != kStates || b.in(in::conv_weight).cols() > kMaxTaps) return false;
  const Tensor& head = f.head->in(at::linear::in::weight);
  if (x.cols() > kMaxWidth || b.in(in::A).dim(0) > 65536 || head.dim(0) > 65536) return false;
  p.D = static_cast<int>(x.cols());
  p.E = static_cast<int>(b.in(in::A).dim(0));
  p.R = static_cast<int>(b.in(in::dt_proj).cols());
  p.S = p.R + 2 * kStates;
  p.V = static_cast<int>(head.dim(0));
  p.K = static_cast<int>(b.in(in::conv_weight).cols());
  p.L = f.layers;
  p.rows = static_cast<int>(x.rows());
  p.batch = static_cast<int>(b.in(in::ssm_state).dim(0));
  if (p.rows < 1 || p.batch < 1 || p.rows % p.batch || p.D % 32 || p.E % 32 || p.R % 4) return false;
  p.steps = p.rows / p.batch;
  p.sampled = f.sample != nullptr;
  p.feeds = feeds(f);
  if (p.feeds && p.steps != 1) return false;
  p.channels = 8 * ((p.E / 8 + props.sm_count - 1) / props.sm_count);
  p.blocks = (p.E + p.channels - 1) / p.channels;
  // The multiprocessors that the channels leave over draw ids, if there is one for every row.
  p.samplers = p.sampled && p.rows <= props.sm_count - p.blocks ? p.rows : 0;
  const int v_rows = (p.V + p.blocks - 1) / p.blocks, d_rows = (p.D + p.blocks - 1) / p.blocks;
  p.m_tiles = (std::max({2 * p.channels, d_rows, v_rows}) + 15) / 16;
  if (p.D < p.blocks || p.m_tiles > kMaxTiles) return false;
  p.inverse_D = 1.0f / static_cast<float>(p.D);
  p.layer_norm = f.norm->op == op::layer_norm;
  p.table_bf16 = f.embedding->in(at::embedding::in::table).dtype == DType::bf16;
  p.head_i8 = head.dtype == DType::i8;
  const int element = weight_type(f) == DType::i8 ? 1 : 2;
  lay_out_small(p, element, v_rows);
  return lay_out_shared(p, element, p.head_i8 ? 1 : 2, v_rows, props.max_shared_per_block);
}

const void* kernel_for(const Found& f, const decode::Plan& p) {
  return weight_type(f) == DType::i8 ? kernel_i8(p.rows, p.K, p.m_tiles) : kernel_bf16(p.rows, p.K, p.m_tiles);
}

// Code for older GPUs, which the driver may translate for this one, leaves the kernel empty.
bool is_compiled(const void* kernel) {
  cudaFuncAttributes made;
  if (cudaFuncGetAttributes(&made, kernel) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return made.ptxVersion == 0 || made.ptxVersion >= 90;
}

bool matches(const Node* nodes, size_t n, const Props& props, Found* f, decode::Plan* plan) {
  if (props.major < 9 || !find(nodes, n, f) || !chained(*f)) return false;
  if (takes_batch(f->blocks[0], props)) return false;  // which is faster as a graph
  const DType dtype = weight_type(*f);
  if (dtype != DType::bf16 && dtype != DType::i8) return false;
  for (int l = 0; l < f->layers; l++) {
    if (!block_fits(f->blocks[l], f->blocks[0], dtype)) return false;
  }
  const Tensor &table = f->embedding->in(at::embedding::in::table), &ids = f->embedding->in(at::embedding::in::ids);
  if (!is_matrix(table, DType::bf16) && !is_matrix(table, DType::f32)) return false;
  if (ids.dtype != DType::i32 || !ids.contiguous() || !head_fits(*f, dtype)) return false;
  if (f->sample && !sample_fits(*f->sample, ids.elems())) return false;
  return plan_for(*f, props, plan) && is_compiled(kernel_for(*f, *plan));
}

Layer layer_of(const Node& b) {
  namespace in = at::mamba_block::in;
  namespace out = at::mamba_block::out;
  const auto f = [&](int i) { return b.in(i).ptr<float>(); };
  const auto o = [&](int i) { return b.out(i).ptr<float>(); };
  Layer w{};
  w.norm_weight = f(in::norm_weight);
  w.in_proj = b.in(in::in_proj).data;
  w.x_proj = b.in(in::x_proj).data;
  w.dt_proj = b.in(in::dt_proj).data;
  w.out_proj = b.in(in::out_proj).data;
  const bool scaled = b.in(in::in_proj).dtype == DType::i8;
  w.in_scale = scaled ? f(in::in_scale) : nullptr;
  w.x_scale = scaled ? f(in::x_scale) : nullptr;
  w.out_scale = scaled ? f(in::out_scale) : nullptr;
  w.conv_weight = f(in::conv_weight);
  w.conv_bias = f(in::conv_bias);
  w.dt_bias = f(in::dt_bias);
  w.A = f(in::A);
  w.D = f(in::D);
  w.conv_state = f(in::conv_state);
  w.ssm_state = f(in::ssm_state);
  w.conv_state_out = o(out::conv_state_out);
  w.ssm_state_out = o(out::ssm_state_out);
  w.kept_conv = o(out::kept_conv);
  w.kept_ssm = o(out::kept_ssm);
  w.eps = static_cast<float>(b.attr(at::mamba_block::attr::eps));
  return w;
}

Layer head_of(const Found& f, const decode::Plan& p) {
  Layer w{};
  w.norm_weight = f.norm->in(at::layer_norm::in::weight).ptr<float>();
  w.in_scale = p.head_i8 ? f.head->in(at::linear::in::scale).ptr<float>() : nullptr;
  w.conv_bias = f.head->in(at::linear::in::bias).ptr<float>();
  w.eps = static_cast<float>(f.norm->attr(0));
  return w;
}

void point(const Found& f, decode::Plan& p) {
  p.table = f.embedding->in(at::embedding::in::table).data;
  p.ids = f.embedding->in(at::embedding::in::ids).ptr<int32_t>();
  p.head_weight = f.head->in(at::linear::in::weight).data;
  p.head_bias = static_cast<bool>(f.head->in(at::linear::in::bias));
  p.logits = f.head->out(at::linear::out::y).ptr<float>();
  if (!f.sample) return;
  namespace in = at::sample::in;
  namespace out = at::sample::out;
  p.params = f.sample->in(in::params).ptr<float>();
  p.bias = f.sample->in(in::bias).ptr<float>();
  p.drawn_ids = f.sample->out(out::ids).ptr<int32_t>();
  p.rng = f.sample->out(out::rng).ptr<uint32_t>();
  p.seen = f.sample->out(out::seen).ptr<uint8_t>();
  p.logprob = f.sample->out(out::logprob).ptr<float>();
}

// What LayerNorm needs of the matrices, for each layer and the head.
Status find_constants(const Found& f, Decode& d, std::vector<Layer>& layers) {
  const decode::Plan& p = d.plan;
  const int64_t rows = 2 * p.E;
  MB_CUDA(cudaMalloc(&d.constants, static_cast<size_t>(2 * (rows * p.L + p.V)) * sizeof(float)));
  const bool i8 = weight_type(f) == DType::i8;
  float* at = d.constants;
  for (int l = 0; l <= p.L; l++) {
    Layer& w = layers[static_cast<size_t>(l)];
    const bool head = l == p.L;
    const int64_t n = head ? p.V : rows;
    const float* bias = head ? f.norm->in(at::layer_norm::in::bias).ptr<float>()
                             : f.blocks[l].in(at::mamba_block::in::norm_bias).ptr<float>();
    w.norm_in = at;
    w.norm_bias = at + n;
    launch_norm_constants(head ? p.head_weight : w.in_proj, head ? p.head_i8 : i8, static_cast<int>(n), p.D,
                          w.norm_weight, bias, at, at + n, cudaStreamLegacy);
    at += 2 * n;
  }
  MB_CUDA(cudaGetLastError());
  return {};
}

Status allocate(const Found& f, Decode& d) {
  decode::Plan& p = d.plan;
  std::vector<Layer> layers;
  for (int l = 0; l < f.layers; l++) layers.push_back(layer_of(f.blocks[l]));
  layers.push_back(head_of(f, p));
  if (p.layer_norm) MB_TRY(find_constants(f, d, layers));
  MB_CUDA(cudaMalloc(&d.layers, layers.size() * sizeof(Layer)));
  MB_CUDA(cudaMemcpy(d.layers, layers.data(), layers.size() * sizeof(Layer), cudaMemcpyHostToDevice));
  p.layers = d.layers;
  const size_t rows = static_cast<size_t>(p.rows);
  const size_t sizes[] = {rows * p.D, rows * p.E, rows * p.S * p.blocks, rows * p.S, rows * p.V, rows};
  uint32_t** parts[] = {&p.x, &p.y, &p.partial, &p.sum, &p.drawn_logits, &p.drawn};
  for (const size_t n : sizes) d.exchange_words += (n + 31) / 32 * 32;
  MB_CUDA(cudaMalloc(&d.exchanges, d.exchange_words * 4));
  MB_CUDA(cudaMemset(d.exchanges, 0, d.exchange_words * 4));
  size_t at = 0;
  for (int i = 0; i < 6; i++) {
    *parts[i] = d.exchanges + at;
    at += (sizes[i] + 31) / 32 * 32;
  }
  MB_CUDA(cudaHostAlloc(&d.control, sizeof(Control), cudaHostAllocMapped));
  MB_CUDA(cudaStreamSynchronize(cudaStreamLegacy));
  return {};
}

// The ids before the next step that a stop may begin in, and the stops themselves.
Status send_stops(Decode& d, cudaStream_t stream, const Run& run, int64_t steps, decode::Launch* launch) {
  const int64_t words = run.stop_ends[run.n_stops - 1];
  int64_t longest = 0;
  for (int32_t i = 0, start = 0; i < run.n_stops; start = run.stop_ends[i++]) {
    longest = std::max<int64_t>(longest, run.stop_ends[i] - start);
  }
  launch->n_stops = run.n_stops;
  launch->history = std::min(longest, run.history + run.done);
  const int64_t need = words + run.n_stops + launch->history + steps;
  if (need > d.stop_words) {
    if (d.stops) cudaFree(d.stops);
    d.stops = nullptr;
    d.stop_words = 0;
    MB_CUDA(cudaMalloc(&d.stops, static_cast<size_t>(need) * 4));
    d.stop_words = need;
  }
  const auto send = [&](int32_t* to, const int32_t* from, int64_t n) -> Status {
    if (n) MB_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(n) * 4, cudaMemcpyHostToDevice, stream));
    return {};
  };
  int32_t *ends = d.stops + words, *recent = ends + run.n_stops;
  MB_TRY(send(d.stops, run.stops, words));
  MB_TRY(send(ends, run.stop_ends, run.n_stops));
  MB_TRY(send(recent, run.watched + run.done - launch->history, launch->history));
  launch->stops = d.stops;
  launch->stop_ends = ends;
  launch->recent = recent;
  return {};
}

// Waits for the launch, asking the run's owner every millisecond or sooner whether to go on. A single step, such as a
// verify pass, is waited for without sleeping, which would end too late.
Status wait(Decode& d, cudaStream_t stream, const Run& run, int64_t steps) {
  using Clock = std::chrono::steady_clock;
  const auto awake = std::chrono::milliseconds(steps == 1 ? 20 : 1);
  const auto start = Clock::now();
  auto asked = start;
  cudaError_t state;
  while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    const auto now = Clock::now();
    if (run.go_on && now - asked > std::chrono::microseconds(500)) {
      asked = now;
      if (!run.go_on(run.context)) static_cast<volatile Control*>(d.control)->cancel = 1;
    }
    if (now - start > awake) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return to_status(state, "decode");
}

// What a run watches of a plan: drawn ids, or after a single step the logits.
bool watches_ids(const Decode& d, const Run& run) {
  return run.watch && run.watch->data == d.plan.drawn_ids && run.watch->elems() == d.plan.rows;
}
bool watches_logits(const Decode& d, const Run& run) {
  const decode::Plan& p = d.plan;
  return run.watch && run.watch->data == p.logits && run.watch->elems() == int64_t{p.rows} * p.V && !p.feeds &&
         run.steps == 1;
}

Status launch_steps(Decode& d, cudaStream_t stream, Run& run, int64_t steps) {
  decode::Launch launch{};
  launch.run_steps = steps;
  launch.before = d.before;
  launch.control = d.control;
  launch.watched = watches_ids(d, run) ? d.watched : nullptr;
  launch.watched_logits = watches_logits(d, run) ? reinterpret_cast<float*>(d.watched) : nullptr;
  if (run.n_stops && d.plan.feeds && d.plan.rows == 1) MB_TRY(send_stops(d, stream, run, steps, &launch));
  *d.control = {0, 0, -1};
  void* args[] = {&d.plan, &launch};
  MB_CUDA(cudaLaunchCooperativeKernel(d.kernel, dim3(d.plan.blocks + d.plan.samplers), dim3(kThreads), args,
                                      static_cast<size_t>(d.plan.shared.bytes), stream));
  MB_TRY(wait(d, stream, run, steps));
  d.before += static_cast<uint32_t>(d.control->done);
  return {};
}

}  // namespace

bool decode_matches(const Node* nodes, size_t n, const Props& props) {
  Found f;
  decode::Plan plan;
  return matches(nodes, n, props, &f, &plan);
}

Status decode_create(const Node* nodes, size_t n, const Props& props, Decode** out) {
  auto d = std::make_unique<Decode>();
  Found f;
  if (!matches(nodes, n, props, &f, &d->plan)) {
    return fail(Code::unsupported, "decode: expected a decode plan of a supported shape");
  }
  point(f, d->plan);
  MB_TRY(allocate(f, *d));
  d->kernel = kernel_for(f, d->plan);
  // The most that any plan may take: the limit belongs to the kernel, which plans of several sizes share.
  MB_CUDA(cudaFuncSetAttribute(d->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(props.max_shared_per_block) - kStaticShared));
  *out = d.release();
  return {};
}

Status decode_run(Decode* decode, cudaStream_t stream, Run& run) {
  Decode& d = *decode;
  if (run.watch && !watches_ids(d, run) && !watches_logits(d, run)) {
    return fail(Code::unsupported,
                "decode: expected the watched tensor to be the drawn ids, or the logits of one step");
  }
  const int64_t words = run.watch ? run.watch->elems() : 0;
  while (run.done < run.steps && run.stopped_by < 0) {
    const int64_t steps = std::min(kLaunchSteps, run.steps - run.done);
    if (steps * words > d.watched_words) {
      if (d.watched) cudaFreeHost(d.watched);
      d.watched = nullptr;
      d.watched_words = 0;
      MB_CUDA(cudaHostAlloc(&d.watched, static_cast<size_t>(steps * words) * 4, cudaHostAllocMapped));
      d.watched_words = steps * words;
    }
    MB_TRY(launch_steps(d, stream, run, steps));
    const int64_t made = d.control->done;
    if (made && words) std::memcpy(run.watched + run.done * words, d.watched, static_cast<size_t>(made * words) * 4);
    run.done += made;
    run.stopped_by = d.control->stopped_by;
    if (made < steps) break;
    if (run.done < run.steps && run.go_on && !run.go_on(run.context)) break;
  }
  return {};
}

void decode_destroy(Decode* decode) { delete decode; }

}  // namespace mb::cuda
