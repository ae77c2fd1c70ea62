// qtensor.c -- shapes, sizes and places of a quantised tensor.
//
// All index arithmetic is in int64: qtensor_plan admits only shapes whose bits fit, padding
// included.
#include "quant/qtensor.h"

#include "quant/place.h"
#include "quant/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DATA_ALIGN = 256 };
static const int64_t elements_max = INT64_MAX / 64; // padding grows a shape by far less than 64

static int64_t divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

// ---- plan ----

static bool whole_tensor(const QuantRule *rule)
{
    return rule->block_rows == 0;
}

static bool check_extent(const QTensor *q, int dim, int multiple, const char *why, Error *error)
{
    static const char *const axis_names[QTENSOR_RANK_MAX] = {"matrices", "rows", "columns"};
    const char *axis = axis_names[QTENSOR_RANK_MAX - q->rank + dim];
    if (multiple <= 1 || q->shape[dim] % multiple == 0)
        return true;
    char blocks[64];
    quant_rule_blocks(&q->rule, blocks, sizeof(blocks));
    return error_set(error, EXIT_CODE_DATA, "pad the tensor, or take a recipe that has tails",
                     "dimension %d (%s) is %lld, which %d does not divide: %s (blocks are %s)", dim,
                     axis, (long long)q->shape[dim], multiple, why, blocks);
}

static bool check_shape(const QTensor *q, Error *error)
{
    const QuantRule *rule = &q->rule;
    const char *demand = "the recipe's kernels need multiples of it";
    const char *cut = "a block would be cut";
    int last = q->rank - 1;
    int block_rows = rule->blocks_exact ? rule->block_rows : 1;
    int block_columns = rule->blocks_exact ? rule->block_columns : 1;
    int pair = rule->code_layout == CODES_PAIRS ? 2 : 1;
    return check_extent(q, last, rule->columns_multiple, demand, error) &&
           check_extent(q, last, block_columns, cut, error) &&
           check_extent(q, last, pair, "two codes share a byte", error) &&
           (q->rank < 2 || (check_extent(q, last - 1, rule->rows_multiple, demand, error) &&
                            check_extent(q, last - 1, block_rows, cut, error)));
}

bool qtensor_plan(const QuantRule *rule, DType input, int rank, const int64_t *shape, QTensor *q,
                  Error *error)
{
    CHECK_RULE(rule->method != QUANT_NONE);
    *q = (QTensor){.rule = *rule, .input = input, .rank = rank};
    q->code_layout = rule->code_layout;
    q->scale_layout = rule->scale_layout;
    if (input != DTYPE_BF16 && input != DTYPE_F32)
        return error_set(error, EXIT_CODE_DATA, "convert it to bf16 or f32 first",
                         "values of type %s cannot be quantised", dtype_row(input)->name);
    if (rank < 1 || rank > QTENSOR_RANK_MAX)
        return error_set(error, EXIT_CODE_DATA, "quantise matrices, or stacks of them",
                         "a tensor of rank %d cannot be quantised: 1 to 3 can", rank);
    int64_t elements = 1;
    for (int dim = 0; dim < rank; dim++) {
        int64_t extent = shape[dim];
        // Padding included, and as if no extent were 0, so that any part of the product fits.
        int64_t padded =
            extent < elements_max ? quant_round_up(extent < 1 ? 1 : extent, 1024) : extent;
        if (extent < 0 || padded > elements_max / elements)
            return error_set(error, EXIT_CODE_DATA, "sizes are counts of elements",
                             "dimension %d is %lld: more than 2^57 elements in all", dim,
                             (long long)extent);
        elements *= padded;
        q->shape[dim] = extent;
    }
    q->columns = shape[rank - 1];
    q->rows = rank > 1 ? shape[rank - 2] : 1;
    q->matrices = rank > 2 ? shape[0] : 1;
    if (!check_shape(q, error))
        return false;
    if (whole_tensor(rule)) {
        q->rows *= q->matrices;
        q->matrices = 1;
    }
    return true;
}

// ---- extents ----

