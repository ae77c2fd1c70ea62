// tile_x86.h -- the rows of the tile table that exist on x86-64 only (gemm/tile_x86.c).
#pragma once

#include "kernels/gemm/tile.h"

#if defined(__x86_64__)
extern const GemmTile gemm_tile_avx512, gemm_tile_avx2;
#define GEMM_TILES_X86 &gemm_tile_avx512, &gemm_tile_avx2,
#else
#define GEMM_TILES_X86
#endif
