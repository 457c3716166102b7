// The decode kernel: one block per multiprocessor, all of them running every layer of every step together.
//
// A block owns E / blocks channels from in_proj to the gate, D / blocks rows of out_proj and V / blocks rows of the
// head. A layer has four phases, and what a phase needs of other blocks comes through exchange.cuh:
//   1. x (rows,D) -> norm -> in_proj -> convolution -> u of own channels -> own share of x_proj's sums
//   2. the sums over all channels: selected (rows, R + 2N)
//   3. delta of own channels -> scan -> gated y of own channels
//   4. y (rows,E) -> own rows of out_proj -> own columns of the residual x
// Equations: native/ref/mamba_block.h.
#pragma once
#include "draw.cuh"
#include "product.cuh"
#include "stream.cuh"

namespace mb::cuda::decode {

__device__ __forceinline__ float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }
__device__ __forceinline__ float softplus(float v) { return v > 20.0f ? v : log1pf(__expf(v)); }

// A buffer starts out as zeros, so the tag of use 0 is 1.
__device__ __forceinline__ uint32_t tag(uint32_t use) { return (use & 1) ^ 1; }

// Draws ids from logits. A drawn word is id << 2 | end << 1 | tag, and `end` counts in the first row's.
class Sampler {
 public:
  __device__ Sampler(const Plan& p, const Launch& launch, char* shared) : p_(p), launch_(launch), shared_(shared) {}

  // The whole run, in a block that does nothing else.
  __device__ void run(int row) {
    bool stop = false;
#pragma unroll 1
    for (int64_t step = 1; step <= launch_.run_steps && !stop; step++) {
      const uint32_t use = tag(launch_.before + static_cast<uint32_t>(step - 1));
      draw_rows(step, row, kMaxRows, use);
      stop = take(p_.drawn, use) >> 1 & 1;
    }
  }

  // Rows first, first + by, ... of the step, which is counted from 1.
  __device__ void draw_rows(int64_t step, int first, int by, uint32_t use) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int r = first; r < p_.rows; r += by) {
      int cancel = 0;
      if (r == 0 && thread == 0) cancel = launch_.control->cancel;  // read while the logits are on their way
      float* logits = reinterpret_cast<float*>(shared_ + p_.shared.logits);
#pragma unroll 1
      for (int v = thread; v < p_.V; v += kWorkers) {
        logits[v] = untagged(take(p_.drawn_logits + static_cast<long long>(r) * p_.V + v, use));
      }
      worker_barrier();
      SampleRow row;
      row.V = p_.V;
      row.logits = logits;
      row.bias = p_.bias ? p_.bias + static_cast<long long>(r) * p_.V : nullptr;
      row.seen = p_.seen ? p_.seen + static_cast<long long>(r) * p_.V : nullptr;
      row.params = reinterpret_cast<const SampleParams*>(p_.params) + r;
      row.rng = p_.rng + r * 4;
      row.scores = nullptr;
      row.order = nullptr;
      row.logprob = p_.logprob ? p_.logprob + r : nullptr;
      const DrawRoom room(shared_ + p_.shared.logits + (p_.V + 1) / 2 * 8, p_.V);
      const int id = draw_row(row, room);
      if (thread == 0) {
        const bool end = r == 0 && (ends_in_stop(id, step) || cancel);
        put_word(p_.drawn + r, static_cast<uint32_t>(id) << 2 | (end ? 2u : 0u) | use);
        p_.drawn_ids[r] = id;
        if (launch_.watched) launch_.watched[(step - 1) * p_.rows + r] = id;
      }
      if (row.logprob) store_logprob(row, room, id);
      worker_barrier();
    }
  }

 private:
  // Whether the ids of the only sequence now end in one of the stops.
  __device__ bool ends_in_stop(int id, int64_t step) {
    if (launch_.n_stops == 0) return false;
    const int64_t made = launch_.history + step;
    launch_.recent[made - 1] = id;
    int start = 0;
    for (int i = 0; i < launch_.n_stops; start = launch_.stop_ends[i++]) {
      const int length = launch_.stop_ends[i] - start;
      if (length > made) continue;
      int same = 0;
      while (same < length && launch_.stops[start + length - 1 - same] == launch_.recent[made - 1 - same]) same++;
      if (same < length) continue;
      launch_.control->stopped_by = i;
      return true;
    }
    return false;
  }

  const Plan& p_;
  const Launch& launch_;
  char* shared_;
};

