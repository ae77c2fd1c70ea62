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

// Cuts the values in what thread blocks have: squares of so many tiles a side.
static void count_tiles(CastTiles *tiles, int side)
{
    const int values = side * CAST_TILE_SIDE;
    tiles->down = (tiles->rows + values - 1) / values;
    tiles->across = (tiles->columns + values - 1) / values;
    tiles->by_matrix = cast_divisor((int64_t)tiles->down * tiles->across);
    tiles->by_across = cast_divisor(tiles->across);
}

CastTiles cast_tiles_of(const void *values, const QTensor *q, int64_t matrices, int64_t rows,
                        int64_t columns)
{
    const CastKernels *kernels = cast_kernels_for(q);
    CastTiles tiles = {};
    tiles.values = values;
    tiles.transposed = cast_work_of(values, q);
    const bool fits = kernels && kernels->tiles[TILES_ALONE] && matrices * rows * columns > 0 &&
                      max(rows, columns) <= INT32_MAX - TILE_MEASURE * CAST_TILE_SIDE &&
                      columns % GROUP_ELEMENTS == 0 && cuda_aligned(values) &&
                      cuda_aligned(q->codes);
    if (!fits)
        return tiles;
    tiles.transposed_span = cast_span_of(q);
    tiles.group_bits = cast_divisor(CAST_TILE_SIDE).bits - 31;
    if (tiles.transposed_span == SPAN_GROUP)
        tiles.group_bits = tiles.transposed.group_bits;
    tiles.matrices = matrices;
    tiles.rows = (int)rows;
    tiles.columns = (int)columns;
    tiles.ahead = (uint32_t)cuda_processors() * TILE_BLOCKS_AT_ONCE;
    count_tiles(&tiles, 1);
    return tiles;
}

// Rows' amaxes, then their scales.
static void measure_rows(const CastTiles *tiles, DType input, Stream stream)
{
    CastTiles measured = *tiles;
    count_tiles(&measured, TILE_MEASURE);
    const CastTilesKernel kernel = input == DTYPE_BF16 ? cast_tiles_measure_kernel<Bf16, false>
                                                       : cast_tiles_measure_kernel<float, false>;
    const CastWork *works[] = {tiles->to_span == SPAN_ROW ? &tiles->to : NULL,
                               tiles->transposed_span == SPAN_ROW ? &tiles->transposed : NULL};
    for (const CastWork *work : works)
        if (work)
            device_fill(work->scales, 0, (uint64_t)work->all_rows * sizeof(float), stream);
    kernel<<<cast_grid(measured.matrices * measured.down * measured.across), CAST_THREADS, 0,
             cuda_stream(stream)>>>(measured);
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

bool cast_transposed(const Cast *args, Stream stream)
{
    const QTensor *q = &args->transposed, *to = &args->to;
    const CastKernels *kernels = cast_kernels_for(q);
    const int64_t columns = q->rank > 1 ? q->shape[q->rank - 2] : 1;
    CastTiles tiles =
        cast_tiles_of(args->values, q, q->rank > 2 ? q->shape[0] : 1, q->columns, columns);
    const bool fits = tiles.transposed_span != SPAN_NONE;
    const bool both = fits && to->rule.method != QUANT_NONE && kernels == cast_kernels_for(to) &&
                      cast_span_of(to) != SPAN_NONE && cuda_aligned(to->codes);
    const bool strips =
        fits && !both && args->marks && kernels->strips && tiles.transposed_span == SPAN_ROW;
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
    if (both) {
        tiles.to = cast_work_of(args->values, to);
        tiles.to.rows = tiles.rows; // of one matrix, also where one block covers all
        tiles.to_span = cast_span_of(to);
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
