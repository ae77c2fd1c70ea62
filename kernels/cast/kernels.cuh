// kernels.cuh -- the casts' kernels over a variant: blocks that are groups of columns, and
// blocks that a warp or a thread block has in its registers.
//
// Limit: memory bandwidth, and next to it the instructions of an element: memory leaves time for
// some 20 in bf16, about half of them integer. So bf16 are worked on two at a time (cast/pairs.h),
// of the lanes that share a group each chooses the scale of another unit, rows are cut into units
// without a look at where they end, and codes that need more care are made a second time. Scales
// that do not lie in the order of the values are gathered: 2 or 4 bytes at a time they were a fifth
// of what the L2 had to do.
#pragma once

#include "kernels/cast/work.cuh"

// ---- groups ----

enum {
    CAST_WARPS = CAST_THREADS / WARP_LANES,
    CAST_SPAN = WARP_LANES * GROUP_ELEMENTS, // columns from unit to unit of a lane
    CAST_REACH = CAST_SPAN * CAST_UNITS,     // columns of a warp
};

// Four units' peaks, joined over the `lanes` neighbours of a group, each left with the lanes whose
// number modulo 4 is the unit's. With two lanes to a group: unit 0 or 1 in [0], 2 or 3 in [1].
template <typename P, int SHARERS>
__device__ __forceinline__ void peaks_share(P (&peak)[CAST_UNITS], int lanes)
{
    const bool odd = lane_index() & 1, second = lane_index() & 2;
#pragma unroll
    for (int pair = 0; pair < CAST_UNITS / 2; pair++) {
        const P kept = odd ? peak[2 * pair + 1] : peak[2 * pair];
        const P sent = odd ? peak[2 * pair] : peak[2 * pair + 1];
        peak[pair] = kept.joined(sent.from_lane(1));
    }
    if (SHARERS == 2)
        return;
    const P kept = second ? peak[1] : peak[0], sent = second ? peak[0] : peak[1];
    peak[0] = kept.joined(sent.from_lane(2));
    for (int apart = 4; apart < lanes; apart *= 2)
        peak[0] = peak[0].joined(peak[0].from_lane(apart));
}

// Where the units of a lane are is told by an object with there(u), element(u), and block(u), the
// BlockPlace of the block that unit u is a part of; it is there if any lane has a part of it, since
// another may have to store its scale, by scale_put.
template <typename Kind, typename Where>
__device__ __forceinline__ void scale_put(const CastWork &work, const Where &,
                                          const BlockPlace &place, const QuantBlock &block)
{
    block_store<Kind>(work, place, block);
}

// What a unit's arithmetic needs of its block, from the lane of its group that chose it.
template <typename Kind>
__device__ __forceinline__ QuantBlock block_from(const QuantContext &context,
                                                 const QuantBlock &chosen, int lane, int lanes)
{
    QuantBlock block = {0, 0, 0, 0, 0};
    if (cast_divides(&context.rule))
        block.scale = __shfl_sync(WARP_ALL, chosen.scale, lane, lanes);
    block.multiplier = __shfl_sync(WARP_ALL, chosen.multiplier, lane, lanes);
    if (cast_shifts(&context.rule))
        block.zero = __shfl_sync(WARP_ALL, chosen.zero, lane, lanes);
    return block;
}

// Statistics, scales and codes of four units of each lane. Groups of columns are held by
// neighbouring lanes.
template <typename Kind, typename Element, typename Where>
__device__ __forceinline__ void units_cast(const CastWork &work, const Element *values,
                                           const Group<Element> *unit, const Where &where)
{
    constexpr int sharers = Kind::group == 16 ? 2 : 4;
    typedef Peak<Kind::ranged, Kind::input> P;
    const int lanes =
        Kind::group ? Kind::group / GROUP_ELEMENTS : (int)work.block_columns / GROUP_ELEMENTS;
    const int lane = lane_index();
    P peak[CAST_UNITS];
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++)
        peak[u] = P::of(unit[u]);
    peaks_share<P, sharers>(peak, lanes);
