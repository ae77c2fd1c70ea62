// tiles.cuh -- casts of what lies transposed, alone or together with the cast as it lies, from
// one read.
//
// A thread block has a tile of 128 x 128 values in registers, a thread 8 rows of 8 columns: the
// codes of 8 rows of a column are made side by side, so that nothing is transposed but where they
// are put. They pass through shared memory, whose 8-byte pieces change places by the column's
// number so that neither side meets a bank twice, and leave as 128 bytes of a column.
//
// EXPERTS: rows are those of experts (expert_operand.h), whose groups begin at multiples of 128, so
// that a tile is part of one group; rows of padding are zeros, and so are their codes.
//
// Strips: where a scale spans the rows of a matrix or of a group, its amax must be known before the
// first code. A thread block measures one tile and casts another, some hundred tiles earlier, whose
// whole strip of 128 columns has been measured by then; what it reads a second time the L2 still
// has.
//
// Limit: memory bandwidth. Where less is done with them, tiles of later thread blocks are called
// into the L2 ahead of them. A thread has 64 values and memory time for some 25 instructions each,
// so what all of a tile's threads need is counted out once, in 32 bits, from the tile's first
// value.
#pragma once

#include "kernels/cast/kernels.cuh"
#include "kernels/cast/swiglu.cuh"
#include "kernels/gemm/ptx.cuh"

enum {
    TILE_GROUPS_MAX = 4, // of 32 rows
    TILE_PIECES = 16,    // of 8 rows
    TILE_WARP_ROWS = 16, // of a warp
    TILE_THREAD_ROWS = GROUP_ELEMENTS,
    TILE_MEASURE = 4,        // tiles of a thread block that only measures, across and down
    TILE_BAND = 8,           // tiles that thread blocks go down before they go across
    TILE_BLOCKS_AT_ONCE = 4, // on a multiprocessor
    TILE_BLOCKS_ALONE = 3,   // of the transposed cast alone, which more slow down
    STRIP_BAND = 96,         // tiles of neighbouring strips that are gone through together
    STRIP_BAND_WIDE = 8,     // strips of such a band, at most
    STRIP_SLACK_PARTS = 2,   // of the thread blocks that run at once: begun that much before
};

// What a scale spans, of the values as the operand sees them.
typedef enum CastSpanKind {
    SPAN_NONE,   // the operand is not wanted
    SPAN_GROUP,  // 32, 64 or 128 columns of a row
    SPAN_SQUARE, // 128 x 128
    SPAN_ROW,    // a row; the scales are there already
    SPAN_WHOLE,  // everything; likewise
} CastSpanKind;

struct TileExperts {
    const int32_t *row_map, *rows_total, *group_first;
    int groups;
    bool mapped;
};

struct CastTiles {
    CastWork to, transposed; // values as they lie; its rows are columns of the values
    CastSpanKind to_span, transposed_span;
    const void *values;
    int64_t matrices;
    int rows, columns; // of the values
    int down, across;  // tiles of a matrix, or what a thread block has of them
    CastDivisor by_matrix, by_across;
    int group_bits; // log2 of the rows of a tile that a transposed scale spans
    TileExperts experts;
    struct StripMarks *marks; // NULL: scales that span rows are there already
    uint32_t ahead;           // thread blocks that run at once
};

// In device memory, zeros at first.
struct StripMarks {
    uint32_t next;       // tile to be measured
    uint32_t lag;        // tiles from measuring to casting
    uint32_t measured[]; // tiles of each strip
};
typedef void (*CastTilesKernel)(CastTiles tiles);

// A tile, and what of it there is.
struct Tile {
    int64_t matrix;
    int row0, column0;
    int rows, columns; // at most CAST_TILE_SIDE; none where <= 0
};

template <bool EXPERTS>
__device__ __forceinline__ Tile tile_at(const CastTiles &tiles, int64_t matrix, int row0,
                                        int column0)
{
    const int rows = EXPERTS ? __ldg(tiles.experts.rows_total) : tiles.rows;
    return {matrix, row0, column0, min(rows - row0, (int)CAST_TILE_SIDE),
            min(tiles.columns - column0, (int)CAST_TILE_SIDE)};
}

// Tile `index`, across first.
template <bool EXPERTS>
__device__ __forceinline__ Tile tile_number(const CastTiles &tiles, uint32_t index)
{
    const uint32_t any_row = divided(index, tiles.by_across);
    const uint32_t matrix = EXPERTS ? 0 : divided(index, tiles.by_matrix);
    const uint32_t column = index - any_row * (uint32_t)tiles.across;
    const uint32_t row = any_row - matrix * (uint32_t)tiles.down;
    return tile_at<EXPERTS>(tiles, matrix, (int)row * CAST_TILE_SIDE, (int)column * CAST_TILE_SIDE);
}

// The first row and column of a thread, within the tile.
__device__ __forceinline__ int thread_row()
{
    return (int)(threadIdx.x / WARP_LANES) * TILE_WARP_ROWS + lane_index() / 16 * TILE_THREAD_ROWS;
}
__device__ __forceinline__ int thread_column()
{
    return lane_index() % 16 * GROUP_ELEMENTS;
}

