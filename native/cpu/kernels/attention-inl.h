// Causal attention with grouped key heads (equations in ops.def), computed online by blocks of keys (Milakov &
// Gimelshein 2018; Dao 2023): q, y(B,T,H*P), k, v(B,S,J*P), lse(B,T,H). Also the cache that it reads in decoding.
//
// Many steps: a task is a head and a block of queries, which lie in the lanes of vectors; keys and values are
// broadcast, so that the softmax of a query needs no sum across lanes. Few steps, as in decoding: a task is a piece of
// the keys, which it reads once and in order for all heads; what the pieces give is put together afterwards. Pieces and
// blocks do not depend on the threads. Scores are in units of log 2.
#pragma once

namespace mb::cpu::MB_TARGET {

constexpr float kLn2 = 0.693147180559945309f;
constexpr float kNoScore = -1e30f;                 // below every score, and far from infinity
constexpr int64_t kAcross = 128;                   // queries that lie in lanes at once
constexpr int64_t kApart = kAcross + 16;           // and how far their rows are: no power of two, for the caches' sake
constexpr int64_t kAlong = 8 * kPanelRows;         // keys that meet them at once
constexpr int64_t kFewSteps = 8;                   // up to here keys are split instead of queries
constexpr int64_t kPiece = 128, kPieceBlock = 32;  // keys of a task there, and of one round
constexpr int64_t kFewHeads = 32;                  // and key heads of one round,
constexpr int64_t kFewBytes = 32 * 1024;           // or so many bytes of their keys and values
static_assert(kAcross % kPanelCols == 0 && kPieceBlock % W == 0);

struct Attention {
  int64_t B, T, S, H, J, P;
  const int32_t* length;
  Attention(const Tensor& q, const Tensor& k, double heads, const int32_t* lengths) : length(lengths) {
    B = q.dim(0), T = q.dim(1), S = k.dim(1), H = static_cast<int64_t>(heads);
    P = q.dim(2) / H, J = k.dim(2) / P;
  }
  int64_t key_head(int64_t h) const { return h / (H / J); }
  float scale() const { return 1.0f / __builtin_sqrtf(static_cast<float>(P)); }
  // The last key of step 0; -1: the sequence does not fit its cache.
  int64_t first(int64_t b) const {
    const int64_t at = length ? length[b] : S - T;
    return at >= 0 && at + T <= S ? at : -1;
  }
};

// The block of a head that comes `i`-th. Later queries see more keys, so first and last ones take turns: a contiguous
// range of tasks is then an equal share of the work.
MB_INLINE int64_t attention_turn(int64_t i, int64_t blocks) { return i % 2 ? blocks - 1 - i / 2 : i / 2; }

// c[i][j] = keep[j] c[i][j] + sum_s a[s][i] b[s][j] for MR rows i and kPanelCols columns j; keep null: from 0.
template <int MR>
__attribute__((noinline)) void attention_tile(int64_t steps, const float* a, int64_t a_stride, const float* b, float* c,
                                              const float* keep) {
  V acc[MR][kPanelVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kPanelVectors; j++) {
    const V kept = keep ? load(keep + j * W) : zero();
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) acc[i][j] = keep ? kept * load(c + i * kApart + j * W) : zero();
  }
  for (int64_t s = 0; s < steps; s++) {
    V bv[kPanelVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; j++) bv[j] = load(b + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const V av = set1(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; j++) acc[i][j] = fma(av, bv[j], acc[i][j]);
    }
    a += a_stride;
    b += kApart;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kPanelVectors; j++) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) store(c + i * kApart + j * W, acc[i][j]);
  }
}

// C = keep C + A^T B with a(steps,rows), b(steps,kAcross), c(rows,kAcross), of which `lanes` columns matter.
static void attention_product(int64_t rows, int64_t lanes, int64_t steps, const float* a, int64_t a_stride,
                              const float* b, float* c, const float* keep) {
  const int64_t tiles = (rows + kPanelRows - 1) / kPanelRows;
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t r0 = rows * i / tiles, r1 = rows * (i + 1) / tiles;
    for (int64_t j = 0; j < lanes; j += kPanelCols) {
      with_panel_rows(
          r1 - r0, [&](auto height) __attribute__((always_inline)) {
            attention_tile<height>(steps, a + r0, a_stride, b + j, c + r0 * kApart + j, keep ? keep + j : nullptr);
          });
    }
  }
}

