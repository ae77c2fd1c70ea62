// expert_operand.c -- the CPU rows: plain loops.
#include "kernels/expert_operand.h"

#include "kernels/cpu_math.h"
#include "quant/place.h"
#include "quant/quantise.h"

#include <math.h>

KERNEL_DEFINE(rows_transpose, RowsTranspose)
KERNEL_DEFINE(rows_amax, RowsAmax)
KERNEL_DEFINE(rows_cast, RowsCast)
KERNEL_DEFINE(group_cast, GroupCast)

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t aligned(int64_t columns)
{
    return (columns + EXPERT_TERMS_ALIGN - 1) / EXPERT_TERMS_ALIGN * EXPERT_TERMS_ALIGN;
}

// ---- transpose ----

// The row of `from` that becomes column r; -1: zeros.
static int64_t source_row(const RowsTranspose *args, int64_t row)
{
    if (!args->row_map)
        return row;
    bool real = row < *args->rows_total && args->row_map[row] >= 0;
    return !real ? -1 : args->mapped ? args->row_map[row] : row;
}

enum { TILE_COLUMNS = 32 }; // read together, so that lines of the cache are used whole

static void transpose_tile(const RowsTranspose *args, int64_t matrix, int64_t first, int64_t end)
{
    uint64_t bytes = dtype_bytes(args->dtype, 1);
    const char *from =
        (const char *)args->from + (uint64_t)(matrix * args->rows * args->columns) * bytes;
    char *to = (char *)args->to + (uint64_t)(matrix * args->columns * args->to_columns) * bytes;
    int64_t last = smaller(first + TILE_COLUMNS, args->columns);
    for (int64_t row = 0; row < end; row++) {
        int64_t source = source_row(args, row);
        for (int64_t column = first; column < last; column++) {
            char *at = to + (uint64_t)(column * args->to_columns + row) * bytes;
            if (source < 0)
                memset(at, 0, bytes);
            else
                memcpy(at, from + (uint64_t)(source * args->columns + column) * bytes, bytes);
        }
    }
}

void rows_transpose_cpu(const RowsTranspose *args, Stream stream)
{
    (void)stream;
    int64_t end = args->rows;
    if (args->row_map)
        end = smaller(aligned(*args->rows_total), args->to_columns);
    int64_t tiles = (args->columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < args->matrices * tiles; i++)
        transpose_tile(args, i / tiles, i % tiles * TILE_COLUMNS, end);
}

KernelCost rows_transpose_cost(const RowsTranspose *args)
{
    double elements = (double)args->matrices * (double)args->rows * (double)args->columns;
    return (KernelCost){.bytes = 2 * elements * (double)dtype_bytes(args->dtype, 1)};
}

// ---- amax ----

void rows_amax_cpu(const RowsAmax *args, Stream stream)
{
    (void)stream;
    uint32_t most = format_f32_magnitude(*args->amax);
    int64_t rows = *args->rows_total;
#pragma omp parallel for schedule(static) reduction(max : most)
    for (int64_t row = 0; row < rows; row++) {
        if (args->row_map[row] < 0)
            continue;
        for (int64_t column = 0; column < args->columns; column++) {
            float value = cpu_load(args->values, args->dtype, row * args->columns + column);
            uint32_t bits = format_f32_magnitude(value);
            most = bits > most ? bits : most;
        }
    }
    *args->amax = format_f32_value(most);
}

KernelCost rows_amax_cost(const RowsAmax *args)
{
    uint64_t elements = (uint64_t)(args->rows * args->columns);
    return (KernelCost){.bytes = (double)dtype_bytes(args->dtype, elements)};
}

// ---- cast ----

bool rows_cast_suits(const RowsCast *args, DeviceKind device)
{
    if (device != DEVICE_CPU)
        return rows_cast_suits_cuda && rows_cast_suits_cuda(args);
    return args->to.matrices == 1 && args->to.rule.block_rows == 1 &&
           args->to.scale_layout == SCALES_PLAIN;
}