template <typename Element>
__device__ __forceinline__ const Element *tile_values(const CastTiles &tiles, const Tile &tile)
{
    return (const Element *)tiles.values + tile.matrix * tiles.rows * (int64_t)tiles.columns +
           tile.column0;
}

// The row of the values that is row `row` of a tile; -1: none, or zeros.
template <bool EXPERTS>
__device__ __forceinline__ int tile_source(const CastTiles &tiles, const Tile &tile, int row)
{
    if (row >= tile.rows)
        return -1;
    if (!EXPERTS)
        return tile.row0 + row;
    const int mapped = __ldg(tiles.experts.row_map + tile.row0 + row);
    return mapped < 0 || tiles.experts.mapped ? mapped : tile.row0 + row;
}

// Whose scales a tile's columns have, where they span rows: the matrix's, or the group's.
__device__ __forceinline__ int group_of_row(const TileExperts &experts, int row)
{
    int low = 0, high = experts.groups; // the last group that begins here or before
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (__ldg(experts.group_first + middle) <= row ? low : high) = middle;
    }
    return low;
}
template <bool EXPERTS>
__device__ __forceinline__ int64_t tile_owner(const CastTiles &tiles, const Tile &tile)
{
    return EXPERTS ? group_of_row(tiles.experts, tile.row0) : tile.matrix;
}

// Calls a tile into the L2: 128 bytes a thread, two threads (f32: four) a row.
template <bool EXPERTS, typename Element>
__device__ __forceinline__ void tile_prefetch(const CastTiles &tiles, const Tile &tile)
{
    constexpr int LINE = 128 / sizeof(Element), LINES = CAST_TILE_SIDE / LINE;
    const Element *values = tile_values<Element>(tiles, tile);
#pragma unroll
    for (int i = 0; i < CAST_TILE_SIDE * LINES / CAST_THREADS; i++) {
        const int index = i * CAST_THREADS + (int)threadIdx.x, column = index % LINES * LINE;
        const int source = tile_source<EXPERTS>(tiles, tile, index / LINES);
        if (source >= 0 && column < tile.columns)
            ptx_prefetch(values + (int64_t)source * tiles.columns + column);
    }
}

// AGAIN: it will be read again.
template <bool EXPERTS, bool AGAIN = false, typename Element>
__device__ __forceinline__ void tile_load(const CastTiles &tiles, const Tile &tile,
                                          Group<Element> (&unit)[TILE_THREAD_ROWS])
{
    const int row = thread_row(), column = thread_column();
    const Element *values = tile_values<Element>(tiles, tile) + column;
    if (!EXPERTS)
        values += (int64_t)(tile.row0 + row) * tiles.columns;
#pragma unroll
    for (int i = 0; i < TILE_THREAD_ROWS; i++) {
        const int source = EXPERTS ? tile_source<EXPERTS>(tiles, tile, row + i) : i;
        const bool there = column < tile.columns && (EXPERTS ? source >= 0 : row + i < tile.rows);
        const Element *from = values + source * (int64_t)tiles.columns;
        unit_clear(&unit[i]);
        if (there)
            unit[i] = AGAIN ? unit_load_again(from) : unit_load(from);
    }
}

// ---- columns' magnitudes ----

// Of the 16 rows of a warp, for the lanes of both halves.
__device__ __forceinline__ void columns_peak(const Group<Bf16> (&unit)[TILE_THREAD_ROWS],
                                             uint32_t (&bits)[GROUP_ELEMENTS])
{
#pragma unroll
    for (int p = 0; p < GROUP_ELEMENTS / 2; p++) {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < TILE_THREAD_ROWS; i++)
            most = __vmaxu2(most, unit[i].pair[p] & 0x7FFF7FFFu);
        most = __vmaxu2(most, __shfl_xor_sync(WARP_ALL, most, 16));
        bits[2 * p] = most << 16;
        bits[2 * p + 1] = most & 0xFFFF0000u;
    }
}
__device__ __forceinline__ void columns_peak(const Group<float> (&unit)[TILE_THREAD_ROWS],
                                             uint32_t (&bits)[GROUP_ELEMENTS])
{
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++) {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < TILE_THREAD_ROWS; i++)
            most = max(most, format_f32_magnitude(unit[i].value[e]));
        bits[e] = max(most, __shfl_xor_sync(WARP_ALL, most, 16));
    }
}

// Of each warp's 16 rows. Rows are 4 longer than they need be, so that lanes that have two of them
// for each of 8 columns meet 32 banks.
struct TilePeaks {
    uint32_t bits[CAST_WARPS][CAST_TILE_SIDE + 4];
};

__device__ __forceinline__ void peaks_put(TilePeaks *peaks, const uint32_t (&bits)[GROUP_ELEMENTS])
{
    uint4 *to = (uint4 *)&peaks->bits[threadIdx.x / WARP_LANES][thread_column()];
    if (lane_index() < 16) {
        to[0] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
        to[1] = make_uint4(bits[4], bits[5], bits[6], bits[7]);
    }
}