// to[P][width] <- scale * rows(n,P); columns from n up to `fill` are 0.
template <class T>
static void attention_turned(const T* from, int64_t stride, int64_t n, int64_t P, float scale, int64_t fill,
                             int64_t width, float* to) {
  const V by = set1(scale);
  for (int64_t r = 0; r < fill; r += W) {
    for (int64_t i = 0; i < P; i += W) {
      const int part = static_cast<int>(min64(W, P - i));
      V t[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; l++) t[l] = r + l < n ? load_part(from + (r + l) * stride + i, part) * by : zero();
      transpose(t);
      for (int k = 0; k < part; k++) store(to + (i + k) * width + r, t[k]);
    }
  }
}

// Scores that no query may see, where start + row * row_step + lane * lane_step is negative, fall below all others.
static void attention_mask(int64_t rows, int64_t lanes, float start, float row_step, float lane_step, float* scores) {
  alignas(64) float place[W];
  for (int64_t j = 0; j < lanes; j += W) {
    for (int l = 0; l < W; l++) place[l] = start + static_cast<float>(j + l) * lane_step;
    const V base = load(place);
    for (int64_t r = 0; r < rows; r++) {
      const V sign = base + set1(static_cast<float>(r) * row_step);
      float* at = scores + r * kApart + j;
      store(at, load(at) + min(zero(), sign * set1(1e30f)));
    }
  }
}

// One more block of scores(keys,kAcross) becomes weights exp(score - top); keep is what the sums before must shrink by.
static void attention_softmax(int64_t keys, int64_t lanes, float* scores, float* top, float* sum, float* keep) {
  constexpr int kAtOnce = 8;
  for (int64_t j = 0; j < lanes; j += W) {
    float* s = scores + j;
    const V before = load(top + j);
    V best[4] = {before, before, before, before};
    for (int64_t r = 0; r < keys; r++) best[r % 4] = max(best[r % 4], load(s + r * kApart));
    const V now = max(max(best[0], best[1]), max(best[2], best[3]));
    const V shrink = exp2_fast(before - now);
    V total[kAtOnce];
    for (V& t : total) t = zero();
    int64_t r = 0;
    for (; r + kAtOnce <= keys; r += kAtOnce) {
      V x[kAtOnce];
      MB_UNROLL
      for (int i = 0; i < kAtOnce; i++) x[i] = load(s + (r + i) * kApart) - now;
      exp2_each<kAtOnce>(x);
      MB_UNROLL
      for (int i = 0; i < kAtOnce; i++) {
        store(s + (r + i) * kApart, x[i]);
        total[i] = total[i] + x[i];
      }
    }
    for (; r < keys; r++) {
      const V x = exp2_fast(load(s + r * kApart) - now);
      store(s + r * kApart, x);
      total[0] = total[0] + x;
    }
    const V all = ((total[0] + total[1]) + (total[2] + total[3])) + ((total[4] + total[5]) + (total[6] + total[7]));
    store(top + j, now);
    store(sum + j, fma(load(sum + j), shrink, all));
    store(keep + j, shrink);
  }
}

// to[row][i] <- factor[row] * from[i][row] for `rows` rows of P.
static void attention_rows_out(const float* from, const float* factor, int64_t rows, int64_t P, float* to,
                               int64_t stride) {
  for (int64_t r = 0; r < rows; r += W) {
    const V by = load(factor + r);
    for (int64_t i = 0; i < P; i += W) {
      const int part = static_cast<int>(min64(W, P - i));
      V t[W];
      for (int k = 0; k < W; k++) t[k] = k < part ? load(from + (i + k) * kApart + r) * by : zero();
      transpose(t);
      for (int64_t l = 0; l < min64(W, rows - r); l++) store_part(to + (r + l) * stride + i, t[l], part);
    }
  }
}