#pragma unroll
    for (int round = 0; round < CAST_UNITS / sharers; round++) {
        const BlockPlace place = where.block(round * sharers + lane % sharers);
        const QuantContext context = cast_context<Kind>(work, place.matrix);
        const QuantStatistics statistics = peak[round].statistics();
        QuantBlock block = cast_quick_choose(&context, statistics);
        if ((lane & (lanes - 1)) < sharers && place.there)
            scale_put<Kind>(work, where, place, block);
        cast_quick_ready(&context, &block, statistics.amax);
        const bool fits = unit_fits<Kind>(context, block, statistics.amax);
        if (fits)
            cast_pairs_ready(&context, &block);
#pragma unroll
        for (int s = 0; s < sharers; s++) {
            const int u = round * sharers + s;
            const QuantBlock of = block_from<Kind>(context, block, s, sharers);
            uint32_t words[2];
            unit_codes<Kind>(context, of, unit[u], words);
            if (where.there(u))
                unit_store<Kind::layout>(work.codes, where.element(u), words);
        }
        if (!__any_sync(WARP_ALL, !fits))
            continue;
#pragma unroll 1
        for (int s = 0; s < sharers; s++) {
            const int u = round * sharers + s;
            const QuantBlock of = block_from<Kind>(context, block, s, sharers);
            const bool quick = __shfl_sync(
                WARP_ALL, cast_quick_fits(&context, &block, statistics.amax), s, sharers);
            const bool fitted = __shfl_sync(WARP_ALL, fits, s, sharers);
            if (!fitted && where.there(u))
                unit_again<Kind>(work, context, of, quick, values + where.element(u),
                                 where.element(u));
        }
    }
}

// Units of a lane from `first` on in a tensor without padding, whose groups fill its rows: one
// sequence.
struct FlatPlace {
    const CastWork &work;
    int64_t first;
    int left; // of the tensor, from `first` on, as far as units reach
    __device__ bool there(int u) const
    {
        return u * CAST_SPAN < left;
    }
    __device__ int64_t element(int u) const
    {
        return first + u * CAST_SPAN;
    }
    __device__ BlockPlace block(int u) const
    {
        const uint32_t index =
            (uint32_t)(first >> work.group_bits) + ((uint32_t)(u * CAST_SPAN) >> work.group_bits);
        const uint32_t any_row = divided(index, work.by_grid_columns);
        const uint32_t column = index - any_row * (uint32_t)work.grid.columns;
        const uint32_t matrix = there(u) ? divided(any_row, work.by_rows) : 0;
        return {matrix, any_row - matrix * (uint32_t)work.rows, column, there(u)};
    }
};

// ---- groups whose scales are gathered ----

// Rows of eight warps, so that their scales lie together, 32 bytes (SWIZZLED: two neighbours of
// each of the four rows that share 16 bytes) or 16 (TRANSPOSED: neighbours). The scales of the 1024
// columns are kept in shared memory as they will lie: [columns / 4][32] or [columns][eight rows].
// PLAIN: stored at once; a warp's row has one second scale.
struct BandPlace {
    const CastWork &work;
    uint32_t matrix;
    int64_t first;
    uint8_t *scales; // and zero points
    __device__ bool there(int) const
    {
        return true;
    }
    __device__ int64_t element(int u) const
    {
        return first + u * CAST_SPAN;
    }
    __device__ BlockPlace block(int u) const // column: of the 1024
    {
        return {matrix, 0, (lane_index() * GROUP_ELEMENTS + u * CAST_SPAN) >> work.group_bits,
                true};
    }
};

enum { BAND_BYTES = CAST_REACH / 16 * CAST_WARPS }; // of either