// Of `rows` rows of a column from row `first` on, multiples of 16.
__device__ __forceinline__ uint32_t peaks_get(const TilePeaks &peaks, int column, int first,
                                              int rows)
{
    uint32_t most = 0;
    for (int warp = first / TILE_WARP_ROWS; warp < (first + rows) / TILE_WARP_ROWS; warp++)
        most = max(most, peaks.bits[warp][column]);
    return most;
}

// Of the rows of a thread: their largest magnitudes join those in `peaks`, by row of the tile.
template <typename P, typename Element>
__device__ __forceinline__ void rows_peak(const Group<Element> (&unit)[TILE_THREAD_ROWS],
                                          uint32_t *peaks)
{
    constexpr int LANES = WARP_LANES / 2; // of a row
    const int lane = lane_index() % LANES;
#pragma unroll
    for (int first = 0; first < TILE_THREAD_ROWS; first += CAST_UNITS) {
        P peak[CAST_UNITS];
#pragma unroll
        for (int u = 0; u < CAST_UNITS; u++)
            peak[u] = P::of(unit[first + u]);
        peaks_share<P, CAST_UNITS>(peak, LANES);
        if (lane < CAST_UNITS)
            atomicMax(peaks + thread_row() + first + lane, peak[0].bits);
    }
}

// Thread block: 4 x 4 tiles (EXPERTS: one). Adds the largest magnitudes of their rows and columns,
// as bits, to where their scales will stand (CastSpanKind SPAN_ROW).
template <typename Element, bool EXPERTS>
__global__ void __launch_bounds__(CAST_THREADS, sizeof(Element) == 2 ? TILE_BLOCKS_AT_ONCE : 2)
    cast_tiles_measure_kernel(const __grid_constant__ CastTiles tiles)
{
    typedef Peak<false, sizeof(Element) == 2 ? DTYPE_BF16 : DTYPE_F32> P;
    constexpr int SIDE = EXPERTS ? 1 : TILE_MEASURE, ROWS = SIDE * CAST_TILE_SIDE;
    __shared__ TilePeaks peaks;
    __shared__ uint32_t of_rows[ROWS];
    const uint32_t block = divided(blockIdx.x, tiles.by_across);
    const uint32_t matrix = divided(blockIdx.x, tiles.by_matrix);
    const int column0 = (int)(blockIdx.x - block * (uint32_t)tiles.across) * ROWS;
    const int row0 = (int)(block - matrix * (uint32_t)tiles.down) * ROWS;
    const bool whole_columns = tiles.transposed_span == SPAN_ROW;
    Tile tile = tile_at<EXPERTS>(tiles, matrix, row0, column0);
    if (EXPERTS && tile.rows <= 0)
        return;
    const int64_t owner = tile_owner<EXPERTS>(tiles, tile);
    uint32_t *of_columns = (uint32_t *)tiles.transposed.scales + owner * tiles.columns;
    for (int row = (int)threadIdx.x; row < ROWS; row += CAST_THREADS)
        of_rows[row] = 0;
    for (int across = 0; across < SIDE; across++) {
        uint32_t most[GROUP_ELEMENTS] = {0, 0, 0, 0, 0, 0, 0, 0};
        __syncthreads();
        for (int down = 0; down < SIDE; down++) {
            Group<Element> unit[TILE_THREAD_ROWS];
            uint32_t bits[GROUP_ELEMENTS];
            tile = tile_at<EXPERTS>(tiles, matrix, row0 + down * CAST_TILE_SIDE,
                                    column0 + across * CAST_TILE_SIDE);
            tile_load<EXPERTS>(tiles, tile, unit);
            columns_peak(unit, bits);
#pragma unroll
            for (int e = 0; e < GROUP_ELEMENTS; e++)
                most[e] = max(most[e], bits[e]);
            if (tiles.to_span == SPAN_ROW)
                rows_peak<P>(unit, of_rows + down * CAST_TILE_SIDE);
        }
        peaks_put(&peaks, most);
        __syncthreads();
        const int column = (int)threadIdx.x;
        if (whole_columns && column < tile.columns)
            atomicMax(of_columns + tile.column0 + column,
                      peaks_get(peaks, column, 0, CAST_TILE_SIDE));
    }
    if (tiles.to_span != SPAN_ROW)
        return;
    __syncthreads();
    uint32_t *scales = (uint32_t *)tiles.to.scales + matrix * (int64_t)tiles.rows;
    for (int row = (int)threadIdx.x; row < min(ROWS, tiles.rows - row0); row += CAST_THREADS)
        atomicMax(scales + row0 + row, of_rows[row]);
}

// ---- the cast as it lies ----

// Of units below each other.
struct ColumnPlace {
    const CastWork &work;
    int64_t matrix, row, first; // of the first: its row, its element
    int left;                   // units that there are
    int left_blocks;            // blocks, of which other lanes may have a part
    int index;                  // of the blocks' columns
    __device__ bool there(int u) const
    {
        return u < left;
    }
    __device__ int64_t element(int u) const
    {
        return first + u * work.columns;
    }
    __device__ BlockPlace block(int u) const
    {
        return {matrix, row + u, index, u < left_blocks};
    }
};