template <class T>
MB_INLINE void attention_copy(const T* from, int64_t stride, int64_t rows, int64_t P, float* to) {
  for (int64_t r = 0; r < rows; r++) {
    each_part(P, [&](int64_t d, int n) { store_part(to + r * P + d, load_part(from + r * stride + d, n), n); });
  }
}

// A thread's scratch, in floats. Names as for queries in lanes; the gradient of keys has keys in lanes.
struct AttentionScratch {
  float *across[2], *sums[2];      // [P][kApart]: operands in lanes, and what is summed
  float* scores[2];                // [kAlong][kApart]
  float *turned[2], *straight[2];  // [P][kAlong], [kAlong][P]: operands that are broadcast
  float *top, *sum, *keep, *ones;  // [kAcross]

  static int64_t floats(int64_t P) {
    return round_up(4 * P * kApart + 2 * kAlong * kApart + 4 * kAlong * P + 4 * kAcross, 16);
  }
  AttentionScratch(float* at, int64_t P) {
    for (float*& p : across) p = at, at += P * kApart;
    for (float*& p : sums) p = at, at += P * kApart;
    for (float*& p : scores) p = at, at += kAlong * kApart;
    for (float*& p : turned) p = at, at += P * kAlong;
    top = at, sum = top + kAcross, keep = sum + kAcross, ones = keep + kAcross;
    at += 4 * kAcross;
    for (float*& p : straight) p = at, at += P * kAlong;
    for (int64_t j = 0; j < kAcross; j++) ones[j] = 1.0f;
  }
};

// Queries [t0, t0 + n) of one head. T: of keys and values.
template <class T>
static void attention_block(const Attention& a, const AttentionScratch& w, int64_t first, int64_t t0, int64_t n,
                            const float* q, int64_t q_stride, const T* k, int64_t k_stride, const T* v,
                            int64_t v_stride) {
  const int64_t lanes = round_up(n, kPanelCols), end = first + t0 + n;
  attention_turned(q, q_stride, n, a.P, a.scale() * kLog2e, lanes, kApart, w.across[0]);
  memset(w.sums[0], 0, sizeof(float) * static_cast<size_t>(a.P * kApart));
  for (int64_t j = 0; j < kAcross; j++) w.top[j] = kNoScore, w.sum[j] = 0.0f;
  for (int64_t s0 = 0; s0 < end; s0 += kAlong) {
    const int64_t keys = min64(kAlong, end - s0);
    attention_turned(k + s0 * k_stride, k_stride, keys, a.P, 1.0f, keys, kAlong, w.turned[0]);
    attention_product(keys, lanes, a.P, w.turned[0], kAlong, w.across[0], w.scores[0], nullptr);
    if (s0 + keys - 1 > first + t0) {
      attention_mask(keys, lanes, static_cast<float>(first + t0 - s0) + 0.5f, -1.0f, 1.0f, w.scores[0]);
    }
    attention_softmax(keys, lanes, w.scores[0], w.top, w.sum, w.keep);
    attention_copy(v + s0 * v_stride, v_stride, keys, a.P, w.straight[0]);
    attention_product(a.P, lanes, keys, w.straight[0], a.P, w.scores[0], w.sums[0], w.keep);
  }
}