void rows_cast_cpu(const RowsCast *args, Stream stream)
{
    (void)stream;
    CHECK_RULE(rows_cast_suits(args, DEVICE_CPU));
    const QTensor *q = &args->to;
    uint64_t bytes = dtype_bytes(q->input, (uint64_t)q->columns);
    for (int64_t row = 0; row < q->rows && row < *args->rows_total; row++) {
        QTensor one;
        Error error = {0};
        if (args->row_map[row] < 0)
            continue;
        CHECK_RULE(qtensor_plan(&q->rule, q->input, 2, (int64_t[]){1, q->columns}, &one, &error));
        int64_t source = args->mapped ? args->row_map[row] : row;
        one.scale_layout = SCALES_PLAIN;
        one.codes = (char *)q->codes + qtensor_code_bit(q, 0, row, 0) / 8;
        int64_t scale = qtensor_scale_index(q, 0, row, 0);
        one.scales = (char *)q->scales + dtype_bytes(q->rule.scale_dtype, (uint64_t)scale);
        one.zeros =
            q->zeros ? (char *)q->zeros + dtype_bytes(q->rule.zero_dtype, (uint64_t)scale) : NULL;
        quantise((const char *)args->values + (uint64_t)source * bytes, NULL, &one);
    }
}

KernelCost rows_cast_cost(const RowsCast *args)
{
    uint64_t elements = (uint64_t)(args->to.rows * args->to.columns);
    return (KernelCost){.bytes = (double)dtype_bytes(args->to.input, elements) +
                                 (double)qtensor_bytes(&args->to).total};
}

// The columns of `to` under one scale of each row: a group's, or a block's.
typedef struct Span {
    int64_t first, end;
} Span;

static int64_t spans_of(const GroupCast *args)
{
    int block = args->to.rule.block_columns;
    return block ? smaller(aligned(*args->rows_total), args->to.columns) / block : args->groups;
}

static Span span_at(const GroupCast *args, int64_t index)
{
    int block = args->to.rule.block_columns;
    if (block)
        return (Span){index * block, (index + 1) * block};
    int64_t first = args->group_first[index];
    return (Span){first, smaller(first + aligned(args->group_rows[index]), args->to.columns)};
}

// The row of the values that becomes a column of the codes; -1: padding.
static int64_t cast_source(const GroupCast *args, int64_t column)
{
    if (column >= *args->rows_total || args->row_map[column] < 0)
        return -1;
    return args->mapped ? args->row_map[column] : column;
}

static float cast_value(const GroupCast *args, int64_t source, int64_t row)
{
    return cpu_load(args->values, args->to.input, source * args->to.rows + row);
}

static void cast_span(const GroupCast *args, int64_t index, int64_t row)
{
    const QTensor *q = &args->to;
    const QuantMethodRow *method = quant_method(q->rule.method);
    QuantContext context = {.rule = q->rule, .input = q->input, .tensor_scale = 1.0f};
    Span span = span_at(args, index);
    uint32_t most = 0;
    for (int64_t column = span.first; column < span.end; column++) {
        int64_t source = cast_source(args, column);
        uint32_t bits = source < 0 ? 0 : format_f32_magnitude(cast_value(args, source, row));
        most = bits > most ? bits : most;
    }
    float amax = most > FORMAT_F32_INFINITY ? NAN : format_f32_value(most);
    QuantBlock block = method->choose(&context, (QuantStatistics){amax, -amax, amax});
    int64_t scale =
        q->rule.block_columns ? qtensor_scale_index(q, 0, row, index) : index * q->rows + row;
    quant_store_bits(q->scales, q->rule.scale_dtype, scale, block.scale_bits);
    uint8_t *codes = (uint8_t *)q->codes + row * q->columns;
    for (int64_t column = span.first; column < span.end; column++) {
        int64_t source = cast_source(args, column);
        codes[column] =
            source < 0 ? 0
                       : (uint8_t)method->encode(&context, &block, cast_value(args, source, row));
    }
}

void group_cast_cpu(const GroupCast *args, Stream stream)
{
    (void)stream;
    const QTensor *q = &args->to;
    CHECK_RULE(q->rule.block_rows == 1 && q->code_layout == CODES_BYTES && !q->rule.has_zeros &&
               q->scale_layout == SCALES_PLAIN && q->columns % EXPERT_TERMS_ALIGN == 0);
    int64_t spans = spans_of(args);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < spans * q->rows; i++)
        cast_span(args, i / q->rows, i % q->rows);
}

KernelCost group_cast_cost(const GroupCast *args)
{
    uint64_t elements = (uint64_t)(args->to.rows * args->to.columns);
    return (KernelCost){.bytes = (double)dtype_bytes(args->to.input, elements) + (double)elements};
}