// A scale spans columns of a row: neighbouring lanes have them.
template <typename Kind, typename Element>
__device__ __forceinline__ void tile_groups(const CastTiles &tiles, const Tile &tile,
                                            const Group<Element> (&unit)[TILE_THREAD_ROWS])
{
    const CastWork &work = tiles.to;
    const int row = thread_row(), column = thread_column(), any_column = tile.column0 + column;
    const int index = any_column >> work.group_bits;
    const int rows = tile.rows - row, left = column < tile.columns ? rows : 0;
    const int left_blocks = index << work.group_bits < tiles.columns ? rows : 0;
    const int64_t first_row = tile.matrix * tiles.rows + tile.row0 + row;
#pragma unroll
    for (int i = 0; i < TILE_THREAD_ROWS; i += CAST_UNITS)
        units_cast<Kind>(work, (const Element *)tiles.values, unit + i,
                         ColumnPlace{work, tile.matrix, tile.row0 + row + i,
                                     (first_row + i) * work.columns + any_column, left - i,
                                     left_blocks - i, index});
}

// Scale and multiplier of a tile's rows, of those that share one the same.
struct TileRows {
    float2 of[CAST_TILE_SIDE];
};

// Shared out over a tile's second 128 threads, where a scale spans rows or more. square: no value
// of the tile has a larger magnitude. Whether the quick arithmetic has them.
template <typename Kind>
__device__ __forceinline__ bool tile_rows(const CastTiles &tiles, const Tile &tile, uint32_t square,
                                          TileRows *rows)
{
    const int row = (int)threadIdx.x - CAST_TILE_SIDE;
    if (tiles.to_span == SPAN_GROUP || row < 0 || row >= tile.rows)
        return true;
    const CastWork &work = tiles.to;
    const QuantContext context = cast_context<Kind>(work, tile.matrix);
    const QuantStatistics statistics = Peak<false, DTYPE_F32>{square}.statistics();
    const float *scales = (const float *)work.scales;
    if (tiles.to_span == SPAN_ROW)
        scales += tile.matrix * tiles.rows + tile.row0 + row;
    QuantBlock block = tiles.to_span == SPAN_SQUARE ? cast_choose(&context, statistics)
                                                    : block_of_scale(context, *scales);
    if (tiles.to_span == SPAN_SQUARE && row == 0)
        block_store<Kind>(
            work, {tile.matrix, tile.row0 / CAST_TILE_SIDE, tile.column0 / CAST_TILE_SIDE, true},
            block);
    cast_quick_ready(&context, &block, statistics.amax);
    rows->of[row] = make_float2(block.scale, block.multiplier);
    return cast_quick_fits(&context, &block, statistics.amax);
}

