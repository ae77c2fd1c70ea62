// transposed.cu -- which kernels a transposed cast takes, alone or with the cast as the values
// lie.
//
// Scales that span rows of the operand span columns of the values: their amaxes are found on the
// way where the caller has room for marks (tiles.cuh, strips), else read first, by tiles, for both
// operands at once.
#include "kernels/cast/launch.cuh"

CastSpanKind cast_span_of(const QTensor *q)
{
    const QuantRule *rule = &q->rule;
    const bool padded =
        qtensor_padded_rows(q) != q->rows || qtensor_padded_columns(q) != q->columns;
    const bool plain = q->scale_layout == SCALES_PLAIN && rule->scale_dtype == DTYPE_F32;
    const int group = rule->block_columns;
    if (rule->method == QUANT_NONE || q->code_layout != CODES_BYTES || padded)
        return SPAN_NONE;
    if (cast_is_one_block(q))
        return SPAN_WHOLE;
    if (rule->block_rows == 1 && group == 0)
        return plain ? SPAN_ROW : SPAN_NONE;
    if (rule->block_rows == CAST_TILE_SIDE && group == CAST_TILE_SIDE)
        return SPAN_SQUARE;
    const bool sized = group == 32 || (rule->method != QUANT_MX && (group == 64 || group == 128));
    return rule->block_rows == 1 && sized ? SPAN_GROUP : SPAN_NONE;
}

// Rows' amaxes, then their scales.
static void measure_rows(const CastTiles *tiles, DType input, Stream stream)
{
    const int64_t down = (tiles->rows + TILE_MEASURE_ROWS - 1) / TILE_MEASURE_ROWS;
    const CastTilesKernel kernel = input == DTYPE_BF16 ? cast_tiles_measure_kernel<Bf16, false>
                                                       : cast_tiles_measure_kernel<float, false>;
    const CastWork *works[] = {tiles->to_span == SPAN_ROW ? &tiles->to : NULL,
                               tiles->transposed_span == SPAN_ROW ? &tiles->transposed : NULL};
    for (const CastWork *work : works)
        if (work)
            device_fill(work->scales, 0, (uint64_t)work->all_rows * sizeof(float), stream);
    kernel<<<cast_grid(tiles->matrices * down * tiles->across), CAST_THREADS, 0,
             cuda_stream(stream)>>>(*tiles);
    CHECK_CUDA(cudaGetLastError());
    for (const CastWork *work : works)
        if (work)
            cast_settle_rows(work, stream);
}

int64_t cast_marks_cuda(const QTensor *transposed, int64_t owners)
{
    if (cast_span_of(transposed) != SPAN_ROW)
        return 0;
    const int64_t strips = owners * ((transposed->rows + CAST_TILE_SIDE - 1) / CAST_TILE_SIDE);
    return (int64_t)(sizeof(StripMarks) / sizeof(uint32_t)) + strips;
}

void cast_strips(const CastTiles *tiles, CastTilesKernel kernel, uint32_t *marks, int64_t owners,
                 Stream stream)
{
    CastTiles strips = *tiles;
    CastWork *work = &strips.transposed;
    work->all_rows = owners * strips.columns;
    strips.marks = (StripMarks *)marks;
    device_fill(work->scales, 0, (uint64_t)work->all_rows * sizeof(float), stream);
    device_fill(marks, 0, sizeof(StripMarks) + (uint64_t)(owners * strips.across) * sizeof(*marks),
                stream);
    cast_strips_begin_kernel<<<1, CAST_THREADS, 0, cuda_stream(stream)>>>(strips);
    CHECK_CUDA(cudaGetLastError());
    const int64_t band_most = strips.down > STRIP_BAND ? strips.down : (int64_t)STRIP_BAND;
    const int64_t lag_most = band_most + strips.ahead / STRIP_SLACK_PARTS;
    const int64_t tiles_most = strips.matrices * strips.down * strips.across;
    kernel<<<cast_grid(tiles_most + lag_most), CAST_THREADS, 0, cuda_stream(stream)>>>(strips);
    CHECK_CUDA(cudaGetLastError());
    cast_settle_rows(work, stream);
}

static CastTiles tiles_of(const Cast *args, bool both)
{
    const QTensor *q = &args->transposed;
    CastTiles tiles = {};
    tiles.values = args->values;
    tiles.transposed = cast_work_of(args->values, q);
    tiles.transposed_span = cast_span_of(q);
    if (both) {
        tiles.to = cast_work_of(args->values, &args->to);
        tiles.to_span = cast_span_of(&args->to);
    }
    tiles.matrices = q->rank > 2 ? q->shape[0] : 1;
    tiles.rows = q->columns;
    tiles.to.rows = q->columns; // of one matrix, also where one block covers all
    tiles.columns = q->rank > 1 ? q->shape[q->rank - 2] : 1;
    tiles.down = (tiles.rows + CAST_TILE_SIDE - 1) / CAST_TILE_SIDE;
    tiles.across = (tiles.columns + CAST_TILE_SIDE - 1) / CAST_TILE_SIDE;
    tiles.ahead = (uint32_t)cuda_processors() * TILE_BLOCKS_AT_ONCE;
    return tiles;
}

bool cast_transposed(const Cast *args, Stream stream)
{
    const QTensor *q = &args->transposed, *to = &args->to;
    const CastKernels *kernels = cast_kernels_for(q);
    const bool strips = args->marks && kernels && kernels->strips && cast_span_of(q) == SPAN_ROW;
    const bool both = to->rule.method != QUANT_NONE && kernels == cast_kernels_for(to) &&
                      cast_span_of(to) != SPAN_NONE && cuda_aligned(to->codes) && !strips;
    CastTiles tiles = tiles_of(args, both);
    const bool fits =
        kernels && kernels->tiles[TILES_ALONE] && tiles.transposed_span != SPAN_NONE &&
        tiles.matrices * tiles.rows * tiles.columns > 0 && tiles.columns % GROUP_ELEMENTS == 0 &&
        cuda_aligned(args->values) && cuda_aligned(q->codes);
    if (!fits) {
        cast_prepare(&tiles.transposed, args->amax, q, stream);
        tiles.transposed.given = cast_is_one_block(q);
        cast_plain(&tiles.transposed, q, true, stream);
        return false;
    }
    if (strips) {
        cast_strips(&tiles, kernels->strips, args->marks, tiles.matrices, stream);
        return false;
    }
    const float *amax = args->amax;
    if (!amax && tiles.to_span == SPAN_WHOLE)
        amax = cast_measure(args->values, to, stream);
    cast_prepare(&tiles.transposed, amax, q, stream);
    if (both)
        cast_prepare(&tiles.to, amax, to, stream);
    if (tiles.to_span == SPAN_ROW || tiles.transposed_span == SPAN_ROW)
        measure_rows(&tiles, q->input, stream);
    const CastTilesKernel kernel = kernels->tiles[both ? TILES_BOTH : TILES_ALONE];
    kernel<<<cast_grid(tiles.matrices * tiles.down * tiles.across), CAST_THREADS, 0,
             cuda_stream(stream)>>>(tiles);
    CHECK_CUDA(cudaGetLastError());
    return both;
}
