// Force-included when GCC builds llama.cpp for a machine with AMX (seen with GCC 12). GCC's _tile_loadconfig tells the compiler
// that it reads 8 bytes of the 64-byte tile configuration, so the optimizer drops the stores to the rest, and
// llama.cpp's int8 prefill dies with an invalid configuration (SIGSEGV at ldtilecfg).
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
