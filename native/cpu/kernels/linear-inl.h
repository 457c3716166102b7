// linear: y(R,M) = scale * (x(R,K) weight(M,K)^T) + bias + add, and its gradients.
// Few rows stream the weights past the activations (few_rows-inl.h); more rows use the packed product (gemm-inl.h), but
// i8 weights on AVX-512, whose integer products are exact and as fast: 32 rows at a time.
#pragma once
#include "few_rows-inl.h"
#include "gemm-inl.h"
#include "gemm_amx-inl.h"

namespace mb::cpu::MB_TARGET {

// Up to this many rows, those of a fused block, reading the weights costs more than multiplying by them, so they are
// not packed first; and every number of rows gives the same bits.
constexpr int64_t kFewRows = 32;
static bool linear_is_few(int64_t rows) { return rows <= kFewRows; }

#if MB_LEVEL == MB_LEVEL_avx512
// Many rows for i8 weights as blocks of few, prepared once for all threads: inputs, then what they point to.
struct FewAtATime {
  int64_t blocks, inputs_bytes, block_bytes;
  FewAtATime(int64_t rows, int64_t k)
      : blocks((rows + kFewRows - 1) / kFewRows),
        inputs_bytes(round_up(blocks * static_cast<int64_t>(sizeof(DotInput)), 64)),
        block_bytes(round_up(dot_input_bytes(DType::i8, kFewRows, k), 64)) {}
  int64_t bytes() const { return inputs_bytes + blocks * block_bytes; }
};
#endif

static const char* w_linear(const Node& node) {
  namespace in = at::linear::in;
  const Tensor &weight = node.in(in::weight), &scale = node.in(in::scale);
  if (weight.dtype == DType::i8) {
    if (!scale) return "linear: expected an i8 weight to come with a scale per row";
    if (weight.cols() > 65536) return "linear: expected an i8 weight to have at most 65536 columns";
  } else if (weight.dtype != DType::f32 && weight.dtype != DType::bf16) {
    return "linear: expected the weight to be f32, bf16 or i8";
  }
  if (node.in(in::x).dtype != DType::f32) return "linear: expected x to be f32";
  return nullptr;
}

static int64_t s_linear(const Node& node, int threads) {
  const Tensor &x = node.in(at::linear::in::x), &weight = node.in(at::linear::in::weight);
  const int64_t rows = x.rows(), k = x.cols();
  if (linear_is_few(rows)) return threads * dot_input_bytes(weight.dtype, rows, k);
#if MB_LEVEL == MB_LEVEL_avx512
  if (weight.dtype == DType::i8) return FewAtATime(rows, k).bytes();
#endif
#ifdef MB_TILES
  if (weight.dtype != DType::f32) return amx_scratch(rows, k, threads);
#endif
  // The packed bf16 product has half as many steps, but f32 is the size that always suffices.
  return gemm_scratch(rows, weight.rows(), k);
}

// Where sums of the rows of x from `first` on go.
static DotOutput few_output(const Node& node, int64_t first) {
  namespace in = at::linear::in;
  const Tensor &add = node.in(in::add), &y = node.out(0);
  return {y.row<float>(first),
          y.row_stride,
          node.in(in::bias).ptr<float>(),
          node.in(in::scale).ptr<float>(),
          add ? add.row<float>(first) : nullptr,
          add.row_stride};
}

static void linear_few(const Node& node, const Team& team) {
  namespace in = at::linear::in;
  const Tensor &x = node.in(in::x), &weight = node.in(in::weight);
  const int64_t rows = x.rows(), k = x.cols(), m_count = weight.rows();
  const Team::Range tiles = team.share((m_count + kTileRows - 1) / kTileRows);
  if (tiles.begin == tiles.end) return;
  char* own = team.scratch + team.index * dot_input_bytes(weight.dtype, rows, k);
  const DotInput input = dot_prepare(weight, x.ptr<float>(), x.row_stride, rows, own);
  dot_run(weight, input, tiles.begin * kTileRows, min64(m_count, tiles.end * kTileRows), few_output(node, 0));
}

#if MB_LEVEL == MB_LEVEL_avx512
// Weights that stay in the second cache while all rows pass by.
constexpr int64_t kStayingBytes = 512 * 1024;

static void linear_i8(const Node& node, const Team& team) {
  const Tensor &x = node.in(at::linear::in::x), &weight = node.in(at::linear::in::weight);
  const FewAtATime few(x.rows(), x.cols());
  DotInput* inputs = reinterpret_cast<DotInput*>(team.scratch);
  const Team::Range own = team.share(few.blocks);
  for (int64_t b = own.begin; b < own.end; b++) {
    const int64_t first = b * kFewRows, rows = min64(kFewRows, x.rows() - first);
    char* to = team.scratch + few.inputs_bytes + b * few.block_bytes;
    inputs[b] = dot_prepare(weight, x.row<float>(first), x.row_stride, rows, to);
  }
  team.barrier();
  const Team::Range tiles = team.share((weight.rows() + kTileRows - 1) / kTileRows);
  const int64_t staying = max64(1, kStayingBytes / (kTileRows * weight.row_stride));
  for (int64_t t = tiles.begin; t < tiles.end; t += staying) {
    const int64_t begin = t * kTileRows, end = min64(weight.rows(), min64(tiles.end, t + staying) * kTileRows);
    for (int64_t b = 0; b < few.blocks; b++) {
      dot_run(weight, inputs[b], begin, end, few_output(node, b * kFewRows));
    }
  }
}
#endif

static GemmOutput linear_output(const Node& node) {
  namespace in = at::linear::in;
  const Tensor &add = node.in(in::add), &y = node.out(0);
  const float *bias = node.in(in::bias).ptr<float>(), *scale = node.in(in::scale).ptr<float>();
  return {y.ptr<float>(), y.row_stride, bias, scale, add.ptr<float>(), add.row_stride, false};
}

template <class Mac, class ReadX, class ReadW>
__attribute__((noinline)) void linear_many(const Node& node, const Team& team, int64_t steps, const ReadX& read_x,
                                           const ReadW& read_w) {
  const auto pack_x = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_across(read_x, first, n, static_cast<int>(n), begin, end, to);
  };
  const auto pack_w = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_across(read_w, first, n, kPanelCols, begin, end, to);
  };
  const int64_t rows = node.in(at::linear::in::x).rows(), cols = node.in(at::linear::in::weight).rows();
  gemm<Mac>(team, rows, cols, steps, pack_x, pack_w, linear_output(node));
}