template <typename Kind>
__device__ __forceinline__ void scale_put(const CastWork &work, const BandPlace &where,
                                          const BlockPlace &place, const QuantBlock &block)
{
    const int column = (int)place.column, warp = (int)threadIdx.x / WARP_LANES;
    if (Kind::gathered == SCALES_SWIZZLED) {
        where.scales[column / 4 * 32 + warp % 2 * 16 + warp / 2 * 4 + column % 4] =
            (uint8_t)block.scale_bits;
    } else if (Kind::gathered == SCALES_PLAIN) {
        const int64_t lane_first = lane_index() * GROUP_ELEMENTS; // one sequence of blocks
        quant_store_bits(work.scales, cast_rule<Kind>(work.context.rule).scale_dtype,
                         ((where.first - lane_first) >> work.group_bits) + column,
                         block.scale_bits);
    } else {
        uint16_t *scales = (uint16_t *)where.scales;
        scales[column * CAST_WARPS + warp] = (uint16_t)block.scale_bits;
        scales[BAND_BYTES / 2 + column * CAST_WARPS + warp] = (uint16_t)block.zero_bits;
    }
}

// The row of a warp, of all matrices'; `band` numbers the thread blocks' rows.
template <typename Kind> __device__ __forceinline__ uint32_t band_row(uint32_t band, int warp)
{
    if (Kind::gathered != SCALES_SWIZZLED)
        return band * CAST_WARPS + warp;
    return band / 16 * SWIZZLE_ROWS + band % 16 * 2 + warp % 2 + warp / 2 * 32;
}

// Warp 0: the scales of the thread block's rows and 1024 columns, from column `across` * 1024 on.
template <typename Kind>
__device__ __forceinline__ void band_store(const CastWork &work, uint32_t matrix, uint32_t band,
                                           uint32_t across, const uint8_t *gathered)
{
    const int columns = CAST_REACH >> work.group_bits, lane = lane_index();
    if (Kind::gathered == SCALES_SWIZZLED) {
        const int64_t tile = band / 16 * (uint32_t)work.grid.columns / 4 + across * (columns / 4);
        uint4 *to = (uint4 *)work.scales + tile * 32 + band % 16 * 2;
        if (lane < columns / 2)
            to[lane / 2 * 32 + lane % 2] = ((const uint4 *)gathered)[lane];
    } else if (lane < columns) {
        const int64_t row = (int64_t)band * CAST_WARPS - (int64_t)matrix * work.rows;
        const int64_t index =
            matrix * work.scale_stride + (across * columns + (uint32_t)lane) * work.rows + row;
        const uint4 *from = (const uint4 *)gathered + lane;
        *(uint4 *)((uint16_t *)work.scales + index) = from[0];
        *(uint4 *)((uint16_t *)work.zeros + index) = from[BAND_BYTES / sizeof(uint4)];
    }
}

// Warp: 1024 elements; lane l has 8 l .. 8 l + 7 of every 256. Block: neighbours, or eight rows.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, Kind::input == DTYPE_BF16 ? 5 : 3)
    cast_groups_kernel(const __grid_constant__ CastWork work)
{
    typedef typename CastElement<Kind::input>::type Element;
    const Element *values = (const Element *)work.values;
    Group<Element> unit[CAST_UNITS];
    if (Kind::banded && work.gathers) {
        __shared__ __align__(16) uint8_t gathered[2 * BAND_BYTES];
        const uint32_t warps_across = (uint32_t)work.columns / CAST_REACH;
        const uint32_t band = divided(blockIdx.x, work.by_across);
        const uint32_t across = blockIdx.x - band * warps_across;
        const uint32_t row = band_row<Kind>(band, (int)threadIdx.x / WARP_LANES);
        const uint32_t matrix = divided(row, work.by_rows);
        const BandPlace where = {
            work, matrix, row * work.columns + across * CAST_REACH + lane_index() * GROUP_ELEMENTS,
            gathered};
#pragma unroll
        for (int u = 0; u < CAST_UNITS; u++)
            unit[u] = unit_load(values + where.first + u * CAST_SPAN);
        units_cast<Kind>(work, values, unit, where);
        if (Kind::gathered == SCALES_PLAIN)
            return;
        __syncthreads();
        if (threadIdx.x < WARP_LANES)
            band_store<Kind>(work, matrix, band, across, gathered);
        return;
    }
    const int64_t first = warp_index() * CAST_REACH + lane_index() * GROUP_ELEMENTS;
    const FlatPlace where = {work, first, (int)min(work.count - first, (int64_t)CAST_REACH)};
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++) {
        unit_clear(&unit[u]);
        if (where.there(u))
            unit[u] = unit_load(values + first + u * CAST_SPAN);
    }
    units_cast<Kind>(work, values, unit, where);
}