template <typename Kind, typename Element>
__device__ __forceinline__ void tile_forward(const CastTiles &tiles, const Tile &tile,
                                             const TileRows &rows, bool quick,
                                             const Group<Element> (&unit)[TILE_THREAD_ROWS])
{
    const CastWork &work = tiles.to;
    const int row = thread_row(), column = thread_column(), left = tile.rows - row;
    if (tiles.to_span == SPAN_GROUP) {
        tile_groups<Kind>(tiles, tile, unit);
        return;
    }
    if (column >= tile.columns)
        return;
    const QuantContext context = cast_context<Kind>(work, tile.matrix);
    int64_t element = (tile.matrix * tiles.rows + tile.row0 + row) * (int64_t)tiles.columns +
                      tile.column0 + column;
    uint32_t words[2];
    if (!quick) {
#pragma unroll 1
        for (int i = 0; i < TILE_THREAD_ROWS && i < left; i++, element += tiles.columns) {
            const float2 n = rows.of[row + i];
            unit_codes_slow<Kind>(context, {n.x, 0, n.y, 0, 0},
                                  (const Element *)tiles.values + element, words);
            unit_store<Kind::layout>(work.codes, element, words);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < TILE_THREAD_ROWS; i++, element += tiles.columns) {
        const float2 n = rows.of[row + i];
        unit_codes_quick<Kind>(context, {n.x, 0, n.y, 0, 0}, unit[i], words);
        if (i < left)
            unit_store<Kind::layout>(work.codes, element, words);
    }
}

// ---- the transposed cast ----

// Scale and multiplier of a tile's columns; neighbours of a thread's column lie 16 apart, so that
// 16 lanes read 128 bytes.
struct TileNumbers {
    float2 of[TILE_GROUPS_MAX][GROUP_ELEMENTS][CAST_TILE_SIDE / GROUP_ELEMENTS];
};

// Scales of the tile's columns, shared out over the threads, those of a column to neighbours.
// Whether the quick arithmetic has them.
template <typename Kind, bool EXPERTS>
__device__ __forceinline__ bool tile_numbers(const CastTiles &tiles, const Tile &tile,
                                             const TilePeaks &peaks, uint32_t square,
                                             TileNumbers *numbers)
{
    const CastWork &work = tiles.transposed;
    const CastSpanKind span = tiles.transposed_span;
    const QuantContext context = cast_context<Kind>(work, tile.matrix);
    const int rows = 1 << tiles.group_bits, groups = CAST_TILE_SIDE >> tiles.group_bits;
    const float *scales = (const float *)work.scales;
    if (span == SPAN_ROW)
        scales += tile_owner<EXPERTS>(tiles, tile) * tiles.columns + tile.column0;
    bool quick = true;
    for (int i = (int)threadIdx.x; i < groups * CAST_TILE_SIDE; i += CAST_THREADS) {
        const int group = i & (groups - 1), column = i * rows / CAST_TILE_SIDE, row = group * rows;
        const bool there = column < tile.columns && row < tile.rows;
        const Peak<false, DTYPE_F32> peak = {peaks_get(peaks, column, row, rows)};
        const Peak<false, DTYPE_F32> chosen_by = {span == SPAN_SQUARE ? square : peak.bits};
        QuantBlock block = {0, 0, 0, 0, 0};
        if (span == SPAN_GROUP || span == SPAN_SQUARE)
            block = cast_choose(&context, chosen_by.statistics());
        else if (there)
            block = block_of_scale(context, scales[span == SPAN_WHOLE ? 0 : column]);
        if (span == SPAN_GROUP && there)
            block_store<Kind>(
                work,
                {tile.matrix, tile.column0 + column, (tile.row0 + row) >> tiles.group_bits, true},
                block);
        if (span == SPAN_SQUARE && i == 0)
            block_store<Kind>(
                work,
                {tile.matrix, tile.column0 / CAST_TILE_SIDE, tile.row0 / CAST_TILE_SIDE, true},
                block);
        cast_quick_ready(&context, &block, chosen_by.statistics().amax);
        numbers->of[group][column % GROUP_ELEMENTS][column / GROUP_ELEMENTS] =
            make_float2(block.scale, block.multiplier);
        quick = quick && (!there || cast_quick_fits(&context, &block, peak.statistics().amax));
        if (EXPERTS && there) // else padding, whose code is 0, would become no number
            quick = quick && block.scale != 0.0f && 0.0f * block.multiplier == 0.0f;
    }
    return quick;
}

// Codes of 8 rows of one column, one after the other, from memory.
template <typename Kind, bool EXPERTS>
__device__ __forceinline__ void
column_codes_slow(const CastTiles &tiles, const Tile &tile, const QuantContext &context,
                  const QuantBlock &block, int e, uint32_t (&words)[2])
{
    typedef typename CastElement<Kind::input>::type Element;
    const int column = thread_column() + e;
    const Element *from = tile_values<Element>(tiles, tile) + column;
    uint64_t all = 0;
#pragma unroll 1
    for (int i = TILE_THREAD_ROWS - 1; i >= 0; i--) {
        const int64_t source = tile_source<EXPERTS>(tiles, tile, thread_row() + i);
        all <<= 8;
        if (source >= 0 && column < tile.columns)
            all |= cast_byte(&context.rule,
                             cast_encode(&context, &block, widen(from[source * tiles.columns])));
    }
    words[0] = (uint32_t)all;
    words[1] = (uint32_t)(all >> 32);
}

struct TileCodes {
    uint2 piece[CAST_TILE_SIDE][TILE_PIECES]; // [column][rows / 8, places changed]
};

template <typename Kind, bool EXPERTS, typename Element>
__device__ __forceinline__ void
tile_codes(const CastTiles &tiles, const Tile &tile, const TileNumbers &numbers, bool quick,
           const Group<Element> (&unit)[TILE_THREAD_ROWS], TileCodes *codes)
{
    const QuantContext context = cast_context<Kind>(tiles.transposed, tile.matrix);
    const int row = thread_row(), column = thread_column(), across = column / GROUP_ELEMENTS;
    const auto &number = numbers.of[row >> tiles.group_bits];
    uint2 *piece = &codes->piece[column][row / TILE_THREAD_ROWS ^ across];
    if (!quick) {
#pragma unroll 1
        for (int e = 0; e < GROUP_ELEMENTS; e++) {
            const float2 n = number[e][across];
            const QuantBlock block = {n.x, 0, n.y, 0, 0};
            uint32_t words[2];
            column_codes_slow<Kind, EXPERTS>(tiles, tile, context, block, e, words);
            piece[e * TILE_PIECES] = make_uint2(words[0], words[1]);
        }
        return;
    }
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++) {
        const float2 n = number[e][across];
        const QuantBlock block = {n.x, 0, n.y, 0, 0};
        float q[TILE_THREAD_ROWS];
        uint32_t words[2];
#pragma unroll
        for (int i = 0; i < TILE_THREAD_ROWS; i++)
            q[i] = cast_quick_scaled(&context, &block, group_value(unit[i], e));
        cast_quick_pack(&context.rule, q, words);
        piece[e * TILE_PIECES] = make_uint2(words[0], words[1]);
    }
}

