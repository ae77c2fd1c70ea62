// swiglu.cuh -- the gated activation and the cast of its result in one pass: a warp has a row of
// the result in registers when it knows the row's scale.
//
// Values are stored in bf16, too: weights' gradients and the casts that the quick arithmetic does
// not have read them. Limit: memory bandwidth.
#pragma once

#include "kernels/cast/kernels.cuh"
#include "kernels/swiglu.cuh"

enum {
    SWIGLU_CAST_UNITS = 8, // of a lane, in a row of the activation
    SWIGLU_CAST_INNER = SWIGLU_CAST_UNITS * CAST_SPAN,
};

typedef void (*CastSwigluForward)(SwigluForward args, CastWork work);
typedef void (*CastSwigluBackward)(SwigluBackward args, CastWork work);

// The lane's units of `columns` columns from element `first` on.
__device__ __forceinline__ CastPiece lane_piece(int64_t first, int columns)
{
    const int units = columns / GROUP_ELEMENTS, lane = lane_index();
    return {first + lane * GROUP_ELEMENTS, CAST_SPAN, (units - lane + WARP_LANES - 1) / WARP_LANES};
}

__device__ __forceinline__ Group<Bf16> group_of(const float (&x)[GROUP_ELEMENTS])
{
    return {{bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
             bf16_pair(x[6], x[7])}};
}

__device__ __forceinline__ void unit_put(Bf16 *to, const Group<Bf16> &unit)
{
    *(uint4 *)to = make_uint4(unit.pair[0], unit.pair[1], unit.pair[2], unit.pair[3]);
}

// Warp: chooses and stores the row's scale.
template <typename Kind>
__device__ __forceinline__ QuantBlock row_block(const CastWork &work, const QuantContext &context,
                                                int64_t row, const QuantStatistics &statistics)
{
    QuantBlock block = cast_choose(&context, statistics);
    if (lane_index() == 0)
        block_store<Kind>(work, {0, row, 0, true}, block);
    cast_quick_ready(&context, &block, statistics.amax);
    return block;
}

// Warp: one row after the other.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, 3)
    cast_swiglu_forward_kernel(const __grid_constant__ SwigluForward args,
                               const __grid_constant__ CastWork work)
{
    typedef Peak<false, DTYPE_BF16> P;
    constexpr int AT_ONCE = 2; // units whose loads are under way together
    const int64_t rows = *args.rows_total, inner = args.inner;
    const QuantContext context = cast_context<Kind>(work, 0);
    Bf16 *a = (Bf16 *)args.a;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (swiglu_is_padding(args.row_map, row))
            continue;
        const CastPiece piece = lane_piece(row * inner, (int)inner);
        const Bf16 *g = (const Bf16 *)args.gu + piece.first + row * inner, *u = g + inner;
        Group<Bf16> unit[SWIGLU_CAST_UNITS];
        P peak = P::none();
#pragma unroll
        for (int first = 0; first < SWIGLU_CAST_UNITS; first += AT_ONCE) {
            Group<Bf16> gate[AT_ONCE], up[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + i < piece.count) {
                    gate[i] = group_load<true>(g + (first + i) * CAST_SPAN, GROUP_ELEMENTS);
                    up[i] = group_load<true>(u + (first + i) * CAST_SPAN, GROUP_ELEMENTS);
                }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + i < piece.count) {
                    float out[GROUP_ELEMENTS];
                    forward_group(gate[i], up[i], out);
                    unit[first + i] = group_of(out);
                    unit_put(a + piece.first + (first + i) * CAST_SPAN, unit[first + i]);
                    peak = peak.joined(P::of(unit[first + i]));
                }
        }
        const QuantStatistics statistics = team_peak<P, true>(peak).statistics();
        const QuantBlock block = row_block<Kind>(work, context, row, statistics);
        piece_codes<Kind>(work, a, context, block, statistics.amax, piece, unit);
    }
}

// Warp: one row after the other; dgu may be gu, a_weighted da.
template <typename Kind>
__global__ void __launch_bounds__(CAST_THREADS, 2)
    cast_swiglu_backward_kernel(const __grid_constant__ SwigluBackward args,
                                const __grid_constant__ CastWork work)
{
    typedef Peak<false, DTYPE_BF16> P;
    const int64_t rows = *args.rows_total, inner = args.inner;
    const QuantContext context = cast_context<Kind>(work, 0);
    Bf16 *dgu = (Bf16 *)args.dgu;
    for (int64_t row = warp_index(); row < rows; row += warp_count()) {
        if (swiglu_is_padding(args.row_map, row))
            continue;
        const CastPiece of_g = lane_piece(row * 2 * inner, (int)inner);
        const CastPiece of_u = lane_piece(row * 2 * inner + inner, (int)inner);
        const int64_t of_a = of_g.first - row * inner;
        const float w = args.weight ? args.weight[row] : 1.0f;
        Group<Bf16> dg[SWIGLU_CAST_UNITS], du[SWIGLU_CAST_UNITS];
        P peak = P::none();
        float dweight = 0.0f;
#pragma unroll
        for (int i = 0; i < SWIGLU_CAST_UNITS; i++) {
            if (i >= of_g.count)
                break;
            const int64_t at = i * CAST_SPAN;
            const Group<Bf16> gate =
                group_load<true>((const Bf16 *)args.gu + of_g.first + at, GROUP_ELEMENTS);
            const Group<Bf16> up =
                group_load<true>((const Bf16 *)args.gu + of_u.first + at, GROUP_ELEMENTS);
            const Group<Bf16> grad =
                group_load<true>((const Bf16 *)args.da + of_a + at, GROUP_ELEMENTS);
            BackwardGroup out;
            dweight = backward_group<Bf16>(gate, up, grad, GROUP_ELEMENTS, w, &out, dweight);
            dg[i] = group_of(out.dg);
            du[i] = group_of(out.du);
            unit_put(dgu + of_g.first + at, dg[i]);
            unit_put(dgu + of_u.first + at, du[i]);
            unit_put((Bf16 *)args.a_weighted + of_a + at, group_of(out.a_weighted));
            peak = peak.joined(P::of(dg[i])).joined(P::of(du[i]));
        }
        __syncwarp();
        if (args.dweight) {
            dweight = warp_sum(dweight);
            if (lane_index() == 0)
                args.dweight[row] = dweight;
        }
        const QuantStatistics statistics = team_peak<P, true>(peak).statistics();
        const QuantBlock block = row_block<Kind>(work, context, row, statistics);
        piece_codes<Kind>(work, dgu, context, block, statistics.amax, of_g, dg);
        piece_codes<Kind>(work, dgu, context, block, statistics.amax, of_u, du);
    }
}
