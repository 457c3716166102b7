// The CPU kernels for one instruction set. AVX2, FMA and F16C.
#define MB_TARGET avx2
#include "kernels-inl.h"