// A row's units, where the last group of a row is short.
struct RowPlace {
    const CastWork &work;
    int64_t matrix, row, first;
    __device__ bool there(int u) const
    {
        return first + u * CAST_SPAN < work.columns;
    }
    __device__ int64_t element(int u) const
    {
        return (matrix * work.rows + row) * work.columns + first + u * CAST_SPAN;
    }
    __device__ BlockPlace block(int u) const
    {
        const int64_t column = first + u * CAST_SPAN, index = column / work.block_columns;
        return {matrix, row, index, index * work.block_columns < work.columns};
    }
};

// Warp: 1024 columns of one row. Block: eight rows.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, 3)
    cast_rows_kernel(const __grid_constant__ CastWork work)
{
    typedef typename CastElement<Kind::input>::type Element;
    const uint32_t across = (uint32_t)((work.columns + CAST_REACH - 1) / CAST_REACH);
    const int64_t any_row = (int64_t)(blockIdx.x / across) * CAST_WARPS + threadIdx.x / WARP_LANES;
    if (any_row >= work.all_rows)
        return;
    const int64_t source = work_source(work, any_row);
    if (source < 0)
        return;
    const RowPlace where = {work, any_row / work.rows, any_row % work.rows,
                            (int64_t)(blockIdx.x % across) * CAST_REACH +
                                lane_index() * GROUP_ELEMENTS};
    const Element *values = (const Element *)work.values + (source - any_row) * work.columns;
    Group<Element> unit[CAST_UNITS];
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++) {
        unit_clear(&unit[u]);
        if (where.there(u))
            unit[u] = unit_load(values + where.element(u));
    }
    units_cast<Kind>(work, values, unit, where);
}

// ---- tinygemm's tiles ----

// Of the four lanes that have a row of a tile, lane k has its columns 8 k .. 8 k + 7 of every 32,
// as nibbles; it gets the four words that are its own (place.h), with columns 2 k and 2 k + 1 of
// every 8. Bytes change places within a lane, then words between lanes, the r-th with lane k ^ r,
// then nibbles; what differs from lane to lane is which bytes are picked.
__device__ __forceinline__ uint4 tile_words(const uint32_t (&word)[4])
{
    const bool odd = lane_index() & 1, second = lane_index() & 2;
    const uint32_t near = second ? 0x7362 : 0x5140, far = second ? 0x5140 : 0x7362;
    const uint32_t mine = odd ? 0x7632 : 0x5410, other = odd ? 0x5410 : 0x7632;
    const uint32_t low = 0x0F0F0F0Fu, high = 0xF0F0F0F0u;
    const uint32_t near01 = cast_bytes(word[0], word[1], near);
    const uint32_t near23 = cast_bytes(word[2], word[3], near);
    const uint32_t far01 = cast_bytes(word[0], word[1], far);
    const uint32_t far23 = cast_bytes(word[2], word[3], far);
    const uint32_t from0 = cast_bytes(near01, near23, mine);
    const uint32_t from1 = __shfl_xor_sync(WARP_ALL, cast_bytes(near01, near23, other), 1);
    const uint32_t from2 = __shfl_xor_sync(WARP_ALL, cast_bytes(far01, far23, mine), 2);
    const uint32_t from3 = __shfl_xor_sync(WARP_ALL, cast_bytes(far01, far23, other), 3);
    const uint32_t a0 = odd ? from1 : from0, a1 = odd ? from0 : from1;
    const uint32_t b0 = odd ? from3 : from2, b1 = odd ? from2 : from3;
    const uint32_t a_even = (a0 & low) | (a1 << 4 & high), a_odd = (a0 >> 4 & low) | (a1 & high);
    const uint32_t b_even = (b0 & low) | (b1 << 4 & high), b_odd = (b0 >> 4 & low) | (b1 & high);
    const uint32_t first = second ? 0x1504 : 0x5140, last = second ? 0x3726 : 0x7362;
    const uint32_t even01 = cast_bytes(a_even, b_even, first);
    const uint32_t even23 = cast_bytes(a_even, b_even, last);
    const uint32_t odd01 = cast_bytes(a_odd, b_odd, first);
    const uint32_t odd23 = cast_bytes(a_odd, b_odd, last);
    return make_uint4(cast_bytes(even01, odd01, 0x5410), cast_bytes(even01, odd01, 0x7632),
                      cast_bytes(even23, odd23, 0x5410), cast_bytes(even23, odd23, 0x7632));
}

