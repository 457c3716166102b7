// Few activation rows (up to 32) times a range of weight rows, in the format that suits the weights and the processor:
// prepare the activations once, then run any ranges of weight rows.
#pragma once
#include "dot-inl.h"
#include "dot_amx-inl.h"
#include "dot_bytes-inl.h"

namespace mb::cpu::MB_TARGET {

// Scratch for prepared activations, enough for every format.
static int64_t dot_input_bytes([[maybe_unused]] DType weight, [[maybe_unused]] int64_t rows,
                               [[maybe_unused]] int64_t k) {
  int64_t bytes = 0;
#if MB_LEVEL == MB_LEVEL_avx512
  if (weight == DType::bf16) bytes = rows * DotBf16::row_bytes(k);
  if (weight == DType::i8) bytes = byte_input_bytes(rows, k);
#endif
#ifdef MB_TILES
  if (weight == DType::bf16 || weight == DType::i8) bytes = max64(bytes, amx_few_bytes(weight, rows, k));
#endif
  return round_up(bytes, 64);
}

static DotInput dot_prepare(const Tensor& weight, const float* x, int64_t stride, int64_t rows, char* to) {
  const int64_t k = weight.cols();
#ifdef MB_TILES
  if (amx_few(weight, rows)) return amx_prepare(weight.dtype, x, stride, rows, k, to);
#endif
#if MB_LEVEL == MB_LEVEL_avx512
  if (weight.dtype == DType::bf16) return DotBf16::prepare(x, stride, rows, k, to);
  if (weight.dtype == DType::i8) return byte_input(x, stride, rows, k, to);
#endif
  return DotF32::prepare(x, stride, rows, k, to);
}

// Weight rows [begin, end) will be multiplied soon. As many as the products themselves fetch ahead come from memory
// meanwhile, since a range's first rows are not fetched by those before it.
constexpr int64_t kFetchedSooner = 20480;
static void dot_fetch(const Tensor& weight, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t row_bytes = weight.row_stride * dtype_size(weight.dtype);
  const int64_t bytes = min64(kFetchedSooner, (end - begin) * row_bytes);
  const char* p = weight.ptr<char>() + begin * row_bytes;
  for (int64_t at = 0; at < bytes; at += 64) prefetch_far(p + at);
}

static void dot_run(const Tensor& weight, const DotInput& x, int64_t begin, int64_t end, const DotOutput& out) {
  if (begin >= end) return;
#ifdef MB_TILES
  if (amx_few(weight, x.rows)) return amx_few_run(weight, x, begin, end, out);
#endif
  if (weight.dtype == DType::bf16) return dot_range<DotBf16>(weight, x, begin, end, out);
#if MB_LEVEL == MB_LEVEL_avx512
  if (weight.dtype == DType::i8) return dot_bytes_run(weight, x, begin, end, out);
#else
  if (weight.dtype == DType::i8) return dot_range<DotWiden<int8_t> >(weight, x, begin, end, out);
#endif
  dot_range<DotF32>(weight, x, begin, end, out);
}

}  // namespace mb::cpu::MB_TARGET
