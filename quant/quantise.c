// quantise.c -- the table of methods, and the walk over blocks: statistics, choice, codes.
#include "quant/quantise.h"

#include "quant/method_affine.h"
#include "quant/method_mx.h"
#include "quant/method_nvfp4.h"
#include "quant/method_symmetric.h"

#include <math.h>
#include <stdlib.h>

// ---- methods ----

#define METHOD_CHOOSE(name)                                                                        \
    static QuantBlock name##_choose(const QuantContext *context, QuantStatistics statistics)       \
    {                                                                                              \
        return quant_##name##_choose(context, statistics);                                         \
    }
#define METHOD_ENCODE(name)                                                                        \
    static uint32_t name##_encode(const QuantContext *context, const QuantBlock *block, float x)   \
    {                                                                                              \
        return quant_##name##_encode(context, block, x);                                           \
    }
#define METHOD_ENCODE_BLOCK(name)                                                                  \
    static uint32_t name##_encode(const QuantContext *context, const QuantBlock *block, float x)   \
    {                                                                                              \
        (void)context;                                                                             \
        return quant_##name##_encode(block, x);                                                    \
    }
#define METHOD_DECODE(name)                                                                        \
    static float name##_decode(const QuantContext *context, const QuantBlock *block,               \
                               uint32_t code)                                                      \
    {                                                                                              \
        return quant_##name##_decode(context, block, code);                                        \
    }
#define METHOD_DECODE_BLOCK(name)                                                                  \
    static float name##_decode(const QuantContext *context, const QuantBlock *block,               \
                               uint32_t code)                                                      \
    {                                                                                              \
        (void)context;                                                                             \
        return quant_##name##_decode(block, code);                                                 \
    }

METHOD_CHOOSE(symmetric)
METHOD_ENCODE(symmetric)
METHOD_DECODE(symmetric)
METHOD_CHOOSE(range)
METHOD_ENCODE_BLOCK(range)
METHOD_DECODE_BLOCK(range)
METHOD_CHOOSE(tile)
METHOD_ENCODE(tile)
METHOD_DECODE_BLOCK(tile)
METHOD_CHOOSE(zero_point)
METHOD_ENCODE(zero_point)
METHOD_DECODE(zero_point)
METHOD_CHOOSE(zero_point_ct)
METHOD_ENCODE(zero_point_ct)
METHOD_CHOOSE(mx)
METHOD_ENCODE(mx)
METHOD_DECODE(mx)
METHOD_CHOOSE(nvfp4)
METHOD_ENCODE_BLOCK(nvfp4)
METHOD_DECODE(nvfp4)
METHOD_CHOOSE(nvfp4_ct)
METHOD_ENCODE_BLOCK(nvfp4_ct)
METHOD_DECODE(nvfp4_ct)

static float nvfp4_tensor_scale(const QuantContext *context, float amax)
{
    (void)context;
    return quant_nvfp4_tensor_scale(amax);
}

static float nvfp4_ct_tensor_scale(const QuantContext *context, float amax)
{
    return quant_nvfp4_ct_tensor_scale(context->input, amax);
}

static const QuantMethodRow methods[QUANT_METHODS] = {
    [QUANT_SYMMETRIC] = {"symmetric", NULL, symmetric_choose, symmetric_encode, symmetric_decode},
    [QUANT_RANGE] = {"range", NULL, range_choose, range_encode, range_decode},
    [QUANT_TILE] = {"tile", NULL, tile_choose, tile_encode, tile_decode},
    [QUANT_ZERO_POINT] = {"zero_point", NULL, zero_point_choose, zero_point_encode,
                          zero_point_decode},
    [QUANT_ZERO_POINT_CT] = {"zero_point_ct", NULL, zero_point_ct_choose, zero_point_ct_encode,
                             zero_point_decode},
    [QUANT_MX] = {"mx", NULL, mx_choose, mx_encode, mx_decode},
    [QUANT_NVFP4] = {"nvfp4", nvfp4_tensor_scale, nvfp4_choose, nvfp4_encode, nvfp4_decode},
    [QUANT_NVFP4_CT] = {"nvfp4_ct", nvfp4_ct_tensor_scale, nvfp4_ct_choose, nvfp4_ct_encode,
                        nvfp4_ct_decode},
};

const QuantMethodRow *quant_method(QuantMethod method)
{
    CHECK_RULE(method > QUANT_NONE && method < QUANT_METHODS);
    return &methods[method];
}

// ---- values ----

typedef struct Values {
    const void *data;
    bool transposed; // [matrices, columns, rows]
} Values;

static float load_value(const QTensor *q, Values values, int64_t matrix, int64_t row,
                        int64_t column)
{
    if (row >= q->rows || column >= q->columns) // padding
        return 0;
    int64_t index = (matrix * q->rows + row) * q->columns + column;
    if (values.transposed) { // several matrices may lie under one block
        int64_t rows = q->rank > 1 ? q->shape[q->rank - 2] : 1;
        index =
            ((matrix * (q->rows / rows) + row / rows) * q->columns + column) * rows + row % rows;
    }
    return q->input == DTYPE_F32 ? ((const float *)values.data)[index]
                                 : f32_from_bf16_bits(((const uint16_t *)values.data)[index]);
}