// A lane's row and its columns of the two tiles of a warp; what lies in the padding is zero.
struct TilePlace {
    int64_t matrix, row, column;
};

template <typename Kind, typename Element>
__device__ __forceinline__ void tile_cast(const CastWork &work, const TilePlace &place,
                                          Peak<Kind::ranged, Kind::input> peak,
                                          const Group<Element> *unit)
{
    const int lane = lane_index(), k = lane % 4;
    const QuantContext context = cast_context<Kind>(work, place.matrix);
    const QuantStatistics statistics = peak.statistics();
    QuantBlock block = cast_quick_choose(&context, statistics);
    if ((k * 32 & (work.block_columns - 1)) == 0) {
        const int64_t column = place.column - k * GROUP_ELEMENTS + k * 32;
        const int64_t index = quant_scale_place({SCALES_PAIRED, work.grid.rows, work.grid.columns},
                                                place.row, column >> work.group_bits);
        ((uint32_t *)work.scales)[(place.matrix * work.scale_stride + index) / 2] =
            block.scale_bits | block.zero_bits << 16;
    }
    cast_quick_ready(&context, &block, statistics.amax);
    const bool fits = unit_fits<Kind>(context, block, statistics.amax);
    uint32_t word[CAST_UNITS];
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++) {
        uint32_t words[2];
        unit_codes<Kind>(context, block_from<Kind>(context, block, u, 4), unit[u], words);
        word[u] = words[0];
    }
    if (__any_sync(WARP_ALL, !fits)) {
#pragma unroll 1
        for (int u = 0; u < CAST_UNITS; u++) {
            const QuantBlock of = block_from<Kind>(context, block, u, 4);
            const bool quick =
                __shfl_sync(WARP_ALL, cast_quick_fits(&context, &block, statistics.amax), u, 4);
            const int64_t column = place.column + u * 32;
            const int64_t element = (place.matrix * work.rows + place.row) * work.columns + column;
            uint32_t words[2] = {cast_encode(&context, &of, 0.0f) * 0x11111111u, 0};
            if (place.row < work.rows && column < work.columns)
                unit_words_again<Kind>(context, of, quick, (const Element *)work.values + element,
                                       words);
            for (int i = 0; i < CAST_UNITS; i++)
                word[i] = i == u ? words[0] : word[i];
        }
    }
    const int64_t tile = place.row / CODE_TILE_ROWS * (work.padded_columns / CODE_TILE_COLUMNS) +
                         place.column / CODE_TILE_COLUMNS;
    uint4 *codes =
        (uint4 *)(work.codes + place.matrix * work.padded_rows * work.padded_columns / 2);
    codes[tile * WARP_LANES + lane] = tile_words(word);
}

