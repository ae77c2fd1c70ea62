// walk.cuh -- which output tile a block works on next, found on the device from the group
// sizes in its memory.
//
// The tiles of all groups form one list: group by group, and inside a group in bands of BAND tiles
// along the rows, rows fastest. Blocks that run at the same time so share a few rows of a and a few
// columns of b, which the L2 then serves. The host never learns how long the list is: it starts as
// many blocks as fit on the GPU, each takes every gridDim.x-th tile, and every role in a block (the
// warps that load, the warps that multiply) walks the list by itself.
#pragma once

#include "kernels/grouped_gemm.h"

typedef struct GemmTile {
    int group;
    int group_first; // first row of the group in the row space
    int row, column; // first of the tile; rows are the group's (NT, NN) or those of m (TN)
    int rows_left;   // from `row` to the end of the group or of m; at least 1
    int sum_length;  // terms of every sum: k (NT, NN) or the group's rows (TN)
} GemmTile;

typedef struct GemmWalk {
    int group;
    int64_t tile; // number of the next tile, counted from the first of `group`
} GemmWalk;

static __device__ __forceinline__ GemmWalk gemm_walk_begin(void)
{
    return GemmWalk{0, (int64_t)blockIdx.x};
}

// Moves to the block's next tile; false past the last one. MAY_BE_DENSE: without arrays of groups
// there is one of all rows.
template <GemmForm FORM, int TILE_ROWS, int TILE_COLUMNS, bool MAY_BE_DENSE = false>
static __device__ __forceinline__ bool gemm_walk_next(const GroupedGemm &args, GemmWalk *walk,
                                                      GemmTile *tile)
{
    constexpr uint32_t BAND = 16;
    const uint32_t column_tiles = (uint32_t)(args.n + TILE_COLUMNS - 1) / TILE_COLUMNS;
    for (; walk->group < args.groups; walk->group++) {
        const bool dense = MAY_BE_DENSE && !args.group_rows;
        const int group_rows = dense ? (int)args.rows_max : __ldg(args.group_rows + walk->group);
        const int c_rows = FORM == GEMM_TN ? (int)args.m : group_rows;
        // An empty group has no rows to write; its weight gradient is zero unless it is added to
        // what is there.
        const bool skip = FORM == GEMM_TN && args.accumulate && group_rows == 0;
        const uint32_t row_tiles = skip ? 0 : (uint32_t)(c_rows + TILE_ROWS - 1) / TILE_ROWS;
        const int64_t tiles = (int64_t)row_tiles * column_tiles;
        if (walk->tile >= tiles) {
            walk->tile -= tiles;
            continue;
        }
        // 32-bit divisions: one group's tiles number under 2^32 for any c that fits in memory.
        const uint32_t number = (uint32_t)walk->tile;
        const uint32_t band_first = number / (BAND * column_tiles) * BAND;
        const uint32_t in_band = number - band_first * column_tiles;
        const uint32_t band_rows = min(BAND, row_tiles - band_first);
        const uint32_t column_tile = in_band / band_rows;
        const uint32_t row_tile = band_first + in_band - column_tile * band_rows;
        tile->group = walk->group;
        tile->group_first = dense ? 0 : __ldg(args.group_first + walk->group);
        tile->row = (int)(row_tile * TILE_ROWS);
        tile->column = (int)(column_tile * TILE_COLUMNS);
        tile->rows_left = c_rows - tile->row;
        tile->sum_length = FORM == GEMM_TN ? group_rows : (int)args.k;
        walk->tile += gridDim.x;
        return true;
    }
    return false;
}

// First row of the tile in c, for every form: c is [c_rows, n] in memory.
template <GemmForm FORM>
static __device__ __forceinline__ int64_t gemm_c_row(const GroupedGemm &args, const GemmTile &tile)
{
    return (FORM == GEMM_TN ? tile.group * args.m : tile.group_first) + tile.row;
}

// Local. Blocks to start: as many as run at once, or as many as there can be tiles.
static inline unsigned gemm_grid(const GroupedGemm *args, int tile_rows, int tile_columns,
                                 int blocks_at_once)
{
    const int64_t columns = (args->n + tile_columns - 1) / tile_columns;
    const int64_t rows = args->form == GEMM_TN
                             ? (args->m + tile_rows - 1) / tile_rows * args->groups
                             : (args->rows_max + tile_rows - 1) / tile_rows + args->groups;
    const int64_t tiles = rows * columns;
    return (unsigned)(tiles < blocks_at_once ? tiles : blocks_at_once);
}