int64_t qtensor_padded_rows(const QTensor *q)
{
    return quant_round_up(q->rows, q->rule.pad_rows);
}

int64_t qtensor_padded_columns(const QTensor *q)
{
    return quant_round_up(q->columns, q->rule.pad_columns);
}

int64_t qtensor_block_rows(const QTensor *q)
{
    int64_t rows = qtensor_padded_rows(q);
    return q->rule.block_rows ? q->rule.block_rows : rows > 0 ? rows : 1;
}

int64_t qtensor_block_columns(const QTensor *q)
{
    int64_t columns = qtensor_padded_columns(q);
    return q->rule.block_columns ? q->rule.block_columns : columns > 0 ? columns : 1;
}

int64_t qtensor_grid_rows(const QTensor *q)
{
    return q->rule.block_rows ? divide_up(qtensor_padded_rows(q), q->rule.block_rows) : 1;
}

int64_t qtensor_grid_columns(const QTensor *q)
{
    return q->rule.block_columns ? divide_up(qtensor_padded_columns(q), q->rule.block_columns) : 1;
}

int64_t qtensor_tensor_scales(const QTensor *q)
{
    return q->rule.two_level ? q->matrices : 0;
}

// ---- places ----

static QuantGrid grid_of(const QTensor *q)
{
    return (QuantGrid){q->scale_layout, qtensor_grid_rows(q), qtensor_grid_columns(q)};
}

int64_t qtensor_scale_elements(const QTensor *q)
{
    return q->matrices * quant_scale_stride(grid_of(q));
}

int64_t qtensor_scale_index(const QTensor *q, int64_t matrix, int64_t block_row,
                            int64_t block_column)
{
    QuantGrid grid = grid_of(q);
    return matrix * quant_scale_stride(grid) + quant_scale_place(grid, block_row, block_column);
}

int64_t qtensor_code_bit(const QTensor *q, int64_t matrix, int64_t row, int64_t column)
{
    int64_t columns = qtensor_padded_columns(q), first = matrix * qtensor_padded_rows(q) * columns;
    if (q->code_layout == CODES_TILED)
        return first * 4 + quant_tiled_bit(columns, row, column);
    int64_t element = first + row * columns + column;
    return element * (q->code_layout == CODES_PAIRS ? 4 : 8);
}

// ---- memory ----

QTensorBytes qtensor_bytes(const QTensor *q)
{
    uint64_t elements =
        (uint64_t)(q->matrices * qtensor_padded_rows(q) * qtensor_padded_columns(q));
    uint64_t scales = (uint64_t)qtensor_scale_elements(q);
    QTensorBytes bytes = {
        .codes = q->code_layout == CODES_BYTES ? elements : elements / 2,
        .scales = dtype_bytes(q->rule.scale_dtype, scales),
        .tensor_scales = (uint64_t)qtensor_tensor_scales(q) * sizeof(float),
    };
    if (q->rule.has_zeros && q->scale_layout != SCALES_PAIRED)
        bytes.zeros = dtype_bytes(q->rule.zero_dtype, scales);
    bytes.total = bytes.codes + bytes.scales + bytes.zeros + bytes.tensor_scales;
    return bytes;
}