#if MB_LEVEL == MB_LEVEL_avx512
__attribute__((noinline)) static void linear_bf16(const Node& node, const Team& team) {
  const Tensor &x = node.in(at::linear::in::x), &weight = node.in(at::linear::in::weight);
  const ReadPairsF32 read_x{x.ptr<float>(), x.row_stride, x.cols()};
  const ReadPairsBf16 read_w{weight.ptr<uint16_t>(), weight.row_stride, x.cols()};
#ifdef MB_TILES
  amx_linear(team, x.rows(), weight.rows(), x.cols(), read_x, read_w, linear_output(node));
#else
  linear_many<MacBf16>(node, team, (x.cols() + 1) / 2, read_x, read_w);
#endif
}
#endif

static void k_linear(const Node& node, const Team& team) {
  namespace in = at::linear::in;
  const Tensor &x = node.in(in::x), &weight = node.in(in::weight);
  const int64_t k = x.cols();
  if (linear_is_few(x.rows())) return linear_few(node, team);
  const ReadWide<float> wide_x{x.ptr<float>(), x.row_stride, k};
  if (weight.dtype == DType::f32) {
    return linear_many<MacF32>(node, team, k, wide_x, ReadWide<float>{weight.ptr<float>(), weight.row_stride, k});
  }
#if MB_LEVEL == MB_LEVEL_avx512
  if (weight.dtype == DType::i8) return linear_i8(node, team);
  linear_bf16(node, team);
#else
  if (weight.dtype == DType::bf16) {
    return linear_many<MacF32>(node, team, k, wide_x, ReadWide<uint16_t>{weight.ptr<uint16_t>(), weight.row_stride, k});
  }
  linear_many<MacF32>(node, team, k, wide_x, ReadWide<int8_t>{weight.ptr<int8_t>(), weight.row_stride, k});
#endif
}

