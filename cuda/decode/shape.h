// What the host tells the decode kernel: sizes, where everything lies, and how a block's shared memory is laid out.
//
// Sizes: D width, E inner channels, N = 16 states, R rank of delta, S = R + 2N columns of x_proj, V classes, K
// convolution taps, L layers; B sequences of T steps each, `rows` = B * T.
#pragma once
#include <cstdint>

namespace mb::cuda::decode {

constexpr int kStates = 16;
constexpr int kMaxTaps = 4;
constexpr int kMaxRows = 64;
constexpr int kMaxTiles = 4;         // 16-row tiles of a matrix that a block owns
constexpr int kWarps = 16;           // that compute
constexpr int kGroups = kWarps;      // ranges of columns that a product's sums are made of, however many rows there are
constexpr int kQuads = kGroups / 4;  // four neighbouring ones are added up first
constexpr int kPass = 8;  // chunks of 32 columns that a warp takes from a row at once, as eight columns a lane
constexpr int kMaxWidth = kGroups * kPass * 32;  // so that a group of a norm's columns is one pass
constexpr int kWorkers = kWarps * 32;
constexpr int kThreads = kWorkers + 64;  // and one warp that streams matrices, one that streams small parameters
constexpr int kMaxStages = 16;
// Shared memory in which each warp prepares its activations of a single row: 256 columns of high halves and of low
// ones.
constexpr int kRoomPitch = kPass * 64 + 64;  // bytes; the halves lie in different banks
constexpr int kRoomBytes = kWarps * 2 * kRoomPitch;
constexpr int kMaxClasses = 2048;  // that one block draws from

// One layer's operands. Matrices are bf16, or i8 with a scale per row but for dt_proj; everything else is f32.
struct alignas(16) Layer {
  const float* norm_weight;
  const float *norm_in, *norm_bias;  // with LayerNorm: in_proj (or the head) times its weight, and times its bias
  const void *in_proj, *x_proj, *dt_proj, *out_proj;
  const float *in_scale, *x_scale, *out_scale;
  const float *conv_weight, *conv_bias, *dt_bias, *A, *D;
  const float *conv_state, *ssm_state;
  float *conv_state_out, *ssm_state_out, *kept_conv, *kept_ssm;
  float eps;
};

// How a matrix passes through the ring: slices of all of the block's rows by `slice` columns, a row every `pitch`
// bytes, which keeps the rows of a fragment in different banks. Each of kGroups groups has `share` runs of 32 columns.
enum : int { kIn, kOut, kHead };
struct Stream {
  int columns, slice, slices, pitch, share;
};

// Byte offsets of a layer's small parameters within their buffer. Parts of absent operands are not filled.
struct Small {
  int layer, norm_weight, norm_in, norm_bias, x_proj, dt_proj, conv_weight, conv_bias, dt_bias, A, D;
  int in_scale, x_scale, out_scale;
  int x_pitch;  // bytes from row to row of x_proj
  int bytes;
};

// Byte offsets into a block's shared memory.
struct Shared {
  int ring, small, red, red_out, moments, room, conv_in, u, gate, selected, delta, residual, logits, ids, bytes;
};

// The parts of a run that change from launch to launch; in memory that the host and the device both see.
struct Control {
  int32_t cancel;      // the host's wish: end after the step in hand
  int32_t done;        // steps made
  int32_t stopped_by;  // the stop that ended the run, or -1
};

struct Plan {
  int D, E, R, S, V, K, L, batch, steps, rows;
  int blocks, channels;  // channels of a block; the last may own fewer
  int m_tiles;           // 16-row tiles of the largest matrix of a block
  int samplers;          // further blocks that only draw ids; 0: the others do
  int stages, stage_bytes;
  float inverse_D;  // 1 / D
  bool layer_norm, sampled, table_bf16, head_i8, head_bias;
  bool feeds;         // drawn ids are those that the next step reads
  Stream streams[3];  // kIn, kOut, kHead
  Small small;
  Shared shared;
  const Layer* layers;      // L, and one more for the head: norm, in_scale (its scale), conv_bias (its bias), eps
  const void* table;        // (V,D) embedding
  const void* head_weight;  // (V,D)
  float* logits;            // (rows,V); not written where drawn ids feed the next step
  const int32_t* ids;       // (rows), read
  // Sampling, or nulls.
  int32_t* drawn_ids;          // (rows); `ids` where they feed the next step
  const float *params, *bias;  // (rows,8), (rows,V) or null
  uint32_t* rng;               // (rows,4)
  uint8_t* seen;               // (rows,V) or null
  float* logprob;              // (rows) or null
  // Exchanges between blocks (exchange.cuh): x (rows,D), y (rows,E), partial sums (blocks,rows*S), sums (rows*S),
  // logits (rows,V), drawn ids (rows).
  uint32_t *x, *y, *partial, *sum, *drawn_logits, *drawn;
};

struct Launch {
  int64_t run_steps;
  uint32_t before;  // steps made by earlier launches, modulo 2^32
  volatile Control* control;
  int32_t* watched;       // drawn ids (run_steps, rows), memory of the host; or null
  float* watched_logits;  // of a single step (rows, V), memory of the host; or null
  int64_t history;
  int32_t* recent;  // history + run_steps: ids drawn so far; kept only where there are stops
  const int32_t *stops, *stop_ends;
  int n_stops;
};

}  // namespace mb::cuda::decode
