// What the kernels that run along time share: registers of W neighbouring channels, and the split of channels into
// tasks.
#pragma once

namespace mb::cpu::MB_TARGET {

// Steps lie a whole row apart, which no hardware prefetcher follows; read this many ahead.
constexpr int64_t kAhead = 12;

MB_INLINE V load_part(const float* p, int lanes) { return lanes == W ? load(p) : load_n(p, lanes); }
MB_INLINE void store_part(float* p, V x, int lanes) {
  if (lanes == W) {
    store(p, x);
  } else {
    store_n(p, x, lanes);
  }
}

// What is kept for later would only push out of the caches what is needed sooner, and its lines need not be read first.
// So where a register is a line it goes past them; kept_end comes before another thread reads what was kept.
#if MB_LEVEL == MB_LEVEL_avx512
MB_INLINE void store_kept(float* p, V x, int lanes) {
  if (lanes == W && reinterpret_cast<uintptr_t>(p) % 64 == 0) {
    _mm512_stream_ps(p, x.v);
  } else {
    store_part(p, x, lanes);
  }
}
MB_INLINE void kept_end() { _mm_sfence(); }
#else
MB_INLINE void store_kept(float* p, V x, int lanes) { store_part(p, x, lanes); }
MB_INLINE void kept_end() {}
#endif

// dst[n][W] <- scale * src[lane][n] for the first `lanes` rows; the rest 0.
MB_INLINE void to_lanes(float* dst, const float* src, int64_t n, int lanes, float scale) {
  for (int64_t i = 0; i < n; i += W) {
    const int part = n - i >= W ? W : static_cast<int>(n - i);
    V rows[W];
    MB_UNROLL
    for (int l = 0; l < W; l++) rows[l] = l < lanes ? load_part(src + l * n + i, part) * set1(scale) : zero();
    transpose(rows);
    MB_UNROLL
    for (int k = 0; k < W; k++) {
      if (k < part) store(dst + (i + k) * W, rows[k]);
    }
  }
}
// dst[k] <- src[lane][k], k in 0 .. 3.
MB_INLINE void load_fours(const float* src, V* dst) {
#if MB_LEVEL == MB_LEVEL_avx512
  const __m512 ab[2] = {_mm512_loadu_ps(src), _mm512_loadu_ps(src + 16)};
  const __m512 cd[2] = {_mm512_loadu_ps(src + 32), _mm512_loadu_ps(src + 48)};
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  MB_UNROLL
  for (int k = 0; k < 4; k++) {
    const __m512i at = _mm512_add_epi32(first, _mm512_set1_epi32(k));
    const __m512 low = _mm512_permutex2var_ps(ab[0], at, ab[1]), high = _mm512_permutex2var_ps(cd[0], at, cd[1]);
    dst[k] = {_mm512_shuffle_f32x4(low, high, 0x44)};
  }
#else
  alignas(64) float spread[4 * W];
  to_lanes(spread, src, 4, W, 1.0f);
  MB_UNROLL
  for (int k = 0; k < 4; k++) dst[k] = load(spread + k * W);
#endif
}
// dst[lane][n] <- src[n][W], for the first `lanes` rows.
MB_INLINE void from_lanes(float* dst, const float* src, int64_t n, int lanes) {
  for (int64_t i = 0; i < n; i += W) {
    const int part = n - i >= W ? W : static_cast<int>(n - i);
    V rows[W];
    MB_UNROLL
    for (int k = 0; k < W; k++) rows[k] = k < part ? load(src + (i + k) * W) : zero();
    transpose(rows);
    MB_UNROLL
    for (int l = 0; l < W; l++) {
      if (l < lanes) store_part(dst + l * n + i, rows[l], part);
    }
  }
}

// dst[lane][n] <- h[n], kept as by store_kept.
MB_INLINE void keep_lanes(float* dst, const V* h, int64_t n, int lanes) {
  MB_UNROLL
  for (int64_t i = 0; i < n; i += W) {
    const int part = n - i >= W ? W : static_cast<int>(n - i);
    V rows[W];
    MB_UNROLL
    for (int k = 0; k < W; k++) rows[k] = k < part ? h[i + k] : zero();
    transpose(rows);
    MB_UNROLL
    for (int l = 0; l < W; l++) {
      if (l < lanes) store_kept(dst + l * n + i, rows[l], part);
    }
  }
}

constexpr int64_t kChannelBlock = 16;  // the unit of channels that tasks are made of, on every target

// Calls f(b, e0, e1) for this thread's share of (sequence, block of 16 channels), neighbours joined.
template <class F>
MB_INLINE void each_channel_range(const Team& team, int64_t batch, int64_t channels, F f) {
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  const Team::Range mine = team.share(batch * blocks);
  for (int64_t task = mine.begin; task < mine.end;) {
    const int64_t b = task / blocks, end = (b + 1) * blocks < mine.end ? (b + 1) * blocks : mine.end;
    const int64_t e0 = (task - b * blocks) * kChannelBlock, e1 = (end - b * blocks) * kChannelBlock;
    f(b, e0, e1 < channels ? e1 : channels);
    task = end;
  }
}

}  // namespace mb::cpu::MB_TARGET
