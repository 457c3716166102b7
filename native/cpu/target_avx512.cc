// The CPU kernels for one instruction set. AVX-512 F, BW, DQ, VL, VNNI and BF16.
#define MB_TARGET avx512
#include "kernels-inl.h"