// The thread's number, in a way that hides that it never changes.
__device__ __forceinline__ int same_thread() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

template <class C>
class Worker {
 public:
  using W = typename C::W;

  __device__ Worker(const Plan& p, const Share& own, const Launch& launch, Barriers& bars, char* shared)
      : p_(p),
        launch_(launch),
        bars_(bars),
        shared_(shared),
        sampler_(p, launch, shared),
        own_(own),
        tid_(same_thread()),
        at_(tid_) {
    uses_ = launch.before * static_cast<uint32_t>(p.L);
  }

  __device__ void run() {
    int* ids = ints(p_.shared.ids);
#pragma unroll 1
    for (int r = tid_; r < all_rows(); r += kWorkers) ids[r] = p_.ids[r];
    worker_barrier();
    int64_t step = 0;
    bool stop = false;
#pragma unroll 1
    while (step < launch_.run_steps && !stop) {
      const uint32_t turn = launch_.before + static_cast<uint32_t>(step);
      start_residual();
      layers(turn);
      step++;
      if (!p_.sampled) continue;
      if (p_.samplers == 0) sampler_.draw_rows(step, blockIdx.x, p_.blocks, tag(turn));
      stop = receive(tag(turn));
    }
    if (tid_ == 0) bars_.quit = 1;
    if (blockIdx.x == 0 && tid_ == 0) launch_.control->done = static_cast<int32_t>(step);
  }

