// kernels.cuh -- the casts' kernels over a variant: blocks that are groups of columns, and
// blocks that a warp or a thread block has in its registers.
//
// Limit: memory bandwidth, and next to it the instructions of an element: memory leaves time for
// some 20 in bf16, about half of them integer. So magnitudes are compared two at a time, quotients
// take the fused steps of cast/quick.h, and of the lanes that share a group each chooses the scale
// of another unit.
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

// Word t of tinygemm's four words of 32 columns (place.h) for lane t of the four that have them:
// nibbles change places as bytes between lanes, then within the word.
__device__ __forceinline__ uint32_t tile_word(uint32_t word)
{
    const bool odd = lane_index() & 1, second = lane_index() & 2;
    uint32_t other = __shfl_xor_sync(WARP_ALL, word, 1);
    word = odd ? __byte_perm(other, word, 0x7351) : __byte_perm(word, other, 0x6240);
    other = __shfl_xor_sync(WARP_ALL, word, 2);
    word = second ? __byte_perm(other, word, 0x7632) : __byte_perm(word, other, 0x5410);
    uint32_t even = word & 0x0F0F0F0Fu, uneven = word >> 4 & 0x0F0F0F0Fu;
    even = (even | even >> 4) & 0x00FF00FFu;
    uneven = (uneven | uneven >> 4) & 0x00FF00FFu;
    return ((even | even >> 8) & 0xFFFFu) | (uneven | uneven >> 8) << 16;
}

// A unit of a lane: its row, its first column, and whether they are in the tensor.
struct UnitPlace {
    int64_t row, column;
    bool there;
};

// Word of a unit in tinygemm's tiles, from the nibbles of four lanes.
__device__ __forceinline__ void tile_store(const CastWork &work, int64_t matrix, UnitPlace place,
                                           uint32_t nibbles)
{
    const uint32_t word = tile_word(nibbles);
    const int64_t part = lane_index() % 4;
    const int64_t bit =
        quant_tiled_bit(work.padded_columns, place.row, place.column - part * GROUP_ELEMENTS);
    if (place.column < work.padded_columns)
        ((uint32_t *)work
             .codes)[matrix * work.padded_rows * work.padded_columns / 8 + bit / 32 + part * 4] =
            word;
}

template <typename Kind, typename Element>
__device__ __forceinline__ void unit_cast(const CastWork &work, const QuantContext &context,
                                          int64_t matrix, UnitPlace place, const QuantBlock &block,
                                          bool quick, const Group<Element> &unit)
{
    constexpr bool tiled = Kind::layout == CODES_TILED;
    const int64_t element = (matrix * work.rows + place.row) * work.columns + place.column;
    uint32_t words[2] = {0, 0};
    if (quick)
        unit_codes<Kind>(context, block, unit, words);
    else if (place.there)
        unit_codes_slow<Kind>(context, block, (const Element *)work.values + element, words);
    else if (tiled)
        words[0] = cast_encode(&context, &block, 0.0f) * 0x11111111u;
    if constexpr (tiled)
        tile_store(work, matrix, place, words[0]);
    else if (place.there)
        unit_store<Kind::layout>(work.codes, element, words);
}

// Statistics, scales and codes of four units of each lane, at place(0 .. 3). Groups of columns are
// held by neighbouring lanes.
template <typename Kind, typename Element, typename Place>
__device__ __forceinline__ void units_cast(const CastWork &work, int64_t matrix,
                                           const Group<Element> *unit, Place place)
{
    constexpr int sharers = Kind::group == 16 ? 2 : 4;
    typedef Peak<Kind::ranged, Kind::input> P;
    const int group = Kind::group ? Kind::group : (int)work.block_columns;
    const int lanes = group / GROUP_ELEMENTS, lane = lane_index();
    P peak[CAST_UNITS];
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++)
        peak[u] = Kind::layout == CODES_TILED || place(u).there ? P::of(unit[u]) : P::none();
    peaks_share<P, sharers>(peak, lanes);
    const QuantContext context = cast_context<Kind>(work, matrix);
#pragma unroll
    for (int round = 0; round < CAST_UNITS / sharers; round++) {
        const UnitPlace mine = place(round * sharers + lane % sharers);
        const QuantStatistics statistics = peak[round].statistics();
        QuantBlock block = cast_choose(&context, statistics);
        const int64_t column = mine.column - lane % lanes * GROUP_ELEMENTS;
        if (lane % lanes < sharers && column < work.padded_columns && mine.row < work.padded_rows)
            block_store(work, matrix, mine.row, column / group, block);
        cast_quick_ready(&context, &block);
        const unsigned slow =
            __ballot_sync(WARP_ALL, !cast_quick_fits(&context, &block, statistics.amax));
#pragma unroll
        for (int s = 0; s < sharers; s++) {
            const int u = round * sharers + s;
            QuantBlock of = {0, 0, 0, 0, 0};
            if (cast_divides(&context.rule))
                of.scale = __shfl_sync(WARP_ALL, block.scale, s, sharers);
            of.multiplier = __shfl_sync(WARP_ALL, block.multiplier, s, sharers);
            if (cast_shifts(&context.rule))
                of.zero = __shfl_sync(WARP_ALL, block.zero, s, sharers);
            unit_cast<Kind>(work, context, matrix, place(u), of,
                            !(slow >> ((lane & -sharers) + s) & 1u), unit[u]);
        }
    }
}

