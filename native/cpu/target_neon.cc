// The CPU kernels for one instruction set. 64-bit ARM NEON.
#define MB_TARGET neon
#include "kernels-inl.h"