// Eight neighbouring threads: 128 rows of a column.
__device__ __forceinline__ void tile_out(const CastTiles &tiles, const Tile &tile,
                                         const TileCodes &codes)
{
    constexpr int STEP = CAST_THREADS / 8; // columns
    const bool vector = tiles.rows % 16 == 0;
    const int first = (int)threadIdx.x / 8, part = (int)threadIdx.x % 8,
              left = tile.rows - part * 16;
    uint8_t *to = tiles.transposed.codes + tile.row0 + part * 16 +
                  (tile.matrix * tiles.columns + tile.column0 + first) * (int64_t)tiles.rows;
#pragma unroll
    for (int i = 0; i < CAST_TILE_SIDE / STEP; i++, to += STEP * (int64_t)tiles.rows) {
        const int column = first + i * STEP, change = column / GROUP_ELEMENTS;
        const uint4 raw = *(const uint4 *)&codes.piece[column][(2 * part ^ change) & -2];
        const uint4 words = change & 1 ? make_uint4(raw.z, raw.w, raw.x, raw.y) : raw;
        if (column >= tile.columns || left <= 0)
            continue;
        if (vector) {
            *(uint4 *)to = words;
            continue;
        }
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int b = 0; b < 16; b++)
            if (b < left)
                to[b] = (uint8_t)(word[b / 4] >> b % 4 * 8);
    }
}

// Whose tiles: of values that are cast transposed alone, or both ways, or of experts' rows.
enum TileForm { TILES_ALONE, TILES_BOTH, TILES_EXPERTS };

// Thread block: a tile.
template <typename Kind, TileForm FORM>
__global__ void __launch_bounds__(CAST_THREADS, Kind::input != DTYPE_BF16 ? 2
                                                : FORM == TILES_BOTH      ? TILE_BLOCKS_AT_ONCE
                                                                          : TILE_BLOCKS_ALONE)
    cast_tiles_kernel(const __grid_constant__ CastTiles tiles)
{
    typedef typename CastElement<Kind::input>::type Element;
    typedef Peak<false, Kind::input> P;
    constexpr bool EXPERTS = FORM == TILES_EXPERTS;
    __shared__ TilePeaks peaks;
    __shared__ TileNumbers numbers;
    __shared__ TileRows rows;
    __shared__ __align__(16) TileCodes codes;
    const Tile tile = tile_number<EXPERTS>(tiles, blockIdx.x);
    if (EXPERTS && tile.rows <= 0)
        return;
    if (FORM != TILES_BOTH && blockIdx.x + tiles.ahead < gridDim.x)
        tile_prefetch<EXPERTS, Element>(tiles,
                                        tile_number<EXPERTS>(tiles, blockIdx.x + tiles.ahead));
    Group<Element> unit[TILE_THREAD_ROWS];
    uint32_t bits[GROUP_ELEMENTS];
    tile_load<EXPERTS>(tiles, tile, unit);
    columns_peak(unit, bits);
    peaks_put(&peaks, bits);
    uint32_t square = 0;
    if (FORM == TILES_BOTH || tiles.transposed_span == SPAN_SQUARE) {
#pragma unroll
        for (int e = 0; e < GROUP_ELEMENTS; e++)
            square = max(square, bits[e]);
        square = team_peak<P, false>({square}).bits;
    }
    __syncthreads();
    bool mine = tile_numbers<Kind, EXPERTS>(tiles, tile, peaks, square, &numbers);
    if (FORM == TILES_BOTH)
        mine = tile_rows<Kind>(tiles, tile, square, &rows) && mine;
    const bool quick = !__syncthreads_or(!mine);
    tile_codes<Kind, EXPERTS>(tiles, tile, numbers, quick, unit, &codes);
    if (FORM == TILES_BOTH)
        tile_forward<Kind>(tiles, tile, rows, quick, unit);
    __syncthreads();
    tile_out(tiles, tile, codes);
}

// ---- strips ----

// 128 columns of a matrix or of a group.
struct Strip {
    uint32_t number, tiles;
    int64_t owner; // matrix or group
};

// Rows of tiles that a group has, and the first of them.
__device__ __forceinline__ uint32_t group_down(const TileExperts &e, int group, uint32_t *first)
{
    const uint32_t side = CAST_TILE_SIDE, end = ((uint32_t)__ldg(e.rows_total) + side - 1) / side;
    uint32_t next = end;
    *first = group > 0 ? min(end, (uint32_t)__ldg(e.group_first + group) / side) : 0;
    if (group + 1 < e.groups)
        next = min(end, (uint32_t)__ldg(e.group_first + group + 1) / side);
    return next - *first;
}

__device__ __forceinline__ uint32_t band_wide(uint32_t down)
{
    return min(max(STRIP_BAND / down, 1u), (uint32_t)STRIP_BAND_WIDE);
}