// Warp: 1024 columns of one row; lane l has columns 8 l .. 8 l + 7 of every 256. Block: eight rows.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, Kind::input == DTYPE_BF16 ? 4 : 3)
    cast_groups_kernel(const __grid_constant__ CastWork work)
{
    typedef typename CastElement<Kind::input>::type Element;
    const uint32_t across = (uint32_t)((work.padded_columns + CAST_REACH - 1) / CAST_REACH);
    const int64_t any_row = (int64_t)(blockIdx.x / across) * CAST_WARPS + threadIdx.x / WARP_LANES;
    if (any_row >= work.all_rows)
        return;
    const int64_t matrix = any_row / work.padded_rows, row = any_row - matrix * work.padded_rows;
    const int64_t first =
        (int64_t)(blockIdx.x % across) * CAST_REACH + lane_index() * GROUP_ELEMENTS;
    const int64_t end = row < work.rows ? work.columns : 0;
    const Element *values =
        (const Element *)work.values + (matrix * work.rows + row) * work.columns;
    Group<Element> unit[CAST_UNITS];
#pragma unroll
    for (int u = 0; u < CAST_UNITS; u++) {
        unit_clear(&unit[u]);
        if (first + u * CAST_SPAN < end)
            unit[u] = unit_load(values + first + u * CAST_SPAN);
    }
    units_cast<Kind>(work, matrix, unit, [&](int u) {
        const int64_t column = first + u * CAST_SPAN;
        return UnitPlace{row, column, column < end};
    });
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
__device__ __forceinline__ void piece_load(const CastWork &work, const CastPiece &piece,
                                           Group<Element> (&unit)[UNITS])
{
    const Element *from = (const Element *)work.values + piece.first;
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
__device__ __forceinline__ void
piece_codes(const CastWork &work, const QuantContext &context, const QuantBlock &block, bool quick,
            const CastPiece &piece, const Group<Element> (&unit)[UNITS])
{
    if (!quick) {
        for (int u = 0; u < UNITS && u < piece.count; u++) {
            const int64_t element = piece.first + u * piece.step;
            uint32_t words[2];
            unit_codes_slow<Kind>(context, block, (const Element *)work.values + element, words);
            unit_store<Kind::layout>(work.codes, element, words);
        }
        return;
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint32_t words[2];
        unit_codes<Kind>(context, block, unit[u], words);
        if (u < piece.count)
            unit_store<Kind::layout>(work.codes, piece.first + u * piece.step, words);
    }
}

// Team (a warp, or the thread block): one block, 128 bytes a thread; longer ones are read twice.
// given: its scale is there already.
template <typename Kind, bool WARP>
__device__ __forceinline__ void cast_block(const CastWork &work, int64_t index, int thread,
                                           int threads)
{
    typedef typename CastElement<Kind::input>::type Element;
    typedef Peak<Kind::ranged, Kind::input> P;
    constexpr int units = CAST_BLOCK_BYTES / (GROUP_ELEMENTS * sizeof(Element));
    const int64_t in_matrix = work.grid.rows * work.grid.columns, matrix = index / in_matrix;
    const int64_t row = index % in_matrix / work.grid.columns;
    const int64_t column = index % in_matrix % work.grid.columns;
    const CastPiece all = piece_of(work, matrix, row, column, thread, threads);
    const QuantContext context = cast_context<Kind>(work, matrix);
    Group<Element> unit[units];
    P peak = P::none();
    CastPiece piece = all;
    for (; piece.count > 0; piece.count -= units, piece.first += units * piece.step) {
        piece_load(work, piece, unit);
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
        block_store(work, matrix, row, column, block);
    cast_quick_ready(&context, &block);
    const bool quick = cast_quick_fits(&context, &block, statistics.amax);
    for (piece = all; piece.count > 0; piece.count -= units, piece.first += units * piece.step) {
        if (all.count > units)
            piece_load(work, piece, unit);
        piece_codes<Kind>(work, context, block, quick, piece, unit);
    }
}

template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, 3)
    cast_warps_kernel(const __grid_constant__ CastWork work)
{
    const int64_t index = warp_index();
    if (index < work.all_rows / work.padded_rows * work.grid.rows * work.grid.columns)
        cast_block<Kind, true>(work, index, lane_index(), WARP_LANES);
}

template <typename Kind>
__global__ void __launch_bounds__(1024) cast_blocks_kernel(const __grid_constant__ CastWork work)
{
    cast_block<Kind, false>(work, blockIdx.x, (int)threadIdx.x, (int)blockDim.x);
}
