// Few activation rows (up to 32) times a range of weight rows, in the format that suits the weights and the processor:
// prepare the activations once, then run any ranges of weight rows.
#pragma once
#include "dot-inl.h"
#include "dot_amx-inl.h"

namespace mb::cpu::MB_TARGET {

// Which of the two formats for i8 weights suits a number of rows.
MB_INLINE bool dot_by_bytes(DType weight, int64_t rows) { return weight == DType::i8 && rows < 8; }

// Scratch for prepared activations, enough for every format.
static int64_t dot_input_bytes(DType weight, int64_t rows, int64_t k) {
  if (weight != DType::bf16 && weight != DType::i8) return rows * DotF32::row_bytes(k);
#ifdef MB_TILES
  return round_up(amx_few_bytes(weight, rows, k), 64);
#else
  return round_up(
      rows * (weight == DType::bf16 ? DotBf16::row_bytes(k) : max64(DotBytes::row_bytes(k), DotWords::row_bytes(k))),
      64);
#endif
}

static DotInput dot_prepare(const Tensor& weight, const float* x, int64_t stride, int64_t rows, char* to) {
  const int64_t k = weight.cols();
#ifdef MB_TILES
  if (amx_few(weight, rows)) return amx_prepare(weight.dtype, x, stride, rows, k, to);
#endif
  if (weight.dtype == DType::bf16) return DotBf16::prepare(x, stride, rows, k, to);
  if (dot_by_bytes(weight.dtype, rows)) return DotBytes::prepare(x, stride, rows, k, to);
  if (weight.dtype == DType::i8) return DotWords::prepare(x, stride, rows, k, to);
  return DotF32::prepare(x, stride, rows, k, to);
}

static void dot_run(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  if (begin >= end) return;
#ifdef MB_TILES
  if (x.tiles) return amx_few_run(weight, x, begin, end, out);
#endif
  if (weight.dtype == DType::bf16) return dot_range<DotBf16>(weight, x, begin, end, out);
  if (dot_by_bytes(weight.dtype, x.rows)) return dot_range<DotBytes>(weight, x, begin, end, out);
  if (weight.dtype == DType::i8) return dot_range<DotWords>(weight, x, begin, end, out);
  dot_range<DotF32>(weight, x, begin, end, out);
}

}  // namespace mb::cpu::MB_TARGET
