// The CPU kernels for one instruction set. AVX-512 as in target_avx512.cc, and Intel's matrix tiles (AMX) for products
// of several rows with bf16 or i8 weights.
#define MB_TARGET amx
#define MB_TILES
#pragma GCC diagnostic ignored "-Wunused-function"  // of kernels that are avx512's
#include "kernels-inl.h"