template <class T>
static void attention_many(const Node& node, const Team& team, const Attention& a) {
  namespace in = at::attention::in;
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &v = node.in(in::v);
  const Tensor &y = node.out(at::attention::out::y), &lse = node.out(at::attention::out::lse);
  const AttentionScratch w(reinterpret_cast<float*>(team.scratch) + team.index * AttentionScratch::floats(a.P), a.P);
  const int64_t blocks = (a.T + kAcross - 1) / kAcross;
  const Team::Range tasks = team.share(a.B * a.H * blocks);
  for (int64_t task = tasks.begin; task < tasks.end; task++) {
    const int64_t b = task / blocks / a.H, h = task / blocks % a.H, first = a.first(b);
    const int64_t t0 = attention_turn(task % blocks, blocks) * kAcross, n = min64(kAcross, a.T - t0);
    const int64_t row = b * a.T + t0, column = a.key_head(h) * a.P;
    if (first >= 0) {
      attention_block(a, w, first, t0, n, q.row<float>(row) + h * a.P, q.row_stride, k.row<T>(b * a.S) + column,
                      k.row_stride, v.row<T>(b * a.S) + column, v.row_stride);
    }
    for (int64_t i = 0; i < n; i++) {
      if (lse)
        lse.row<float>(row + i)[h] = first < 0 ? __builtin_nanf("") : kLn2 * (w.top[i] + __builtin_log2f(w.sum[i]));
      w.keep[i] = first < 0 ? __builtin_nanf("") : 1.0f / w.sum[i];
    }
    attention_rows_out(w.sums[0], w.keep, n, a.P, y.row<float>(row) + h * a.P, y.row_stride);
  }
}

// What a piece of the keys gives for one query: the weighted values (P), top, sum.
MB_INLINE int64_t partial_floats(int64_t P) { return round_up(P + 2, 16); }

// Calls fn(d, lanes) for the parts of a head of P. kParts: how many, all of them whole vectors; 0: any width.
template <int kParts, class F>
MB_INLINE void each_head_part(int64_t P, F fn) {
  if constexpr (kParts > 0) {
    MB_UNROLL
    for (int d = 0; d < kParts; d++) fn(d * W, W);
  } else {
    each_part(P, fn);
  }
}

// One query of each of some key heads, and n <= kPieceBlock more keys and values for it. Heads lie side by side in
// rows.
template <class T>
struct FewKeys {
  int64_t n, heads, P;
  float scale;
  const float* q;
  int64_t q_apart;  // from the query of one key head to that of the next
  const T *k, *v;
  int64_t k_stride, v_stride;
  float* partial;
  int64_t partial_apart;
  bool ahead;       // whether to read ahead, as one of the queries that read the same keys does,
  const T* next_k;  // and the keys that follow, if any do
};

// A head's part of a row, on its way into the second cache.
template <class T>
MB_INLINE void prefetch_head(const T* from, int64_t P) {
  for (int64_t d = 0; d < P; d += 64 / static_cast<int64_t>(sizeof(T))) prefetch_far(from + d);
}

// score[head][key] <- scale q . k. Keys are read in the order of memory, and values are on their way meanwhile.
template <int kParts, class T>
MB_INLINE void attention_few_scores(const FewKeys<T>& f, float* score) {
  const int64_t heads = f.heads, P = kParts > 0 ? kParts * W : f.P, q_apart = f.q_apart, all = f.n * heads;
  const int64_t to_next_k = f.k_stride - heads * P, to_next_v = f.v_stride - heads * P;
  const bool reads_ahead = f.ahead;
  const float* q = f.q;
  const T *k = f.k, *v = f.v;
  int64_t h = 0, to_h = 0;
  for (int64_t i = 0; i < all; i += W) {
    V dots[W];
    MB_UNROLL
    for (int l = 0; l < W; l++) {
      V dot = zero();
      each_head_part<kParts>(
          P, [&](int64_t d, int lanes)
                 __attribute__((always_inline)) { dot = fma(load_part(q + d, lanes), load_part(k + d, lanes), dot); });
      if (reads_ahead) prefetch_head(v, P);
      dots[l] = dot;
      if (i + l + 1 >= all) continue;  // past the end the last one comes again, and is dropped
      q += q_apart, k += P, v += P;
      if (++h == heads) h = 0, q = f.q, k += to_next_k, v += to_next_v;
    }
    alignas(64) float sums[W];
    store(sums, sum_each(dots) * set1(f.scale));
    for (int64_t l = 0; l < min64(W, all - i); l++) {
      *score = sums[l];
      score += kPieceBlock;
      if (++to_h == heads) to_h = 0, score -= heads * kPieceBlock - 1;
    }
  }
}