static void statistics_add(QuantStatistics *s, float value, bool first)
{
    if (isnan(value) || isnan(s->amax)) {
        s->amax = s->minimum = s->maximum = NAN;
        return;
    }
    s->amax = first || fabsf(value) > s->amax ? fabsf(value) : s->amax;
    s->minimum = first || value < s->minimum ? value : s->minimum;
    s->maximum = first || value > s->maximum ? value : s->maximum;
}

// A block, cut off where the tensor ends.
typedef struct Extent {
    int64_t matrix, row, rows, column, columns;
} Extent;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static Extent extent_of(const QTensor *q, int64_t matrix, int64_t block_row, int64_t block_column)
{
    int64_t rows = qtensor_block_rows(q), columns = qtensor_block_columns(q);
    Extent e = {.matrix = matrix, .row = block_row * rows, .column = block_column * columns};
    e.rows = smaller(rows, qtensor_padded_rows(q) - e.row);
    e.columns = smaller(columns, qtensor_padded_columns(q) - e.column);
    return e;
}

static QuantStatistics statistics_of(const QTensor *q, Values values, const Extent *e)
{
    QuantStatistics s = {0};
    for (int64_t row = e->row; row < e->row + e->rows; row++)
        for (int64_t column = e->column; column < e->column + e->columns; column++)
            statistics_add(&s, load_value(q, values, e->matrix, row, column),
                           row == e->row && column == e->column);
    return s;
}

// ---- amaxes of the whole ----

static bool one_block(const QTensor *q)
{
    return q->rule.block_rows == 0 && q->rule.block_columns == 0;
}

int64_t quantise_amaxes(const QTensor *q)
{
    return one_block(q) ? 1 : qtensor_tensor_scales(q);
}

static void measure(const QTensor *q, Values values, float *amax)
{
    for (int64_t i = 0; i < quantise_amaxes(q); i++) {
        Extent all = {.matrix = i, .rows = q->rows, .columns = q->columns};
        amax[i] = statistics_of(q, values, &all).amax;
    }
}

void quantise_measure(const QTensor *q, const void *values, float *amax)
{
    measure(q, (Values){.data = values}, amax);
}

static QuantContext context_of(const QTensor *q, int64_t matrix)
{
    return (QuantContext){.rule = q->rule,
                          .input = q->input,
                          .tensor_scale = q->rule.two_level ? q->tensor_scales[matrix] : 1.0f};
}

void quantise_tensor_scales(const float *amax, QTensor *q)
{
    const QuantMethodRow *method = quant_method(q->rule.method);
    QuantContext context = {.rule = q->rule, .input = q->input};
    for (int64_t i = 0; i < qtensor_tensor_scales(q); i++)
        q->tensor_scales[i] = method->tensor_scale(&context, amax[i]);
}

// ---- walk ----

static void quantise_block(Values values, const float *amax, QTensor *q,
                           const QuantContext *context, const Extent *e)
{
    const QuantMethodRow *method = quant_method(q->rule.method);
    QuantStatistics s = amax && one_block(q) ? (QuantStatistics){amax[0], -amax[0], amax[0]}
                                             : statistics_of(q, values, e);
    QuantBlock block = method->choose(context, s);
    qtensor_store_block(q, e->matrix, e->row / qtensor_block_rows(q),
                        e->column / qtensor_block_columns(q), &block);
    for (int64_t row = e->row; row < e->row + e->rows; row++)
        for (int64_t column = e->column; column < e->column + e->columns; column++) {
            float value = load_value(q, values, e->matrix, row, column);
            qtensor_store_code(q, e->matrix, row, column, method->encode(context, &block, value));
        }
}

static void quantise_rows(Values values, const float *amax, QTensor *q, int64_t matrix,
                          int64_t first, int64_t count)
{
    QuantContext context = context_of(q, matrix);
    int64_t columns = qtensor_grid_columns(q);
    for (int64_t row = first; row < first + count; row++)
        for (int64_t column = 0; column < columns; column++) {
            Extent e = extent_of(q, matrix, row, column);
            quantise_block(values, amax, q, &context, &e);
        }
}

void quantise_block_rows(const void *values, const float *amax, QTensor *q, int64_t matrix,
                         int64_t first, int64_t count)
{
    quantise_rows((Values){.data = values}, amax, q, matrix, first, count);
}

static void quantise_values(Values values, const float *amax, QTensor *q)
{
    float *measured = NULL;
    int64_t amaxes = quantise_amaxes(q);
    if (!amax && amaxes > 0) {
        measured = malloc((size_t)amaxes * sizeof(*measured));
        CHECK_RULE(measured != NULL);
        measure(q, values, measured);
        amax = measured;
    }
    quantise_tensor_scales(amax, q);
    qtensor_clear_padding(q);
    int64_t rows = qtensor_grid_rows(q), all = q->matrices * rows;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < all; i++)
        quantise_rows(values, amax, q, i / rows, i % rows, 1);
    free(measured);
}

void quantise(const void *values, const float *amax, QTensor *q)
{
    quantise_values((Values){.data = values}, amax, q);
}

void quantise_transposed(const void *values, const float *amax, QTensor *q)
{
    quantise_values((Values){.data = values, .transposed = true}, amax, q);
}

float dequantise_element(const QTensor *q, int64_t matrix, int64_t row, int64_t column)
{
    QuantContext context = context_of(q, matrix);
    QuantBlock block = qtensor_load_block(q, matrix, row / qtensor_block_rows(q),
                                          column / qtensor_block_columns(q));
    return quant_method(q->rule.method)
        ->decode(&context, &block, qtensor_load_code(q, matrix, row, column));
}
