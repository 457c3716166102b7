// The CPU kernels for one instruction set. Plain C++: for processors without a faster target, and to compare the others
// with.
#define MB_TARGET scalar
#include "kernels-inl.h"