// Scores of one head become weights exp(score - top); what was summed before shrinks to the new top.
template <int kParts>
MB_INLINE void attention_few_softmax(int64_t n, int64_t P, float* score, float* partial) {
  float *top = partial + P, *sum = top + 1;
  for (int64_t j = n; j % W != 0; j++) score[j] = kNoScore;
  V best = set1(*top), total = zero();
  for (int64_t j = 0; j < n; j += W) best = max(best, load(score + j));
  const V now = set1(reduce_max(best));
  for (int64_t j = 0; j < n; j += W) {
    const V x = exp2_fast(load(score + j) - now);
    store(score + j, x);
    total = total + x;
  }
  const V keep = exp2_fast(set1(*top) - now);
  alignas(64) float first[W];
  store(first, fma(set1(*sum), keep, set1(reduce_add(total))));
  *sum = first[0];
  store(first, now);
  *top = first[0];
  each_head_part<kParts>(
      P, [&](int64_t d, int lanes) { store_part(partial + d, load_part(partial + d, lanes) * keep, lanes); });
}

// Adds kKeys values from key s on, weighted, to what each head has summed. The keys that follow are on their way
// meanwhile.
template <int kParts, int kKeys, class T>
MB_INLINE void attention_few_values(const FewKeys<T>& f, int64_t s, const float* score) {
  const int64_t P = kParts > 0 ? kParts * W : f.P, heads = f.heads, apart = f.partial_apart;
  const int64_t stride = f.v_stride, ahead_stride = f.k_stride;
  const T *v = f.v + s * stride, *ahead = f.next_k ? f.next_k + s * ahead_stride : nullptr;
  float* o = f.partial;
  for (int64_t h = 0; h < heads; h++, v += P, o += apart) {
    V weight[kKeys];
    MB_UNROLL
    for (int i = 0; i < kKeys; i++) {
      weight[i] = set1(score[h * kPieceBlock + s + i]);
      if (ahead) prefetch_head(ahead + i * ahead_stride + h * P, P);
    }
    each_head_part<kParts>(
        P, [&](int64_t d, int lanes) __attribute__((always_inline)) {
          V sum = load_part(o + d, lanes);
          MB_UNROLL
          for (int i = 0; i < kKeys; i++) sum = fma(weight[i], load_part(v + i * stride + d, lanes), sum);
          store_part(o + d, sum, lanes);
        });
  }
}

template <int kParts, class T>
static void attention_few_keys(const FewKeys<T>& f) {
  alignas(64) float score[kFewHeads * kPieceBlock];
  attention_few_scores<kParts>(f, score);
  for (int64_t h = 0; h < f.heads; h++) {
    attention_few_softmax<kParts>(f.n, f.P, score + h * kPieceBlock, f.partial + h * f.partial_apart);
  }
  int64_t s = 0;
  for (; s + 4 <= f.n; s += 4) attention_few_values<kParts, 4>(f, s, score);
  for (; s < f.n; s++) attention_few_values<kParts, 1>(f, s, score);
}

// y and lse of one query from its pieces, which are `apart`.
static void attention_gather(const float* partials, int64_t apart, int64_t pieces, int64_t P, float* y, float* lse) {
  const float *tops = partials + P, *sums = tops + 1;
  float top = kNoScore;
  for (int64_t p = 0; p < pieces; p++) top = tops[p * apart] > top ? tops[p * apart] : top;
  const auto weight = [&](int64_t p) { return exp2_fast(set1(tops[p * apart] - top)); };
  V sum = zero();
  for (int64_t p = 0; p < pieces; p++) sum = fma(weight(p), set1(sums[p * apart]), sum);
  alignas(64) float total[W];
  store(total, sum);
  if (lse) *lse = kLn2 * (top + __builtin_log2f(total[0]));
  memset(y, 0, sizeof(float) * static_cast<size_t>(P));
  for (int64_t p = 0; p < pieces; p++) {
    const V by = weight(p) / sum;
    const float* o = partials + p * apart;
    each_part(P, [&](int64_t d, int n) { store_part(y + d, fma(by, load_part(o + d, n), load_part(y + d, n)), n); });
  }
}