// Warp: 8 rows of 256 columns, two tiles; lane 4 r + k has row r, columns 8 k .. 8 k + 7 of every
// 32, and writes 16 bytes of a tile.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, Kind::input == DTYPE_BF16 ? 3 : 2)
    cast_tiled_kernel(const __grid_constant__ CastWork work)
{
    typedef typename CastElement<Kind::input>::type Element;
    typedef Peak<Kind::ranged, Kind::input> P;
    const uint32_t index = (uint32_t)warp_index(), lane = (uint32_t)lane_index();
    if (index >= work.count / (CODE_TILE_ROWS * CAST_SPAN))
        return;
    const uint32_t across = (uint32_t)(work.padded_columns / CAST_SPAN);
    const uint32_t down = (uint32_t)(work.padded_rows / CODE_TILE_ROWS);
    const uint32_t band = divided(index, work.by_grid_columns);
    const uint32_t matrix = divided(band, work.by_rows);
    TilePlace place = {matrix, (band - matrix * down) * CODE_TILE_ROWS + lane / 4,
                       (index - band * across) * CAST_SPAN + lane % 4 * GROUP_ELEMENTS};
    const Element *from = (const Element *)work.values +
                          (place.matrix * work.rows + place.row) * work.columns + place.column;
    const int left =
        place.row < work.rows ? (int)min(work.columns - place.column, (int64_t)CAST_SPAN) : 0;
    Group<Element> unit[2 * CAST_UNITS];
#pragma unroll
    for (int u = 0; u < 2 * CAST_UNITS; u++) {
        unit_clear(&unit[u]);
        if (u * 32 < left)
            unit[u] = unit_load(from + u * 32);
    }
    P of_tile[2]; // of the group of unit lane % 4
#pragma unroll
    for (int t = 0; t < 2; t++) {
        P peak[CAST_UNITS];
#pragma unroll
        for (int u = 0; u < CAST_UNITS; u++)
            peak[u] = P::of(unit[t * CAST_UNITS + u]);
        peaks_share<P, 4>(peak, 4);
        of_tile[t] = peak[0];
        for (int apart = 1; apart < 4 && apart * 64 <= work.block_columns; apart *= 2)
            of_tile[t] = of_tile[t].joined(of_tile[t].from_lane(apart));
    }
    if (work.block_columns == CAST_SPAN)
        of_tile[0] = of_tile[1] = of_tile[0].joined(of_tile[1]);
    tile_cast<Kind>(work, place, of_tile[0], unit);
    place.column += CODE_TILE_COLUMNS;
    tile_cast<Kind>(work, place, of_tile[1], unit + CAST_UNITS);
}

// ---- blocks in registers ----

// The team's joined peak, for all of its threads: a warp, or the thread block.
template <typename P, bool WARP> __device__ __forceinline__ P team_peak(P peak)
{
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        peak = peak.joined(peak.from_lane(apart));
    if (WARP)
        return peak;
    __shared__ P of_warp[WARP_LANES];
    const int warps = (int)blockDim.x / WARP_LANES, lane = lane_index();
    if (lane == 0)
        of_warp[threadIdx.x / WARP_LANES] = peak;
    __syncthreads();
    peak = lane < warps ? of_warp[lane] : P::none();
    for (int apart = WARP_LANES / 2; apart > 0; apart /= 2)
        peak = peak.joined(peak.from_lane(apart));
    return peak;
}

// A thread's units of a block: count of them, `step` elements apart.
struct CastPiece {
    int64_t first, step;
    int count;
};

// Neighbouring threads have neighbouring units. Blocks of several rows: block_columns / 8 divides
// the number of threads.
__device__ __forceinline__ CastPiece piece_of(const CastWork &work, int64_t matrix, int64_t row,
                                              int64_t column, int thread, int threads)
{
    CastPiece piece;
    row *= work.block_rows;
    column *= work.block_columns;
    const int64_t rows = min(work.block_rows, work.rows - row);
    const int64_t units = min(work.block_columns, work.columns - column) / GROUP_ELEMENTS;
    piece.first = (matrix * work.rows + row) * work.columns + column;
    if (work.block_rows == 1) {
        piece.first += thread * GROUP_ELEMENTS;
        piece.step = threads * GROUP_ELEMENTS;
        piece.count = (int)((units - thread + threads - 1) / threads);
        return piece;
    }
    const int across = (int)work.block_columns / GROUP_ELEMENTS, down = threads / across;
    piece.first += thread / across * work.columns + thread % across * GROUP_ELEMENTS;
    piece.step = down * work.columns;
    piece.count = thread % across < units ? (int)((rows - thread / across + down - 1) / down) : 0;
    return piece;
}