 private:
  __device__ int all_rows() const { return C::kOne ? 1 : p_.rows; }
  __device__ int steps() const { return C::kOne ? 1 : p_.steps; }
  __device__ int batch() const { return C::kOne ? 1 : p_.batch; }
  __device__ int taps() const { return C::kOne ? kMaxTaps : p_.K; }
  // item = row * of.d + rest
  __device__ int row_of(const Divider& of, int item, int& rest) const {
    if (!C::kOne) return of.quotient(item, rest);
    rest = item;
    return 0;
  }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared_ + offset); }
  __device__ int* ints(int offset) const { return reinterpret_cast<int*>(shared_ + offset); }
  // The embedding of the ids, own columns.
  __device__ void start_residual() {
    const int* ids = ints(p_.shared.ids);
    float* residual = floats(p_.shared.residual);
#pragma unroll 1
    for (int i = tid_; i < own_.d_rows * all_rows(); i += kWorkers) {
      int m;
      const int r = row_of(own_.by_d_rows, i, m);
      const long long at = static_cast<long long>(ids[r]) * p_.D + own_.d0 + m;
      residual[i] =
          p_.table_bf16 ? to_float(static_cast<const bf16*>(p_.table)[at]) : static_cast<const float*>(p_.table)[at];
    }
  }

  __device__ void wait_small() {
    barrier_wait(&bars_.small_full[small_.stage], small_.phase);
    params_ = shared_ + p_.shared.small + small_.stage * p_.small.bytes;
  }
  // After the last use by this warp.
  __device__ void leave_small() {
    __syncwarp();
    if (at_.lane == 0) barrier_arrive(&bars_.small_empty[small_.stage]);
    small_.next(2);
  }
  __device__ const float* param(int offset) const { return reinterpret_cast<const float*>(params_ + offset); }

  // Product 2l of a step is in_proj of layer l, product 2l + 1 its out_proj, and product 2L the head:
  // red(k_group, row, m) = rows of own weights times activations, and what the norm needs. All of them share one copy
  // of the code, since a layer takes less time than fetching instructions from afar.
  __device__ __forceinline__ void product(int index, int rows, float eps) {
    const bool out = index % 2, last = index == 2 * p_.L;
    const Stream& stream = p_.streams[out ? kOut : last ? kHead : kIn];
    Source from;
    if (index == 0) {
      from.table = p_.table;
      from.table_bf16 = p_.table_bf16;
      from.ids = ints(p_.shared.ids);
    } else {
      from.exchange = out ? p_.y : p_.x;
      from.tag = out ? tag(uses_) : tag(uses_ - 1);
    }
    const char* ring = shared_ + p_.shared.ring;
    const bool i8 = !last || p_.head_i8;
    float* red = floats(out ? p_.shared.red_out : p_.shared.red);
    Norm norm;
    norm.weight = out ? nullptr : param(p_.small.norm_weight);
    if constexpr (C::kOne) {
      float* own = red + at_.split * rows;
      Accumulators<C> acc;
      Moments of_thread;
      multiply_one<C>(p_, at_, stream, i8, rows, from, norm, bars_, ring, shared_ + p_.shared.room, cursor_, of_thread,
                      acc);
      if (norm.weight) {
        const Moments of_group{warp_sum(of_thread.sum), warp_sum(of_thread.squares)};
        if (at_.lane == 0) moments()[at_.split] = of_group;
      }
#pragma unroll
      for (int m = 0; m < C::kMTiles; m++) {
        if (m * 16 >= rows) break;
        each_result<C>(at_, acc.v[m], m * 16, 0, rows, 1, [&](int row, int, float v) { own[row] = v; });
      }
    } else {
      multiply_rows<C>(p_, at_, stream, i8, rows, from, norm, bars_, ring, cursor_, moments(), red);
    }
  }
  __device__ Moments* moments() const { return reinterpret_cast<Moments*>(shared_ + p_.shared.moments); }
  // Result m of row r of in_proj or the head, after the norm.
  __device__ float normed(int rows, int m, int r, float eps) const {
    Moments sums;
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
      const Moments v = moments()[group * all_rows() + r];
      sums.sum += v.sum;
      sums.squares += v.squares;
    }
    float product = reduced(p_.shared.red, rows, m, r), mean = 0.0f;
    if (p_.layer_norm) {
      mean = __fmul_rn(sums.sum, p_.inverse_D);
      product = fmaf(-mean, param(p_.small.norm_in)[m], product);
    }
    const float variance = fmaxf(fmaf(sums.squares, p_.inverse_D, -__fmul_rn(mean, mean)), 0.0f);
    const float factor = rsqrtf(__fadd_rn(variance, eps));
    return p_.layer_norm ? fmaf(product, factor, param(p_.small.norm_bias)[m]) : __fmul_rn(product, factor);
  }
  // A result of a product: quads of column groups in order, each the sum of its groups in order.
  __device__ float reduced(int offset, int rows, int m, int r) const {
    const float* from = floats(offset) + r * rows + m;
    const int stride = all_rows() * rows;
    float sum = 0.0f;
#pragma unroll
    for (int quad = 0; quad < kQuads; quad++) {
      if constexpr (C::kSplit == kGroups) {
        sum += sum_groups<4>(from + quad * 4 * stride, 4, stride);
      } else {
        sum += from[quad * stride];
      }
    }
    return sum;
  }

  // Every layer, then the head.
  __device__ void layers(uint32_t turn) {
    float eps = 0.0f;
#pragma unroll 1
    for (int index = 0;; index++) {
      // What follows from the thread's number is cheaper to find again than to keep.
      tid_ = same_thread();
      at_ = Place<C>(tid_);
      const bool out = index % 2, last = index == 2 * p_.L;
      if (!out) wait_small();
      const Layer& w = *reinterpret_cast<const Layer*>(params_ + p_.small.layer);
      eps = w.eps;
      if (!out && !last) prefetch_states(w);
      const int rows = out ? own_.d_rows : last ? own_.v_rows : 2 * own_.channels;
      product(index, rows, eps);
      worker_barrier();
      if (last) break;
      if (out) {
        finish_out();
        leave_small();
        uses_++;
      } else {
        finish_in(w, rows);
        worker_barrier();
        share_of_sums();
        if (!C::kOne) store_conv_states(w);
        select();
        scan(w);
      }
    }
    finish_head(tag(turn), eps);
    leave_small();
    worker_barrier();
  }

  // States are read while the block waits for x: the first ones that this thread will need.
  static constexpr int kAhead = C::kOne ? 1 : 4;
  __device__ void prefetch_states(const Layer& w) {
    if (!C::kOne) {
      load_conv_states(w);
    } else if (tid_ < own_.channels) {
#pragma unroll
      for (int k = 0; k < kMaxTaps - 1; k++) conv_ahead_[k] = __ldcg(conv_at(w.conv_state, 0, k, tid_));
    }
    ssm_ahead_ = load_state(w, tid_ / kStates);
  }
  static constexpr int kLanes = kWorkers / kStates;  // channels at a time
  __device__ const float* conv_at(const float* state, int b, int k, int channel) const {
    return state + (static_cast<long long>(b) * (taps() - 1) + k) * p_.E + own_.e0 + channel;
  }
  __device__ long long ssm_at(int b, int channel) const {
    return (static_cast<long long>(b) * p_.E + own_.e0 + channel) * kStates + tid_ % kStates;
  }
  // Item: one channel of one sequence.
  __device__ float load_state(const Layer& w, int item) const {
    if (item >= batch() * own_.channels) return 0.0f;
    int channel;
    const int b = row_of(own_.by_channels, item, channel);
    return __ldcg(w.ssm_state + ssm_at(b, channel));
  }

  // in_proj's results: half of the warps pass the gate through SiLU, the others the rest through the convolution.
  __device__ void finish_in(const Layer& w, int m_rows) {
    const int ce = own_.channels, half = kWorkers / 2;
    float *conv_in = floats(p_.shared.conv_in), *gate = floats(p_.shared.gate);
    const bool gates = tid_ >= half;
    const int first = gates ? tid_ - half : tid_;
#pragma unroll 1
    for (int i = first; i < ce * all_rows(); i += half) {
      int channel;
      const int r = row_of(own_.by_channels, i, channel), m = gates ? ce + channel : channel;
      float v = normed(m_rows, m, r, w.eps);
      if (sizeof(W) == 1) v = __fmul_rn(v, param(p_.small.in_scale)[m]);
      if (gates) {
        gate[i] = silu(v);
      } else if (C::kOne) {
        convolve_one(w, m, i == tid_, v);
      } else {
        conv_in[conv_row(r) * ce + m] = v;
      }
    }
    if (C::kOne) return;
    worker_barrier();
    convolve_rows(w);
  }

  // u of a channel; the window's last input is that of the step.
  __device__ __forceinline__ float convolved(const Layer& w, int channel, const float (&window)[kMaxTaps]) const {
    const float* weight = param(p_.small.conv_weight) + channel * taps();
    float sum = w.conv_bias ? param(p_.small.conv_bias)[channel] : 0.0f;
#pragma unroll
    for (int k = 0; k < kMaxTaps; k++) {
      if (k < taps()) sum = fmaf(weight[k], window[k], sum);
    }
    return silu(sum);
  }
  // Leaves the inputs that step t hands to the next one in kept_conv (steps, batch, taps - 1, E).
  __device__ __forceinline__ void keep_conv(const Layer& w, int b, int t, int channel,
                                            const float (&window)[kMaxTaps]) const {
    if (!w.kept_conv) return;
    const int before = taps() - 1;
    float* kept = w.kept_conv + (static_cast<long long>(t) * batch() + b) * before * p_.E + own_.e0 + channel;
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; k++) {
      if (k < before) kept[static_cast<long long>(k) * p_.E] = window[k + 1];
    }
  }
  // A single row's channel.
  __device__ void convolve_one(const Layer& w, int channel, bool loaded, float input) {
    float window[kMaxTaps];
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; k++) {
      window[k] = loaded ? conv_ahead_[k] : __ldcg(conv_at(w.conv_state, 0, k, channel));
    }
    window[kMaxTaps - 1] = input;
    floats(p_.shared.u)[channel] = convolved(w, channel, window);
    keep_conv(w, 0, 0, channel, window);
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; k++) {
      __stcg(const_cast<float*>(conv_at(w.conv_state_out, 0, k, channel)), window[k + 1]);
    }
  }
  // With more rows than one the state's taps - 1 inputs of a sequence and then those of its steps lie in
  // conv_in (batch, taps - 1 + steps, channels). Where row r lies there:
  __device__ __forceinline__ int conv_row(int r) const {
    int t;
    return r + (own_.by_steps.quotient(r, t) + 1) * (taps() - 1);
  }
  __device__ void load_conv_states(const Layer& w) {
    const int before = taps() - 1;
#pragma unroll 1
    for (int i = tid_; i < own_.channels * before * batch(); i += kWorkers) {
      int channel, k;
      const int row = row_of(own_.by_channels, i, channel), b = own_.by_before.quotient(row, k);
      const int to = b * (before + steps()) + k;
      floats(p_.shared.conv_in)[to * own_.channels + channel] = __ldcg(conv_at(w.conv_state, b, k, channel));
    }
  }
  // All steps of all channels side by side.
  __device__ void convolve_rows(const Layer& w) {
    const int before = taps() - 1, ce = own_.channels;
#pragma unroll 1
    for (int i = tid_; i < ce * all_rows(); i += kWorkers) {
      int channel, t;
      const int r = row_of(own_.by_channels, i, channel), b = own_.by_steps.quotient(r, t);
      const float* input = floats(p_.shared.conv_in) + (r + b * before) * ce + channel;
      float window[kMaxTaps] = {};
#pragma unroll
      for (int k = 0; k < kMaxTaps; k++) {
        if (k <= before) window[k] = input[k * ce];
      }
      floats(p_.shared.u)[i] = convolved(w, channel, window);
      keep_conv(w, b, t, channel, window);
    }
  }
  // The last inputs become the state.
  __device__ void store_conv_states(const Layer& w) {
    const int before = taps() - 1;
#pragma unroll 1
    for (int i = tid_; i < own_.channels * before * batch(); i += kWorkers) {
      int channel, k;
      const int row = row_of(own_.by_channels, i, channel), b = own_.by_before.quotient(row, k);
      const int from = b * (before + steps()) + steps() + k;
      __stcg(const_cast<float*>(conv_at(w.conv_state_out, b, k, channel)),
             floats(p_.shared.conv_in)[from * own_.channels + channel]);
    }
  }

  // partial(block, row, s) = x_proj over own channels.
  __device__ void share_of_sums() {
    constexpr int kRows = C::kOne ? 1 : kTileRows;
    const int ce = own_.channels, tiles = (p_.S + 15) / 16;
    const float* u = floats(p_.shared.u);
    const char* weights = params_ + p_.small.x_proj;
    uint32_t* to = p_.partial + static_cast<long long>(blockIdx.x) * all_rows() * p_.S;
    const uint32_t use = tag(uses_);
    const auto write = [&](int m, int row, float v) { put(to + row * p_.S + m, v, use); };
#pragma unroll 1
    for (int i = tid_ / 32; i < tiles * ((all_rows() + kRows - 1) / kRows); i += kWarps) {
      int tile;
      const int r0 = row_of(own_.by_x_tiles, i, tile) * kRows, m0 = tile * 16;
      const int r = C::kOne ? 0 : min(r0 + at_.g, all_rows() - 1);
      float top[4] = {}, bottom[4] = {};  // of the first eight rows of x_proj and the others, or of all 16
#pragma unroll 1
      for (int k = 0; k < ce; k += 16) {
        uint32_t first[2] = {}, second[2] = {}, high[2] = {}, low[2] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int c = k + half * 8 + at_.t * 2;
          if (c >= ce) break;
          split(u[r * ce + c], u[r * ce + c + 1], high[half], low[half]);
          first[half] = weight_pair(weights + min(m0 + at_.g, p_.S - 1) * p_.small.x_pitch, c);
          second[half] = weight_pair(weights + min(m0 + 8 + at_.g, p_.S - 1) * p_.small.x_pitch, c);
        }
        if constexpr (C::kOne) {
          const bool lower = at_.g >= 4;
          mma(top, {first[0], second[0], first[1], second[1]}, lower ? low[0] : high[0], lower ? low[1] : high[1]);
        } else {
          mma(top, {high[0], low[0], high[1], low[1]}, first[0], first[1]);
          mma(bottom, {high[0], low[0], high[1], low[1]}, second[0], second[1]);
        }
      }
      if constexpr (C::kOne) {
        each_result<C>(at_, top, m0, r0, p_.S, 1, write);
      } else {
        each_of_tile<C>(at_, top, m0, r0, p_.S, all_rows(), write);
        each_of_tile<C>(at_, bottom, m0 + 8, r0, p_.S, all_rows(), write);
      }
    }
  }
  __device__ static uint32_t weight_pair(const char* row, int column) {
    if constexpr (sizeof(W) == 2) {
      return *reinterpret_cast<const uint32_t*>(row + column * 2);
    } else {
      uint32_t first, second;
      widen(*reinterpret_cast<const uint16_t*>(row + column), first, second);
      return first;
    }
  }

  // selected(row, s): all blocks' partial sums added up, each by one warp of one block, and handed out.
  __device__ void select() {
    const uint32_t use = tag(uses_);
#pragma unroll 1
    for (int q = tid_ / 32; q < own_.quads; q += kWarps) add_partial(own_.quad0 + q, use);
    float* selected = floats(p_.shared.selected);
#pragma unroll 1
    for (int i = tid_; i < all_rows() * p_.S / 4; i += kWorkers) {
      uint4 v;
#pragma unroll 1
      for (unsigned turn = 0; missing(v = peek4(p_.sum + i * 4), use); turn++) give_up_after(turn);
      *reinterpret_cast<float4*>(selected + i * 4) =
          make_float4(untagged(v.x), untagged(v.y), untagged(v.z), untagged(v.w));
    }
    worker_barrier();
  }

  // Four words of (rows, S): lane i adds up blocks i, i + 32, ...
  __device__ __forceinline__ void add_partial(int quad, uint32_t use) {
    constexpr int kAhead = 4;
    const int stride = all_rows() * p_.S, last = p_.blocks - 1;
    const uint32_t* from = p_.partial + quad * 4;
    float4 sum = {};
#pragma unroll 1
    for (int block = at_.lane; block <= last; block += 32 * kAhead) {
      uint4 v[kAhead];
#pragma unroll 1
      for (unsigned turn = 0;; turn++) {
        uint32_t waiting = 0;
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
          v[i] = peek4(from + static_cast<long long>(min(block + i * 32, last)) * stride);
          waiting |= missing(v[i], use);
        }
        if (!waiting) break;
        give_up_after(turn);
      }
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const float one = block + i * 32 <= last ? 1.0f : 0.0f;
        sum.x = fmaf(one, untagged(v[i].x), sum.x);
        sum.y = fmaf(one, untagged(v[i].y), sum.y);
        sum.z = fmaf(one, untagged(v[i].z), sum.z);
        sum.w = fmaf(one, untagged(v[i].w), sum.w);
      }
    }
    __syncwarp();
    sum.x = warp_sum(sum.x);
    sum.y = warp_sum(sum.y);
    sum.z = warp_sum(sum.z);
    sum.w = warp_sum(sum.w);
    if (at_.lane >= 4) return;
    float v = at_.lane == 0 ? sum.x : at_.lane == 1 ? sum.y : at_.lane == 2 ? sum.z : sum.w;
    const int word = quad * 4 + at_.lane;
    if (sizeof(W) == 1) {
      int s;
      own_.by_S.quotient(word, s);
      v *= param(p_.small.x_scale)[s];
    }
    put(p_.sum + word, v, use);
  }

  __device__ static float half_warp_sum(float v) {
#pragma unroll
    for (int step = kStates / 2; step > 0; step /= 2) v += __shfl_xor_sync(kFullWarp, v, step);
    return v;
  }

  // softplus(dt_proj + bias); 16 threads share a channel of a row and all get the result.
  __device__ float delta(int r, int channel) const {
    const float* selected = floats(p_.shared.selected) + r * p_.S;
    const bf16* weight = reinterpret_cast<const bf16*>(params_ + p_.small.dt_proj) + channel * p_.R;
    float sum = 0.0f;
    for (int k = tid_ % kStates; k < p_.R; k += kStates) sum = fmaf(to_float(weight[k]), selected[k], sum);
    return delta_of(half_warp_sum(sum), channel);
  }
  __device__ __forceinline__ float delta_of(float sum, int channel) const {
    return softplus(sum + param(p_.small.dt_bias)[channel]);
  }

  // 16 threads walk the 16 states of a channel of a sequence.
  __device__ void scan(const Layer& w) {
    const int ce = own_.channels, items = batch() * ce;
    float* deltas = floats(p_.shared.delta);
    if (steps() > 1) {
      const int tiles = (all_rows() + kTogether - 1) / kTogether;
#pragma unroll 1
      for (int i = tid_ / kStates; i < tiles * ce; i += kLanes) {
        int channel;
        const int tile = row_of(own_.by_channels, i, channel);
        store_deltas(tile * kTogether, channel, deltas);
      }
      worker_barrier();
    }
    float state[kAhead] = {ssm_ahead_};
#pragma unroll
    for (int i = 1; i < kAhead; i++) state[i] = load_state(w, tid_ / kStates + i * kLanes);
#pragma unroll 1
    for (int item = tid_ / kStates; item < items; item += kLanes) {
      int channel;
      const int b = row_of(own_.by_channels, item, channel);
      const float h = state[0];
#pragma unroll
      for (int i = 0; i + 1 < kAhead; i++) state[i] = state[i + 1];
      state[kAhead - 1] = load_state(w, item + kAhead * kLanes);
      if (steps() == 1) {
        scan_channel(w, b, channel, h);
      } else {
        scan_steps(w, b, channel, h);
      }
    }
  }

  // deltas(row, channel) of kTogether rows from `first` on, as delta() finds them.
  static constexpr int kTogether = 4;
  __device__ __forceinline__ void store_deltas(int first, int channel, float* deltas) const {
    const bf16* weight = reinterpret_cast<const bf16*>(params_ + p_.small.dt_proj) + channel * p_.R;
    const float* selected[kTogether];
    float sum[kTogether] = {};
#pragma unroll
    for (int i = 0; i < kTogether; i++) {
      selected[i] = floats(p_.shared.selected) + min(first + i, all_rows() - 1) * p_.S;
    }
#pragma unroll 1
    for (int k = tid_ % kStates; k < p_.R; k += kStates) {
      const float v = to_float(weight[k]);
#pragma unroll
      for (int i = 0; i < kTogether; i++) sum[i] = fmaf(v, selected[i][k], sum[i]);
    }
    const float own = own_sum(sum);
    const int i = tid_ % kStates;
    if (i < kTogether && first + i < all_rows()) {
      deltas[(first + i) * own_.channels + channel] = delta_of(own, channel);
    }
  }
  // Sums over 16 threads, thread i of which gets that of v[i % 4]. An index in a loop would send v to local memory.
  __device__ __forceinline__ float own_sum(float (&v)[kTogether]) const {
#pragma unroll
    for (int i = 0; i < kTogether; i++) v[i] = half_warp_sum(v[i]);
    static_assert(kTogether == 4);
    const float first = tid_ & 1 ? v[1] : v[0], second = tid_ & 1 ? v[3] : v[2];
    return tid_ & 2 ? second : first;
  }

  // scan_channel() for more steps than one, kTogether at a time, so that loads, exponentials and sums run side by side.
  __device__ __forceinline__ void scan_steps(const Layer& w, int b, int channel, float h) {
    const int ce = own_.channels, n = tid_ % kStates, first = b * steps();
    const float A = param(p_.small.A)[channel * kStates + n], D = param(p_.small.D)[channel];
    const uint32_t use = tag(uses_);
    // Of the next step.
    const float* selected = floats(p_.shared.selected) + first * p_.S + p_.R + n;
    int at = first * ce + channel;
    uint32_t* y_at = p_.y + static_cast<long long>(first + n) * p_.E + own_.e0 + channel;
    const long long kept_stride = static_cast<long long>(batch()) * p_.E * kStates;
    const bool keeps = w.kept_ssm;
    float* kept = keeps ? w.kept_ssm + ssm_at(b, channel) : nullptr;
#pragma unroll 1
    for (int left = steps(); left > 0; left -= kTogether) {
      const float *u = floats(p_.shared.u) + at, *gate = floats(p_.shared.gate) + at,
                  *deltas = floats(p_.shared.delta) + at;
      float decay[kTogether], input[kTogether], sum[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        const int step = min(i, left - 1);
        const float dt = deltas[step * ce];
        decay[i] = __expf(__fmul_rn(dt, A));
        input[i] = __fmul_rn(__fmul_rn(dt, selected[step * p_.S]), u[step * ce]);
        sum[i] = selected[step * p_.S + kStates];
      }
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        if (i < left) h = fmaf(decay[i], h, input[i]);
        sum[i] = __fmul_rn(sum[i], h);
        if (keeps && i < left) kept[i * kept_stride] = h;
      }
      const float y = own_sum(sum);
      if (n < min(left, kTogether)) put(y_at, __fmul_rn(fmaf(D, u[n * ce], y), gate[n * ce]), use);
      if (keeps) kept += kTogether * kept_stride;
      selected += kTogether * p_.S;
      at += kTogether * ce;
      y_at += static_cast<long long>(kTogether) * p_.E;
    }
    __stcg(w.ssm_state_out + ssm_at(b, channel), h);
  }

  // One step of a channel of sequence b.
  __device__ __forceinline__ void scan_channel(const Layer& w, int b, int channel, float h) {
    const int at = b * own_.channels + channel, n = tid_ % kStates;
    const float A = param(p_.small.A)[channel * kStates + n], D = param(p_.small.D)[channel];
    const float* selected = floats(p_.shared.selected) + b * p_.S + p_.R;
    const float dt = delta(b, channel), v = floats(p_.shared.u)[at];
    h = fmaf(__expf(__fmul_rn(dt, A)), h, __fmul_rn(__fmul_rn(dt, selected[n]), v));
    if (w.kept_ssm) w.kept_ssm[ssm_at(b, channel)] = h;
    const float y = half_warp_sum(__fmul_rn(selected[kStates + n], h));
    if (n == 0) {
      put(p_.y + static_cast<long long>(b) * p_.E + own_.e0 + channel,
          __fmul_rn(fmaf(D, v, y), floats(p_.shared.gate)[at]), tag(uses_));
    }
    __stcg(w.ssm_state_out + ssm_at(b, channel), h);
  }

  // Own columns of the residual += own rows of out_proj times y.
  __device__ void finish_out() {
    float* residual = floats(p_.shared.residual);
#pragma unroll 1
    for (int i = tid_; i < own_.d_rows * all_rows(); i += kWorkers) {
      int m;
      const int r = row_of(own_.by_d_rows, i, m);
      const float v = reduced(p_.shared.red_out, own_.d_rows, m, r), before = residual[i];
      residual[i] = sizeof(W) == 1 ? fmaf(v, param(p_.small.out_scale)[m], before) : before + v;
      put(p_.x + static_cast<long long>(r) * p_.D + own_.d0 + m, residual[i], tag(uses_));
    }
  }

  // Logits of own classes.
  __device__ void finish_head(uint32_t use, float eps) {
#pragma unroll 1
    for (int i = tid_; i < own_.v_rows * all_rows(); i += kWorkers) {
      int m;
      const int r = row_of(own_.by_v_rows, i, m);
      float v = normed(own_.v_rows, m, r, eps);
      if (p_.head_i8) v = __fmul_rn(v, param(p_.small.in_scale)[m]);
      if (p_.head_bias) v = __fadd_rn(v, param(p_.small.conv_bias)[m]);
      const long long at = static_cast<long long>(r) * p_.V + own_.v0 + m;
      // Ids are drawn from the very logits that a pass returns.
      if (p_.sampled) put(p_.drawn_logits + at, v, use);
      if (p_.feeds) continue;
      v = untagged(tagged(v, use));
      p_.logits[at] = v;
      if (launch_.watched_logits) launch_.watched_logits[at] = v;
    }
  }

  // The drawn ids; returns whether the run ends.
  __device__ bool receive(uint32_t use) {
    int* ids = ints(p_.shared.ids);
    if (tid_ < all_rows()) {
      const uint32_t word = take(p_.drawn + tid_, use);
      if (p_.feeds) ids[tid_] = static_cast<int>(word >> 2);
      if (tid_ == 0) ids[kMaxRows] = static_cast<int>(word >> 1 & 1);
    }
    worker_barrier();
    return ids[kMaxRows] != 0;
  }

  const Plan& p_;
  const Launch& launch_;
  Barriers& bars_;
  char* shared_;
  Sampler sampler_;
  const Share& own_;
  int tid_;
  Place<C> at_;
  Cursor cursor_, small_;
  const char* params_ = nullptr;  // of the layer in hand
  uint32_t uses_;                 // layers run so far, by earlier launches too
  float conv_ahead_[kMaxTaps - 1] = {}, ssm_ahead_ = 0.0f;
};

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    decode(const __grid_constant__ Plan p, const __grid_constant__ Launch launch) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char shared[];
  __shared__ Barriers bars;
  __shared__ Share own;
  if (threadIdx.x == 0) {
    own.set(p);
    for (int i = 0; i < p.stages; i++) {
      barrier_init(&bars.full[i], 1);
      barrier_init(&bars.empty[i], kWarps);
    }
    for (int i = 0; i < 2; i++) {
      barrier_init(&bars.small_full[i], 32);
      barrier_init(&bars.small_empty[i], kWarps);
    }
    bars.quit = 0;
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (static_cast<int>(blockIdx.x) >= p.blocks) {
    if (warp < kWarps) Sampler(p, launch, shared).run(static_cast<int>(blockIdx.x) - p.blocks);
    return;
  }
  if (warp < kWarps) {
    Worker<C>(p, own, launch, bars, shared).run();
    return;
  }
  if (warp == kWarps) {
    stream_matrices<typename C::W>(p, own, launch, bars, shared + p.shared.ring);
  } else if (warp == kWarps + 1) {
    SmallStreamer<typename C::W>(p, own, bars, shared + p.shared.small).run(launch.run_steps);
  }
#endif
}

}  // namespace mb::cuda::decode