// One thread block: the lag is the largest band, so that nobody waits for a tile that has not
// begun, and some more, so that it has ended.
static __global__ void __launch_bounds__(CAST_THREADS)
    cast_strips_begin_kernel(const __grid_constant__ CastTiles tiles)
{
    const TileExperts &e = tiles.experts;
    __shared__ uint32_t band;
    if (threadIdx.x == 0)
        band = 0;
    __syncthreads();
    for (int group = (int)threadIdx.x; group < max(e.groups, 1); group += CAST_THREADS) {
        uint32_t first = 0;
        const uint32_t down = e.groups ? group_down(e, group, &first) : (uint32_t)tiles.down;
        if (down > 0)
            atomicMax(&band, band_wide(down) * down);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        tiles.marks->lag = band + tiles.ahead / STRIP_SLACK_PARTS;
}

// Tile `index`, in bands of neighbouring strips: across a band first, then down. False: past the
// end.
template <bool EXPERTS>
__device__ __forceinline__ bool strip_tile(const CastTiles &tiles, uint32_t index, Tile *tile,
                                           Strip *strip)
{
    const uint32_t across = (uint32_t)tiles.across, any_row = divided(index, tiles.by_across);
    uint32_t first = 0, down = (uint32_t)tiles.down; // the owner's, in rows of tiles
    if (EXPERTS) {
        const int row = (int)any_row * CAST_TILE_SIDE;
        if (row >= __ldg(tiles.experts.rows_total))
            return false;
        strip->owner = group_of_row(tiles.experts, row);
        down = group_down(tiles.experts, (int)strip->owner, &first);
    } else {
        strip->owner = divided(index, tiles.by_matrix);
        if (strip->owner >= tiles.matrices)
            return false;
        first = (uint32_t)strip->owner * down;
    }
    const uint32_t within = index - first * across;
    const uint32_t most = band_wide(down);
    const uint32_t band = within / (most * down) * most, wide = min(most, across - band);
    const uint32_t in_band = within - band * down;
    const uint32_t column = band + in_band % wide;
    const uint32_t row = in_band / wide + (EXPERTS ? first : 0);
    strip->number = (uint32_t)strip->owner * across + column;
    strip->tiles = down;
    *tile = tile_at<EXPERTS>(tiles, EXPERTS ? 0 : strip->owner, (int)row * CAST_TILE_SIDE,
                             (int)column * CAST_TILE_SIDE);
    return true;
}

// Adds the magnitudes of a tile to those of its strip, and counts it.
template <bool EXPERTS, typename Element>
__device__ __forceinline__ void strip_measure(const CastTiles &tiles, const Tile &tile,
                                              const Strip &strip, TilePeaks *peaks)
{
    Group<Element> unit[TILE_THREAD_ROWS];
    uint32_t bits[GROUP_ELEMENTS];
    tile_load<EXPERTS, true>(tiles, tile, unit);
    columns_peak(unit, bits);
    peaks_put(peaks, bits);
    __syncthreads();
    const int column = (int)threadIdx.x;
    if (column < tile.columns)
        atomicMax((uint32_t *)tiles.transposed.scales + strip.owner * tiles.columns + tile.column0 +
                      column,
                  peaks_get(*peaks, column, 0, CAST_TILE_SIDE));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        atomicAdd(tiles.marks->measured + strip.number, 1u);
}

// Thread block: waits for the strip. Tiles are numbered in the order in which thread blocks begin,
// and the lag is at least a band, so whatever is waited for has begun.
__device__ __forceinline__ void strip_wait(const CastTiles &tiles, const Strip &strip)
{
    if (threadIdx.x == 0)
        while (ptx_load_acquire(tiles.marks->measured + strip.number) < strip.tiles)
            __nanosleep(64);
    __syncthreads();
}

// As tile_numbers, of columns whose amaxes stand where their scales will.
template <typename Kind, bool EXPERTS>
__device__ __forceinline__ bool strip_numbers(const CastTiles &tiles, const Tile &tile,
                                              const Strip &strip, TileNumbers *numbers)
{
    const QuantContext context = cast_context<Kind>(tiles.transposed, tile.matrix);
    const int column = (int)threadIdx.x;
    if (column >= tile.columns)
        return true;
    const uint32_t *amaxes =
        (const uint32_t *)tiles.transposed.scales + strip.owner * tiles.columns + tile.column0;
    const Peak<false, DTYPE_F32> peak = {__ldcg(amaxes + column)};
    const uint32_t scale = cast_choose(&context, peak.statistics()).scale_bits;
    QuantBlock block = block_of_scale(context, __uint_as_float(scale));
    cast_quick_ready(&context, &block, peak.statistics().amax);
    numbers->of[0][column % GROUP_ELEMENTS][column / GROUP_ELEMENTS] =
        make_float2(block.scale, block.multiplier);
    return cast_quick_fits(&context, &block, peak.statistics().amax) &&
           (!EXPERTS || (block.scale != 0.0f && 0.0f * block.multiplier == 0.0f));
}

// What a thread block does: found by one of its threads, since runtime divisions take long.
struct StripTurn {
    Tile measured, cast;
    Strip measured_strip, cast_strip;
    bool measures, casts;
};

// Thread block: measures a tile, and casts one whose strip has been measured. Scales become what
// they are stored as only after this kernel (cast_settle_rows).
template <typename Kind, bool EXPERTS>
__global__ void __launch_bounds__(CAST_THREADS, Kind::input == DTYPE_BF16 ? TILE_BLOCKS_AT_ONCE : 2)
    cast_strips_kernel(const __grid_constant__ CastTiles tiles)
{
    typedef typename CastElement<Kind::input>::type Element;
    __shared__ TilePeaks peaks;
    __shared__ TileNumbers numbers;
    __shared__ __align__(16) TileCodes codes;
    __shared__ StripTurn turn;
    if (threadIdx.x == 0) {
        const uint32_t index = atomicAdd(&tiles.marks->next, 1u), lag = tiles.marks->lag;
        turn.measures = strip_tile<EXPERTS>(tiles, index, &turn.measured, &turn.measured_strip);
        turn.casts =
            index >= lag && strip_tile<EXPERTS>(tiles, index - lag, &turn.cast, &turn.cast_strip);
    }
    __syncthreads();
    if (turn.measures)
        strip_measure<EXPERTS, Element>(tiles, turn.measured, turn.measured_strip, &peaks);
    if (!turn.casts)
        return;
    const Tile tile = turn.cast;
    strip_wait(tiles, turn.cast_strip);
    Group<Element> unit[TILE_THREAD_ROWS];
    tile_load<EXPERTS>(tiles, tile, unit);
    const bool mine = strip_numbers<Kind, EXPERTS>(tiles, tile, turn.cast_strip, &numbers);
    const bool quick = !__syncthreads_or(!mine);
    tile_codes<Kind, EXPERTS>(tiles, tile, numbers, quick, unit, &codes);
    __syncthreads();
    tile_out(tiles, tile, codes);
}

// ---- the kernels of a variant ----

struct CastKernels {
    CastKernel groups, rows, warps, blocks; // NULL: no operand needs it
    CastTilesKernel tiles[TILES_EXPERTS + 1], strips, expert_strips;
    CastSwigluForward swiglu_forward; // of bf16
    CastSwigluBackward swiglu_backward;
};

// [bf16, f32] of each variant of a family.
extern const CastKernels cast_kernels_fp8[][2], cast_kernels_fp4[][2], cast_kernels_int8[][2],
    cast_kernels_int4[][2];

// Some layouts and methods only groups have.
template <typename Kind> static constexpr CastKernels cast_kernels_of()
{
    constexpr bool fp8 = Kind::layout == CODES_BYTES && Kind::code == CODE_E4M3;
    CastKernels kernels = {};
    if constexpr (Kind::layout == CODES_TILED) {
        kernels.groups = cast_tiled_kernel<Kind>;
        return kernels;
    }
    if constexpr (Kind::method != QUANT_ZERO_POINT)
        kernels.groups = cast_groups_kernel<Kind>;
    if constexpr (fp8)
        kernels.rows = cast_rows_kernel<Kind>;
    if constexpr (Kind::method == QUANT_ZERO_POINT ||
                  (Kind::method == QUANT_SYMMETRIC &&
                   Kind::quotient != QUOTIENT_RECIPROCAL_INPUT)) {
        kernels.warps = cast_warps_kernel<Kind>;
        kernels.blocks = cast_blocks_kernel<Kind>;
    }
    if constexpr (Kind::layout == CODES_BYTES &&
                  (Kind::method == QUANT_MX || (Kind::method == QUANT_SYMMETRIC &&
                                                Kind::quotient != QUOTIENT_RECIPROCAL_INPUT))) {
        kernels.tiles[TILES_ALONE] = cast_tiles_kernel<Kind, TILES_ALONE>;
        kernels.tiles[TILES_BOTH] = cast_tiles_kernel<Kind, TILES_BOTH>;
    }
    if constexpr (fp8)
        kernels.tiles[TILES_EXPERTS] = cast_tiles_kernel<Kind, TILES_EXPERTS>;
    if constexpr (fp8 && Kind::method == QUANT_SYMMETRIC && Kind::input == DTYPE_BF16 &&
                  Kind::quotient != QUOTIENT_RECIPROCAL_INPUT) {
        kernels.swiglu_forward = cast_swiglu_forward_kernel<Kind>;
        kernels.swiglu_backward = cast_swiglu_backward_kernel<Kind>;
    }
    if constexpr (Kind::layout == CODES_BYTES && Kind::method == QUANT_SYMMETRIC &&
                  Kind::quotient != QUOTIENT_RECIPROCAL_INPUT) {
        kernels.strips = cast_strips_kernel<Kind, false>;
        if constexpr (fp8)
            kernels.expert_strips = cast_strips_kernel<Kind, true>;
    }
    return kernels;
}

#define CAST_KERNELS(name, ...)                                                                    \
    {cast_kernels_of<CastKind<__VA_ARGS__, DTYPE_BF16>>(),                                         \
     cast_kernels_of<CastKind<__VA_ARGS__, DTYPE_F32>>()},
