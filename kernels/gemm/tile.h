// tile.h -- the innermost part of the CPU's matrix products: one tile of the result, and the
// packing that feeds it.
//
// A tile is `rows` x `columns` sums that live in vector registers while k runs. Both operands are
// packed first, so that a step of k reads `columns` floats of b (the vectors) and up to `rows`
// floats of a (broadcast), each contiguous. bf16 is widened while it is packed. Each element is one
// chain of fmaf in ascending k; a chain may stop after any k and go on later from the stored f32,
// which changes nothing, so blocking is free to follow the caches.
//
// One row of the table per instruction set; all rows give the same bits.
// Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34
// (2008).
#pragma once

#include "kernels/grouped_gemm.h"

enum { GEMM_TILE_COLUMNS_MAX = 32 };

// One panel, multiplied: sum[i, j] (+)= sum_k a[k, i] b[k, j].
typedef struct GemmTileCall {
    int rows; // 1 .. tile rows; always all columns
    int64_t k;
    bool first;     // sums start from 0, else from what `sum` holds
    const float *a; // [k, a_width]
    const float *b; // [k, columns], 64-byte aligned
    float *sum;     // [rows, columns], sum_stride apart
    int64_t sum_stride;
    // What the next panel of b will be packed from, so that memory is busy while we compute: one
    // cache line every 4 k, 2^fetch_shift lines per run, runs fetch_stride bytes apart. NULL =
    // nothing.
    const char *fetch;
    int64_t fetch_stride;
    int fetch_shift;
} GemmTileCall;

// A block of a matrix on its way into panels of `width` floats per k. Line j starts at element
// (index ? index[j] : j) * stride of data. What `width` leaves beside the block holds any values.
//   across: k runs along a line; the lines (at most width) make one panel
//   along:  k runs over the lines; every `per_panel` elements of a line start a new panel, which
//           lies panel_floats behind the one before
typedef struct GemmPack {
    const void *data;
    DType dtype;
    int64_t stride;
    const int32_t *index;
    int64_t first_line, first_element;
    int64_t lines, elements;
    float *out;
    int width, per_panel;
    int64_t panel_floats;
} GemmPack;

typedef struct GemmTile {
    const char *name;
    int rows, columns, a_width;
    bool (*supported)(void);
    void (*multiply)(const GemmTileCall *call);
    void (*pack_across)(const GemmPack *pack);
    void (*pack_along)(const GemmPack *pack);
} GemmTile;

// Local. Rows of the table, fastest first; NULL past the end. gemm_tile_best is the first that this
// CPU supports.
const GemmTile *gemm_tile_row(int index);
const GemmTile *gemm_tile_best(void);

// Local. grouped_gemm_cpu with a given row of the table.
void grouped_gemm_with_tile(const GroupedGemm *args, const GemmTile *tile);