template <typename Element, int UNITS>
__device__ __forceinline__ void piece_load(const Element *values, const CastPiece &piece,
                                           Group<Element> (&unit)[UNITS])
{
    const Element *from = values + piece.first;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        unit_clear(&unit[u]);
        if (u < piece.count)
            unit[u] = unit_load(from);
        from += piece.step;
    }
}

template <typename P, typename Element, int UNITS>
__device__ __forceinline__ P piece_peak(const CastPiece &piece, const Group<Element> (&unit)[UNITS],
                                        P peak)
{
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        if (u < piece.count)
            peak = peak.joined(P::of(unit[u]));
    return peak;
}

template <typename Kind, typename Element, int UNITS>
__device__ __forceinline__ void piece_codes(const CastWork &work, const Element *values,
                                            const QuantContext &context, const QuantBlock &block,
                                            float amax, const CastPiece &piece,
                                            const Group<Element> (&unit)[UNITS])
{
    if (!unit_fits<Kind>(context, block, amax)) {
        const bool usual = cast_quick_fits(&context, &block, amax);
#pragma unroll 1
        for (int u = 0; u < UNITS && u < piece.count; u++) {
            const int64_t element = piece.first + u * piece.step;
            unit_again<Kind>(work, context, block, usual, values + element, element);
        }
        return;
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        if (u >= piece.count)
            break;
        uint32_t words[2];
        unit_codes<Kind>(context, block, unit[u], words);
        unit_store<Kind::layout>(work.codes, piece.first + u * piece.step, words);
    }
}

// Team (a warp, or the thread block): one block, 128 bytes a thread; longer ones are read twice.
// given: its scale is there already.
template <typename Kind, bool WARP>
__device__ __forceinline__ void cast_block(const CastWork &work, uint32_t index, int thread,
                                           int threads)
{
    typedef typename CastElement<Kind::input>::type Element;
    typedef Peak<Kind::ranged, Kind::input> P;
    constexpr int units = CAST_BLOCK_BYTES / (GROUP_ELEMENTS * sizeof(Element));
    const uint32_t any_row = divided(index, work.by_grid_columns);
    const uint32_t in_matrix = divided(any_row, work.by_rows);
    const int64_t matrix = in_matrix, row = any_row - in_matrix * (uint32_t)work.grid.rows;
    const int64_t column = index - any_row * (uint32_t)work.grid.columns;
    const int64_t source = work_source(work, row);
    if (source < 0)
        return;
    const Element *values = (const Element *)work.values + (source - row) * work.columns;
    const CastPiece all = piece_of(work, matrix, row, column, thread, threads);
    const QuantContext context = cast_context<Kind>(work, matrix);
    Group<Element> unit[units];
    P peak = P::none();
    CastPiece piece = all;
    for (; piece.count > 0; piece.count -= units, piece.first += units * piece.step) {
        piece_load(values, piece, unit);
        peak = piece_peak(piece, unit, peak);
    }
    if (!work.given)
        peak = team_peak<P, WARP>(peak);
    const QuantStatistics statistics = peak.statistics();
    QuantBlock block;
    if (work.given)
        block = block_of_scale(context, *(const float *)work.scales);
    else
        block = cast_choose(&context, statistics);
    if (!work.given && thread == 0)
        block_store<Kind>(work, {matrix, row, column, true}, block);
    cast_quick_ready(&context, &block, statistics.amax);
    for (piece = all; piece.count > 0; piece.count -= units, piece.first += units * piece.step) {
        if (all.count > units)
            piece_load(values, piece, unit);
        piece_codes<Kind>(work, values, context, block, statistics.amax, piece, unit);
    }
}

template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, 3)
    cast_warps_kernel(const __grid_constant__ CastWork work)
{
    const uint32_t index = (uint32_t)warp_index();
    if (index < work.count)
        cast_block<Kind, true>(work, index, lane_index(), WARP_LANES);
}

template <typename Kind>
__global__ void __launch_bounds__(1024) cast_blocks_kernel(const __grid_constant__ CastWork work)
{
    cast_block<Kind, false>(work, blockIdx.x, (int)threadIdx.x, (int)blockDim.x);
}