// dx(R,K) = dy(R,M) weight(M,K) + add(R,K)
static int64_t s_linear_grad_input(const Node& node, int) {
  const Tensor &dy = node.in(at::linear_grad_input::in::dy), &weight = node.in(at::linear_grad_input::in::weight);
  return gemm_scratch(dy.rows(), weight.cols(), weight.rows());
}

static void k_linear_grad_input(const Node& node, const Team& team) {
  const Tensor &dy = node.in(at::linear_grad_input::in::dy), &weight = node.in(at::linear_grad_input::in::weight);
  const Tensor& dx = node.out(0);
  const int64_t m_count = weight.rows(), k = weight.cols();
  const ReadWide<float> read_dy{dy.ptr<float>(), dy.row_stride, m_count};
  const Rows rows_w{weight.ptr<float>(), weight.row_stride};
  const Tensor& add = node.in(at::linear_grad_input::in::add);
  const GemmOutput out{dx.ptr<float>(), dx.row_stride, nullptr, nullptr, add.ptr<float>(), add.row_stride, false};
  const auto pack_dy = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_across(read_dy, first, n, static_cast<int>(n), begin, end, to);
  };
  const auto pack_w = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_along(rows_w, first, n, kPanelCols, begin, end, to);
  };
  gemm<MacF32>(team, dy.rows(), k, m_count, pack_dy, pack_w, out);
}

// dweight(M,K) = dy(R,M)^T x(R,K), or added to it
static int64_t s_linear_grad_weight(const Node& node, int) {
  const Tensor &dy = node.in(at::linear_grad_weight::in::dy), &x = node.in(at::linear_grad_weight::in::x);
  return gemm_scratch(dy.cols(), x.cols(), x.rows());
}

static void k_linear_grad_weight(const Node& node, const Team& team) {
  const Tensor &dy = node.in(at::linear_grad_weight::in::dy), &x = node.in(at::linear_grad_weight::in::x);
  const Tensor& dweight = node.out(0);
  const Rows rows_dy{dy.ptr<float>(), dy.row_stride}, rows_x{x.ptr<float>(), x.row_stride};
  const bool accumulate = node.attr(at::linear_grad_weight::attr::accumulate) != 0;
  const GemmOutput out{dweight.ptr<float>(), dweight.row_stride, nullptr, nullptr, nullptr, 0, accumulate};
  const auto pack_dy = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_along(rows_dy, first, n, static_cast<int>(n), begin, end, to);
  };
  const auto pack_x = [&](int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    pack_along(rows_x, first, n, kPanelCols, begin, end, to);
  };
  gemm<MacF32>(team, dy.cols(), x.cols(), x.rows(), pack_dy, pack_x, out);
}

// y(M) = sum over rows of x(R,M), or added to it. Runs of 64 rows are summed on their own first: the error of a long
// sum grows with the length of its runs.
static void k_column_sum(const Node& node, const Team& team) {
  const Tensor &x = node.in(at::column_sum::in::x), &y = node.out(0);
  const bool accumulate = node.attr(at::column_sum::attr::accumulate) != 0;
  const int64_t rows = x.rows(), cols = x.cols();
  constexpr int64_t kCols = 4 * W, kRun = 64;
  const Team::Range tasks = team.share((cols + kCols - 1) / kCols);
  for (int64_t t = tasks.begin; t < tasks.end; t++) {
    V total[4];
    int n[4];
    for (int j = 0; j < 4; j++) {
      n[j] = static_cast<int>(max64(0, min64(W, cols - t * kCols - j * W)));
      total[j] = accumulate && n[j] ? load_n(y.ptr<float>() + t * kCols + j * W, n[j]) : zero();
    }
    for (int64_t r0 = 0; r0 < rows; r0 += kRun) {
      V run[4] = {zero(), zero(), zero(), zero()};
      for (int64_t r = r0; r < min64(rows, r0 + kRun); r++) {
        const float* p = x.row<float>(r) + t * kCols;
        for (int j = 0; j < 4; j++) {
          if (n[j]) run[j] = run[j] + load_n(p + j * W, n[j]);
        }
      }
      for (int j = 0; j < 4; j++) total[j] = total[j] + run[j];
    }
    for (int j = 0; j < 4; j++) {
      if (n[j]) store_n(y.ptr<float>() + t * kCols + j * W, total[j], n[j]);
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