static uint64_t padded(uint64_t bytes)
{
    return (bytes + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
}

// One piece of memory for all parts, each aligned.
static void place(QTensor *q, char *memory)
{
    QTensorBytes bytes = qtensor_bytes(q);
    q->codes = memory;
    q->scales = memory + padded(bytes.codes);
    char *zeros = (char *)q->scales + padded(bytes.scales);
    q->zeros =
        bytes.zeros || (q->rule.has_zeros && q->scale_layout != SCALES_PAIRED) ? zeros : NULL;
    q->tensor_scales = q->rule.two_level ? (float *)(void *)(zeros + padded(bytes.zeros)) : NULL;
}

static uint64_t placed_bytes(const QTensor *q)
{
    QTensorBytes bytes = qtensor_bytes(q);
    return padded(bytes.codes) + padded(bytes.scales) + padded(bytes.zeros) +
           padded(bytes.tensor_scales);
}

void qtensor_push(QTensor *q, Arena *arena, MemoryCategory category)
{
    place(q, arena_push(arena, placed_bytes(q), category));
}

void qtensor_allocate(QTensor *q)
{
    place(q, device_allocate(DEVICE_CPU, placed_bytes(q)));
}

void qtensor_free(QTensor *q)
{
    device_free(DEVICE_CPU, q->codes);
    q->codes = q->scales = q->zeros = NULL;
    q->tensor_scales = NULL;
}

QTensor qtensor_on_host(const QTensor *q, Stream stream)
{
    QTensor host = *q;
    if (stream.device == DEVICE_CPU)
        return host;
    QTensorBytes bytes = qtensor_bytes(q);
    qtensor_allocate(&host);
    device_copy(host.codes, q->codes, bytes.codes, stream);
    device_copy(host.scales, q->scales, bytes.scales, stream);
    if (q->zeros)
        device_copy(host.zeros, q->zeros, bytes.zeros, stream);
    if (q->tensor_scales)
        device_copy(host.tensor_scales, q->tensor_scales, bytes.tensor_scales, stream);
    stream_wait(stream);
    return host;
}

void qtensor_host_free(const QTensor *q, QTensor *host)
{
    if (host->codes != q->codes)
        qtensor_free(host);
}

// ---- single values ----

uint32_t qtensor_load_code(const QTensor *q, int64_t matrix, int64_t row, int64_t column)
{
    int64_t bit = qtensor_code_bit(q, matrix, row, column);
    uint32_t byte = ((const uint8_t *)q->codes)[bit / 8];
    if (q->code_layout != CODES_BYTES)
        return byte >> bit % 8 & 15u;
    return q->rule.code == CODE_INT4 ? byte & 15u : byte;
}

void qtensor_store_code(QTensor *q, int64_t matrix, int64_t row, int64_t column, uint32_t code)
{
    int64_t bit = qtensor_code_bit(q, matrix, row, column);
    uint8_t *byte = (uint8_t *)q->codes + bit / 8;
    if (q->code_layout != CODES_BYTES)
        *byte = (uint8_t)((*byte & ~(15u << bit % 8)) | code << bit % 8);
    else // int4 in a byte keeps its sign
        *byte = (uint8_t)(q->rule.code == CODE_INT4 ? (code ^ 8u) - 8u : code);
}

QuantBlock qtensor_load_block(const QTensor *q, int64_t matrix, int64_t block_row,
                              int64_t block_column)
{
    return qtensor_load_block_at(q, qtensor_scale_index(q, matrix, block_row, block_column));
}

QuantBlock qtensor_load_block_at(const QTensor *q, int64_t index)
{
    QuantBlock block = {.scale_bits = quant_load_bits(q->scales, q->rule.scale_dtype, index)};
    if (q->rule.has_zeros) {
        block.zero_bits = q->zeros ? quant_load_bits(q->zeros, q->rule.zero_dtype, index)
                                   : quant_load_bits(q->scales, q->rule.zero_dtype, index + 1);
        block.zero = quant_value_of_bits(q->rule.zero_dtype, block.zero_bits);
    }
    block.scale = quant_value_of_bits(q->rule.scale_dtype, block.scale_bits);
    return block;
}

void qtensor_store_block(QTensor *q, int64_t matrix, int64_t block_row, int64_t block_column,
                         const QuantBlock *block)
{
    int64_t index = qtensor_scale_index(q, matrix, block_row, block_column);
    quant_store_bits(q->scales, q->rule.scale_dtype, index, block->scale_bits);
    if (q->rule.has_zeros && q->zeros)
        quant_store_bits(q->zeros, q->rule.zero_dtype, index, block->zero_bits);
    else if (q->rule.has_zeros)
        quant_store_bits(q->scales, q->rule.zero_dtype, index + 1, block->zero_bits);
}

void qtensor_clear_padding(QTensor *q)
{
    if (q->scale_layout != SCALES_SWIZZLED)
        return;
    int64_t rows = qtensor_grid_rows(q), columns = qtensor_grid_columns(q);
    bool full = rows % SWIZZLE_ROWS == 0 && columns % SWIZZLE_COLUMNS == 0;
    if (!full)
        memset(q->scales, 0, qtensor_bytes(q).scales);
}

// ---- parts ----

static int64_t common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b;
    while (y) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

int64_t qtensor_cut_step(const QTensor *q, int axis)
{
    const QuantRule *rule = &q->rule;
    CHECK_RULE(axis >= 0 && axis < q->rank);
    int64_t step = 1;
    if (axis == q->rank - 1) {
        step = common_multiple(rule->columns_multiple, rule->pad_columns);
        step = common_multiple(step, rule->block_columns ? rule->block_columns : 1);
        step = common_multiple(step, rule->code_layout == CODES_PAIRS ? 2 : 1);
    } else if (axis == q->rank - 2) {
        step = common_multiple(rule->rows_multiple, rule->pad_rows);
        step = common_multiple(step, rule->block_rows ? rule->block_rows : 1);
    }
    return step;
}

// Where a cut begins: matrix, row and column of the whole, in the terms of its shape.
typedef struct Corner {
    int64_t matrix, row, column;
} Corner;

// Row `row` of matrix `matrix` of the shape, as the tensor counts them.
static void locate(const QTensor *q, int64_t *matrix, int64_t *row)
{
    bool merged = q->rank == 3 && whole_tensor(&q->rule);
    if (merged)
        *row += *matrix * q->shape[1];
    if (merged)
        *matrix = 0;
}

static void copy_codes(const QTensor *q, const Corner *from, QTensor *part, int64_t matrix)
{
    int64_t rows = part->rank > 1 ? part->shape[part->rank - 2] : 1;
    int64_t padded_rows = quant_round_up(rows, part->rule.pad_rows);
    for (int64_t row = 0; row < padded_rows; row++)
        for (int64_t column = 0; column < qtensor_padded_columns(part); column++) {
            int64_t m = from->matrix + matrix, r = from->row + row, to_m = matrix, to_r = row;
            locate(q, &m, &r);
            locate(part, &to_m, &to_r);
            qtensor_store_code(part, to_m, to_r, column,
                               qtensor_load_code(q, m, r, from->column + column));
        }
}

static void copy_blocks(const QTensor *q, const Corner *from, QTensor *part)
{
    int64_t rows = qtensor_block_rows(part), columns = qtensor_block_columns(part);
    for (int64_t matrix = 0; matrix < part->matrices; matrix++)
        for (int64_t br = 0; br < qtensor_grid_rows(part); br++)
            for (int64_t bc = 0; bc < qtensor_grid_columns(part); bc++) {
                int64_t m = from->matrix + matrix, r = from->row + br * rows;
                locate(q, &m, &r);
                QuantBlock block =
                    qtensor_load_block(q, m, r / qtensor_block_rows(q),
                                       (from->column + bc * columns) / qtensor_block_columns(q));
                qtensor_store_block(part, matrix, br, bc, &block);
            }
}

void qtensor_copy_part(const QTensor *q, int axis, int64_t first, QTensor *part)
{
    int64_t step = qtensor_cut_step(q, axis), end = first + part->shape[axis];
    CHECK_RULE(first % step == 0 && (end % step == 0 || end == q->shape[axis]));
    CHECK_RULE(end <= q->shape[axis] && part->rank == q->rank);
    Corner from = {.matrix = q->rank == 3 && axis == 0 ? first : 0,
                   .row = q->rank > 1 && axis == q->rank - 2 ? first : 0,
                   .column = axis == q->rank - 1 ? first : 0};
    qtensor_clear_padding(part);
    copy_blocks(q, &from, part);
    for (int64_t matrix = 0; matrix < (part->rank == 3 ? part->shape[0] : 1); matrix++)
        copy_codes(q, &from, part, matrix);
    for (int64_t i = 0; i < qtensor_tensor_scales(part); i++)
        part->tensor_scales[i] = q->tensor_scales[from.matrix + i];
}