template <int kParts, class T>
static void attention_few(const Node& node, const Team& team, const Attention& a) {
  namespace in = at::attention::in;
  const Tensor &q = node.in(in::q), &k = node.in(in::k), &v = node.in(in::v);
  const Tensor &y = node.out(at::attention::out::y), &lse = node.out(at::attention::out::lse);
  const int64_t most = (a.S + kPiece - 1) / kPiece, group = a.H / a.J, each = partial_floats(a.P);
  float* partials = reinterpret_cast<float*>(team.scratch);  // [b][t][piece][h]
  const auto partial = [&](int64_t b, int64_t t, int64_t p, int64_t h) {
    return partials + (((b * a.T + t) * most + p) * a.H + h) * each;
  };
  const auto pieces = [&](int64_t b) { return a.first(b) < 0 ? 0 : (a.first(b) + a.T + kPiece - 1) / kPiece; };
  int64_t total = 0, before = 0;
  for (int64_t b = 0; b < a.B; b++) total += pieces(b);
  // Where pieces are fewer than key heads, threads share these: the first piece of a text would keep one thread busy.
  const bool by_head = total < a.J;
  const Team::Range tasks = by_head ? Team::Range{0, total} : team.share(total);
  const Team::Range heads = by_head ? team.share(a.J) : Team::Range{0, a.J};
  // All heads of a key at once; where several queries read them, as many as stay in the first cache meanwhile.
  const int64_t block_bytes = 2 * kPieceBlock * a.P * static_cast<int64_t>(sizeof(T));
  const int64_t at_once = a.T * group == 1 ? kFewHeads : max64(1, min64(kFewHeads, kFewBytes / block_bytes));
  for (int64_t b = 0; b < a.B; before += pieces(b), b++) {
    for (int64_t p = max64(0, tasks.begin - before); p < min64(pieces(b), tasks.end - before); p++) {
      for (int64_t t = 0; t < a.T; t++) {
        for (int64_t h = heads.begin * group; h < heads.end * group; h++) {
          float* to = partial(b, t, p, h);
          memset(to, 0, sizeof(float) * static_cast<size_t>(a.P + 2));
          to[a.P] = kNoScore;
        }
      }
      const int64_t first = a.first(b), end = min64(first + a.T, (p + 1) * kPiece);
      for (int64_t s0 = p * kPiece; s0 < end; s0 += kPieceBlock) {
        for (int64_t j = heads.begin; j < heads.end; j += at_once) {
          const int64_t some = min64(at_once, heads.end - j);
          for (int64_t i = 0; i < a.T * group; i++) {
            const int64_t t = i / group, h = j * group + i % group;
            const int64_t n = min64(kPieceBlock, min64(end, first + t + 1) - s0);
            if (n <= 0) continue;
            const int64_t row = b * a.S + s0, column = j * a.P;
            const T* next = s0 + kPieceBlock < first + a.T ? k.row<T>(row + kPieceBlock) + column : nullptr;
            const FewKeys<T> f{.n = n,
                               .heads = some,
                               .P = a.P,
                               .scale = a.scale() * kLog2e,
                               .q = q.row<float>(b * a.T + t) + h * a.P,
                               .q_apart = group * a.P,
                               .k = k.row<T>(row) + column,
                               .v = v.row<T>(row) + column,
                               .k_stride = k.row_stride,
                               .v_stride = v.row_stride,
                               .partial = partial(b, t, p, h),
                               .partial_apart = group * each,
                               .ahead = i == 0,
                               .next_k = i == 0 ? next : nullptr};
            attention_few_keys<kParts>(f);
          }
        }
      }
    }
  }
  team.barrier();
  const Team::Range rows = team.share(a.B * a.T * a.H);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t b = r / a.H / a.T, t = r / a.H % a.T, h = r % a.H, first = a.first(b);
    float* to = y.row<float>(b * a.T + t) + h * a.P;
    float* log = lse ? lse.row<float>(b * a.T + t) + h : nullptr;
    if (first >= 0) {
      attention_gather(partial(b, t, 0, h), a.H * each, (first + t) / kPiece + 1, a.P, to, log);
    } else {
      for (int64_t i = 0; i < a.P; i++) to[i] = __builtin_nanf("");
      if (log) *log = __builtin_nanf("");
    }
  }
}

