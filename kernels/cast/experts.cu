// experts.cu -- casts of expert rows: as they lie, by the kernels of other rows, and along the rows
// of each group, for weights' gradients.
//
// The latter by the tiles of cast/tiles.cuh, whose 128 rows are part of one group: read once, or
// twice where a scale spans a group and there is no room for marks. What these do not take (columns
// that are no multiple of 8) goes through the plain kernel, whose reads are one element of a row
// each.
#include "kernels/cast/launch.cuh"
#include "kernels/expert_operand.h"

enum { PLAIN_WARPS = 4 };

static __device__ __forceinline__ int64_t terms_aligned(int64_t terms)
{
    return (terms + EXPERT_TERMS_ALIGN - 1) / EXPERT_TERMS_ALIGN * EXPERT_TERMS_ALIGN;
}

// ---- as they lie ----

bool rows_cast_suits_cuda(const RowsCast *args)
{
    const QTensor *q = &args->to;
    const CastKernels *kernels = cast_kernels_for(q);
    const CastSpanKind span = cast_span_of(q);
    return kernels && q->matrices == 1 && q->rule.block_rows == 1 &&
           q->columns % GROUP_ELEMENTS == 0 && cuda_aligned(args->values) &&
           (span == SPAN_ROW ? kernels->warps != NULL : span == SPAN_GROUP && kernels->rows);
}

void rows_cast_cuda(const RowsCast *args, Stream stream)
{
    const QTensor *q = &args->to;
    CHECK_RULE(rows_cast_suits_cuda(args) && cuda_aligned(q->codes));
    CastWork work = cast_work_of(args->values, q);
    if (work.all_rows == 0 || work.columns == 0)
        return;
    work.row_map = args->row_map;
    work.rows_total = args->rows_total;
    work.mapped = args->mapped;
    (cast_span_of(q) == SPAN_ROW ? cast_launch_blocks
                                 : cast_launch_rows)(&work, cast_kernels_for(q), stream);
}

// ---- along the rows of each group ----

// A column of the values at row `row` of the experts; false: padding.
template <typename Element>
__device__ __forceinline__ bool expert_value(const GroupCast &args, int64_t row, int64_t column,
                                             int64_t total, float *value)
{
    const int64_t mapped = row < total ? __ldg(args.row_map + row) : -1;
    if (mapped < 0)
        return false;
    const int64_t source = args.mapped ? mapped : row;
    *value = widen(((const Element *)args.values)[source * args.to.rows + column]);
    return true;
}

// Warp: one block of a column after the other, read twice.
template <typename Element>
__global__ void __launch_bounds__(PLAIN_WARPS *WARP_LANES)
    group_cast_plain_kernel(const __grid_constant__ GroupCast args, CastWork work)
{
    typedef Peak<false, DTYPE_F32> P;
    const int64_t total = __ldg(args.rows_total), columns = args.to.columns, rows = args.to.rows;
    const int block_columns = args.to.rule.block_columns;
    const int64_t spans =
        block_columns ? min(terms_aligned(total), columns) / block_columns : args.groups;
    for (int64_t index = warp_index(); index < spans * rows; index += warp_count()) {
        const int64_t span = index / rows, row = index % rows;
        int64_t first = span * block_columns, end = first + block_columns;
        if (block_columns == 0) {
            first = __ldg(args.group_first + span);
            end = min(first + terms_aligned(__ldg(args.group_rows + span)), columns);
        }
        P peak = P::none();
        float value;
        for (int64_t i = first + lane_index(); i < end; i += WARP_LANES)
            if (expert_value<Element>(args, i, row, total, &value))
                peak = peak.joined({format_f32_magnitude(value)});
        peak = team_peak<P, true>(peak);
        const QuantContext context = work.context;
        const QuantBlock block = cast_choose(&context, peak.statistics());
        const int64_t scale = block_columns ? row * work.grid.columns + span : index;
        if (lane_index() == 0)
            quant_store_bits(work.scales, context.rule.scale_dtype, scale, block.scale_bits);
        for (int64_t i = first + lane_index(); i < end; i += WARP_LANES)
            work.codes[row * columns + i] =
                expert_value<Element>(args, i, row, total, &value)
                    ? (uint8_t)cast_byte(&context.rule, cast_encode(&context, &block, value))
                    : (uint8_t)0;
    }
}

// Scales of groups by their amaxes.
static void measure_groups(const CastTiles *tiles, const GroupCast *args, unsigned grid,
                           Stream stream)
{
    const CastTilesKernel kernel = args->to.input == DTYPE_BF16
                                       ? cast_tiles_measure_kernel<Bf16, true>
                                       : cast_tiles_measure_kernel<float, true>;
    CastWork work = tiles->transposed;
    work.all_rows = args->groups * work.rows;
    device_fill(work.scales, 0, (uint64_t)work.all_rows * sizeof(float), stream);
    kernel<<<grid, CAST_THREADS, 0, cuda_stream(stream)>>>(*tiles);
    CHECK_CUDA(cudaGetLastError());
    cast_settle_rows(&work, stream);
}

void group_cast_cuda(const GroupCast *args, Stream stream)
{
    const QTensor *q = &args->to;
    const CastKernels *kernels = cast_kernels_for(q);
    CHECK_RULE(q->rule.block_rows == 1 && q->code_layout == CODES_BYTES && !q->rule.has_zeros &&
               q->scale_layout == SCALES_PLAIN && q->columns % EXPERT_TERMS_ALIGN == 0);
    if (q->rows == 0 || q->columns == 0)
        return;
    CastTiles tiles = cast_tiles_of(args->values, q, 1, q->columns, q->rows);
    tiles.experts = {args->row_map, args->rows_total, args->group_first, args->groups,
                     args->mapped};
    const CastSpanKind span = tiles.transposed_span;
    const bool fits =
        (span == SPAN_ROW || span == SPAN_GROUP) && kernels->tiles[TILES_EXPERTS] != NULL;
    if (!fits) {
        const unsigned grid = cuda_grid(q->rows * args->groups, 16);
        const CastWork work = tiles.transposed;
        if (q->input == DTYPE_BF16)
            group_cast_plain_kernel<Bf16>
                <<<grid, PLAIN_WARPS * WARP_LANES, 0, cuda_stream(stream)>>>(*args, work);
        else
            group_cast_plain_kernel<float>
                <<<grid, PLAIN_WARPS * WARP_LANES, 0, cuda_stream(stream)>>>(*args, work);
        CHECK_CUDA(cudaGetLastError());
        return;
    }
    if (args->marks && span == SPAN_ROW) {
        cast_strips(&tiles, kernels->expert_strips, args->marks, args->groups, stream);
        return;
    }
    const unsigned grid = cast_grid((int64_t)tiles.down * tiles.across);
    if (span == SPAN_ROW)
        measure_groups(&tiles, args, grid, stream);
    kernels->tiles[TILES_EXPERTS]<<<grid, CAST_THREADS, 0, cuda_stream(stream)>>>(tiles);
    CHECK_CUDA(cudaGetLastError());
}