static Attention attention_of(const Node& node) {
  namespace in = at::attention::in;
  return {node.in(in::q), node.in(in::k), node.attr(at::attention::attr::heads), node.in(in::length).ptr<int32_t>()};
}

static int64_t s_attention(const Node& node, int threads) {
  const Attention a = attention_of(node);
  if (a.T > kFewSteps) return threads * AttentionScratch::floats(a.P) * 4;
  return a.B * a.T * a.H * ((a.S + kPiece - 1) / kPiece) * partial_floats(a.P) * 4;
}

static const char* w_attention(const Node& node) {
  namespace in = at::attention::in;
  for (int i = 0; i < node.n_out; i++) {
    if (node.outs[i] && node.outs[i].dtype != DType::f32) return "attention: expected y and lse to be f32";
  }
  const DType k = node.in(in::k).dtype, v = node.in(in::v).dtype;
  if (node.in(in::q).dtype != DType::f32) return "attention: expected q to be f32";
  if (k != v || !is_cached(k)) return "attention: expected k and v to be both f32, both bf16 or both f16";
  const Tensor& length = node.in(in::length);
  return length && length.dtype != DType::i32 ? "attention: expected the length to be i32" : nullptr;
}

template <class T>
static void attention_over(const Node& node, const Team& team) {
  const Attention a = attention_of(node);
  if (a.T > kFewSteps) {
    attention_many<T>(node, team, a);
  } else if (a.P == 4 * W) {
    attention_few<4, T>(node, team, a);
  } else if (a.P == 8 * W) {
    attention_few<8, T>(node, team, a);
  } else {
    attention_few<0, T>(node, team, a);
  }
}

static void k_attention(const Node& node, const Team& team) {
  with_cached(node.in(at::attention::in::k).dtype, [&](auto cached) { attention_over<decltype(cached)>(node, team); });
}

static const char* w_cache_write(const Node& node) {
  const DType to = node.out(at::cache_write::out::cache).dtype, from = node.in(at::cache_write::in::x).dtype;
  if (from != DType::f32 && from != DType::bf16) return "cache_write: expected x to be f32 or bf16";
  if (!is_cached(to)) return "cache_write: expected the cache to be f32, bf16 or f16";
  return node.in(at::cache_write::in::length).dtype == DType::i32 ? nullptr
                                                                  : "cache_write: expected the length to be i32";
}

static void k_cache_write(const Node& node, const Team& team) {
  const Tensor &cache = node.out(at::cache_write::out::cache), &x = node.in(at::cache_write::in::x);
  const int32_t* length = node.in(at::cache_write::in::length).ptr<int32_t>();
  const int64_t T = x.dim(1), S = cache.dim(1), D = x.dim(2);
  const Team::Range rows = team.share(x.rows());
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t b = r / T, s = length[b] + r % T;
    if (s < 0 || s >= S) continue;
    char* to = cache.ptr<char>() + (b * S + s) * cache.row_stride * dtype_size(cache.dtype);
    const char* from = x.ptr<char>() + r * x.row_stride * dtype_size(x.dtype);
    if (cache.dtype == x.dtype) {
      memcpy(to, from, static_cast<size_t>(D * dtype_size(x.dtype)));
    } else {
      with_cached(cache.dtype, [&](auto cached) { copy_row_to<decltype(cached)>(to, from, x.dtype, D); });
    }
  }
}

static const char* w_advance(const Node& node) {
  return node.in(0).dtype == DType::i32 && node.out(0).dtype == DType::i32 ? nullptr : "advance: expected i32 lengths";
}

static void k_advance(const Node& node, const Team& team) {
  const int32_t steps = static_cast<int32_t>(node.attr(at::advance::attr::steps));
  const Team::Range share = team.share(node.in(0).elems());
  for (int64_t b = share.begin; b < share.end; b++)
    node.out(0).ptr<int32_t>()[b] = node.in(0).ptr<int32_t>()[b] + steps;
}

}  // namespace mb::cpu::MB_TARGET
