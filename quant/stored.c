// stored.c -- parts of quantised tensors: names, shapes, slices.
//
// Sources: torchao, prototype/safetensors; compressed-tensors, compressors/ (pack_to_int32: element
// i of a row at bits [i * bits, (i + 1) * bits) of its int32 words, stored as code + 2^(bits - 1);
// zero points the same down the rows).
#include "quant/stored.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SWIZZLE_ROWS = 128, SWIZZLE_COLUMNS = 4, WORD_BITS = 32 };

static int64_t divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

static int code_bits(const QTensor *q)
{
    return q->rule.code == CODE_INT4 || q->rule.code == CODE_E2M1 ? 4 : 8;
}

static int64_t word_columns(const QTensor *q)
{
    return divide_up(q->columns * code_bits(q), WORD_BITS);
}

// ---- plan ----

static void set_part(Stored *stored, StoredRole role, const char *suffix, DType dtype, int rank,
                     const int64_t *shape)
{
    StoredPart *part = &stored->part[role];
    part->present = true;
    part->suffix = suffix;
    part->tensor = (Tensor){.dtype = dtype, .rank = rank};
    memcpy(part->tensor.shape, shape, (size_t)rank * sizeof(*shape));
}

// The extents of matrices (rank 3) and then those given.
static int with_matrices(const Stored *stored, const int64_t *tail, int count, int64_t *shape)
{
    int rank = 0;
    if (stored->q.rank == 3)
        shape[rank++] = stored->q.shape[0];
    for (int i = 0; i < count; i++)
        shape[rank++] = tail[i];
    return rank;
}

static void set_matrix_part(Stored *stored, StoredRole role, const char *suffix, DType dtype,
                            int64_t rows, int64_t columns)
{
    int64_t shape[TENSOR_RANK_MAX], tail[2] = {rows, columns};
    int rank = with_matrices(stored, tail, 2, shape);
    set_part(stored, role, suffix, dtype, rank, shape);
}

static bool whole_tensor(const QTensor *q)
{
    return q->rule.block_rows == 0;
}

static void plan_torchao_scales(Stored *stored)
{
    const QTensor *q = &stored->q;
    int64_t rows = qtensor_grid_rows(q), columns = qtensor_grid_columns(q), ones[3] = {1, 1, 1};
    DType dtype = q->rule.scale_dtype;
    if (whole_tensor(q))
        set_part(stored, STORED_SCALES, "_scale", dtype, q->rank, ones);
    else if (q->scale_layout == SCALES_SWIZZLED)
        set_matrix_part(stored, STORED_SCALES, "_scale", dtype, 32 * divide_up(rows, SWIZZLE_ROWS),
                        16 * divide_up(columns, SWIZZLE_COLUMNS));
    else if (q->scale_layout == SCALES_TRANSPOSED)
        set_matrix_part(stored, STORED_SCALES, "_scale", dtype, columns, rows);
    else
        set_matrix_part(stored, STORED_SCALES, "_scale", dtype, rows, columns);
    if (q->rule.has_zeros) {
        stored->part[STORED_ZEROS] = stored->part[STORED_SCALES];
        stored->part[STORED_ZEROS].suffix = "_zero_point";
        stored->part[STORED_ZEROS].tensor.dtype = q->rule.zero_dtype;
    }
}

static void plan_tile(Stored *stored)
{
    const QTensor *q = &stored->q;
    int64_t rows = qtensor_padded_rows(q), columns = qtensor_padded_columns(q);
    int64_t codes[4] = {rows / 8, columns / 128, 32, 4}, shape[TENSOR_RANK_MAX];
    int64_t scales[3] = {qtensor_grid_columns(q), rows, 2};
    int rank = with_matrices(stored, codes, 4, shape);
    set_part(stored, STORED_CODES, "_qdata", DTYPE_I32, rank, shape);
    rank = with_matrices(stored, scales, 3, shape);
    set_part(stored, STORED_SCALES, "_scale_and_zero", DTYPE_BF16, rank, shape);
}

static void plan_torchao(Stored *stored)
{
    const QTensor *q = &stored->q;
    if (q->code_layout == CODES_TILED) {
        plan_tile(stored);
        return;
    }
    DType dtype = q->rule.code == CODE_E4M3   ? DTYPE_F8_E4M3
                  : q->rule.code == CODE_E2M1 ? DTYPE_U8
                                              : DTYPE_I8;
    int64_t columns = q->code_layout == CODES_PAIRS ? q->columns / 2 : q->columns;
    int64_t rows = q->rank > 1 ? q->shape[q->rank - 2] : 1;
    set_matrix_part(stored, STORED_CODES, "_qdata", dtype, rows, columns);
    plan_torchao_scales(stored);
    if (q->rule.two_level) {
        int64_t shape[3] = {q->matrices, 1, 1};
        set_part(stored, STORED_TENSOR_SCALE, "_per_tensor_scale", DTYPE_F32, q->rank == 3 ? 3 : 0,
                 shape);
    }
}

static void plan_compressed_scales(Stored *stored)
{
    const QTensor *q = &stored->q;
    int64_t one = 1, rows = qtensor_grid_rows(q), columns = qtensor_grid_columns(q);
    DType dtype = q->rule.scale_dtype;
    if (whole_tensor(q))
        set_part(stored, STORED_SCALES, "weight_scale", dtype, 1, &one);
    else
        set_matrix_part(stored, STORED_SCALES, "weight_scale", dtype, rows, columns);
    if (q->rule.has_zeros)
        set_matrix_part(
            stored, STORED_ZEROS, "weight_zero_point", stored->words ? DTYPE_I32 : DTYPE_I8,
            stored->words ? divide_up(q->rows * code_bits(q), WORD_BITS) : rows, columns);
}

static void plan_compressed(Stored *stored, PackFormat format)
{
    const QTensor *q = &stored->q;
    int64_t one = 1, two = 2, columns = q->code_layout == CODES_PAIRS ? q->columns / 2 : q->columns;
    if (stored->words) {
        set_matrix_part(stored, STORED_CODES, "weight_packed", DTYPE_I32, q->rows, word_columns(q));
        set_part(stored, STORED_SHAPE, "weight_shape", DTYPE_I64, 1, &two);
    } else if (format == PACK_NVFP4 || format == PACK_MXFP4) {
        set_matrix_part(stored, STORED_CODES, "weight_packed", DTYPE_U8, q->rows, columns);
    } else {
        set_matrix_part(stored, STORED_CODES, "weight",
                        format == PACK_INT ? DTYPE_I8 : DTYPE_F8_E4M3, q->rows, columns);
    }
    plan_compressed_scales(stored);
    if (format != PACK_NVFP4)
        return;
    set_part(stored, STORED_TENSOR_SCALE, "weight_global_scale", DTYPE_F32, 1, &one);
    stored->input_scale = 1.0f;
    if (stored->recipe.activations.method != QUANT_NONE)
        set_part(stored, STORED_INPUT_SCALE, "input_global_scale", DTYPE_F32, 1, &one);
}

// compressed-tensors keeps every scale in rows and columns; symmetric zero points are dropped.
static void adapt_compressed(PackFormat format, Stored *stored)
{
    QuantRule *rule = &stored->q.rule;
    stored->words = format == PACK_WORDS;
    stored->inverse = rule->method == QUANT_NVFP4;
    stored->q.scale_layout = SCALES_PLAIN;
    bool pairs = format == PACK_WORDS && code_bits(&stored->q) == 4;
    if (format == PACK_NVFP4 || format == PACK_MXFP4)
        pairs = true;
    stored->q.code_layout = pairs ? CODES_PAIRS : CODES_BYTES;
    rule->has_zeros = rule->has_zeros && rule->method == QUANT_ZERO_POINT_CT;
    if (rule->scale_dtype == DTYPE_F32)
        rule->scale_dtype = DTYPE_BF16;
    if (rule->scale_dtype == DTYPE_F8_E8M0)
        rule->scale_dtype = DTYPE_U8;
}

static bool no_place(const StoredPlan *plan, Error *error)
{
    return error_set(error, EXIT_CODE_USAGE,
                     "choose another --layout or --recipe (`meshwork recipes` lists them)",
                     "layout %s has no place for recipe %s", layout_name(plan->layout),
                     plan->recipe->name);
}

bool stored_plan(const StoredPlan *plan, Stored *stored, Error *error)
{
    const Scheme *row = scheme_find(plan->recipe->name);
    *stored = (Stored){.recipe = *plan->recipe, .layout = plan->layout};
    bool deepseek = strcmp(plan->recipe->name, "deepseek_block") == 0;
    if (plan->layout == LAYOUT_DEEPSEEK ? !deepseek : !scheme_has(row, plan->layout))
        return no_place(plan, error);
    if (!qtensor_plan(&plan->recipe->weights, DTYPE_BF16, plan->rank, plan->shape, &stored->q,
                      error))
        return false;
    if (plan->layout == LAYOUT_COMPRESSED)
        adapt_compressed(scheme_format(plan->recipe), stored);
    if (plan->scale_dtype != DTYPES)
        stored->q.rule.scale_dtype = plan->scale_dtype;
    if (plan->layout != LAYOUT_TORCHAO && plan->layout != LAYOUT_TORCHAO_BIN && plan->rank != 2)
        return error_set(error, EXIT_CODE_USAGE, "write experts one by one: --experts separate",
                         "layout %s has no place for a quantised tensor of rank %d",
                         layout_name(plan->layout), plan->rank);
    if (plan->layout == LAYOUT_COMPRESSED) {
        plan_compressed(stored, scheme_format(plan->recipe));
    } else if (plan->layout == LAYOUT_DEEPSEEK) {
        set_matrix_part(stored, STORED_CODES, "weight", DTYPE_F8_E4M3, stored->q.rows,
                        stored->q.columns);
        set_matrix_part(stored, STORED_SCALES, "weight_scale_inv", DTYPE_F32,
                        qtensor_grid_rows(&stored->q), qtensor_grid_columns(&stored->q));
    } else {
        plan_torchao(stored);
    }
    return true;
}

void stored_part_name(const Stored *stored, StoredRole role, const char *parameter, char *text,
                      size_t bytes)
{
    const char *dot = strrchr(parameter, '.');
    int module = dot ? (int)(dot - parameter) + 1 : 0;
    const char *suffix = stored->part[role].suffix;
    if (stored->layout == LAYOUT_TORCHAO || stored->layout == LAYOUT_TORCHAO_BIN)
        snprintf(text, bytes, "%.*s_%s%s", module, parameter, parameter + module, suffix);
    else
        snprintf(text, bytes, "%.*s%s", module, parameter, suffix);
}

// ---- slices on their way out ----

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

int64_t stored_row_step(const Stored *stored)
{
    const QTensor *q = &stored->q;
    if (q->scale_layout == SCALES_TRANSPOSED || q->scale_layout == SCALES_PAIRED)
        return 0;
    int64_t step = common_multiple(q->rule.rows_multiple, q->rule.pad_rows);
    step = common_multiple(step, q->rule.block_rows ? q->rule.block_rows : 1);
    if (q->scale_layout == SCALES_SWIZZLED)
        step = common_multiple(step, SWIZZLE_ROWS);
    if (stored->words && q->rule.has_zeros)
        step = common_multiple(step, WORD_BITS);
    return step;
}

static void plan_rows(const Stored *stored, int64_t rows, QTensor *q)
{
    *q = stored->q;
    q->rank = 2;
    q->matrices = 1;
    q->rows = q->shape[0] = rows;
    q->shape[1] = q->columns;
}

void stored_slice_push(const Stored *stored, int64_t rows, Arena *arena, StoredSlice *slice)
{
    *slice = (StoredSlice){.shape = {stored->q.rows, stored->q.columns}};
    plan_rows(stored, rows, &slice->q);
    qtensor_push(&slice->q, arena, MEMORY_SCRATCH);
    const QTensor *q = &slice->q;
    if (!stored->words)
        return;
    slice->packed = arena_push(arena, (uint64_t)(rows * word_columns(q)) * 4, MEMORY_SCRATCH);
    if (q->rule.has_zeros)
        slice->packed_zeros = arena_push(
            arena,
            (uint64_t)(divide_up(rows * code_bits(q), WORD_BITS) * qtensor_grid_columns(q)) * 4,
            MEMORY_SCRATCH);
}

// Little-endian words: the bytes are the codes two to a byte or one to a byte, sign bit turned.
static void pack_codes(const StoredSlice *slice)
{
    const QTensor *q = &slice->q;
    bool pairs = q->code_layout == CODES_PAIRS;
    uint8_t turn = pairs ? 0x88 : 0x80, *out = slice->packed;
    int64_t row_bytes = pairs ? q->columns / 2 : q->columns, word_bytes = word_columns(q) * 4;
    for (int64_t row = 0; row < q->rows; row++) {
        const uint8_t *in = (const uint8_t *)q->codes + row * row_bytes;
        for (int64_t i = 0; i < row_bytes; i++)
            out[row * word_bytes + i] = in[i] ^ turn;
        memset(out + row * word_bytes + row_bytes, 0, (size_t)(word_bytes - row_bytes));
    }
}

static void pack_zeros(const StoredSlice *slice)
{
    const QTensor *q = &slice->q;
    int bits = code_bits(q), per_word = WORD_BITS / bits;
    uint32_t *out = slice->packed_zeros, mask = bits == 4 ? 0xFu : 0xFFu;
    int64_t columns = qtensor_grid_columns(q), words = divide_up(q->rows, per_word);
    memset(out, 0, (size_t)(words * columns) * sizeof(*out));
    for (int64_t row = 0; row < q->rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            uint32_t zero = ((const uint8_t *)q->zeros)[row * columns + column];
            zero = (zero + (1u << (bits - 1))) & mask;
            out[row / per_word * columns + column] |= zero << (row % per_word * bits);
        }
}

typedef struct Ranges {
    StoredRange *range;
    int count;
} Ranges;

static void add_range(Ranges *ranges, StoredRole role, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    ranges->range[ranges->count++] =
        (StoredRange){.role = role, .offset = offset, .bytes = bytes, .data = data};
}

// A slice of rows takes its share of every matrix's bytes.
static void add_share(const Stored *stored, Ranges *ranges, StoredRole role, int64_t matrix,
                      int64_t first, uint64_t bytes, const void *data)
{
    const QTensor *q = &stored->q;
    uint64_t matrix_bytes = tensor_bytes(&stored->part[role].tensor) / (uint64_t)q->matrices;
    uint64_t offset = 0;
    if (first > 0 && role == STORED_CODES)
        offset = matrix_bytes / (uint64_t)q->rows * (uint64_t)first;
    else if (first > 0 && q->scale_layout == SCALES_SWIZZLED)
        offset = (uint64_t)(first / SWIZZLE_ROWS) *
                 (matrix_bytes / (uint64_t)divide_up(q->rows, SWIZZLE_ROWS));
    else if (first > 0 && role == STORED_ZEROS && stored->words)
        offset = (uint64_t)(first * code_bits(q) / WORD_BITS * qtensor_grid_columns(q)) * 4;
    else if (first > 0)
        offset =
            matrix_bytes / (uint64_t)qtensor_grid_rows(q) * (uint64_t)(first / q->rule.block_rows);
    add_range(ranges, role, (uint64_t)matrix * matrix_bytes + offset, bytes, data);
}

int stored_slice_ranges(const Stored *stored, int64_t matrix, int64_t first, StoredSlice *slice,
                        StoredRange range[STORED_ROLES])
{
    Ranges ranges = {.range = range};
    QTensor *q = &slice->q;
    QTensorBytes bytes = qtensor_bytes(q);
    bool codes = slice->pick != STORED_ALL_BUT_CODES;
    if (codes && stored->words) {
        pack_codes(slice);
        add_share(stored, &ranges, STORED_CODES, matrix, first,
                  (uint64_t)(q->rows * word_columns(q)) * 4, slice->packed);
    } else if (codes) {
        add_share(stored, &ranges, STORED_CODES, matrix, first, bytes.codes, q->codes);
    }
    if (slice->pick == STORED_ONLY_CODES)
        return ranges.count;
    if (first == 0 || !whole_tensor(q))
        add_share(stored, &ranges, STORED_SCALES, matrix, first, bytes.scales, q->scales);
    if (stored->part[STORED_ZEROS].present && stored->words) {
        pack_zeros(slice);
        add_share(
            stored, &ranges, STORED_ZEROS, matrix, first,
            (uint64_t)(divide_up(q->rows * code_bits(q), WORD_BITS) * qtensor_grid_columns(q)) * 4,
            slice->packed_zeros);
    } else if (stored->part[STORED_ZEROS].present) {
        add_share(stored, &ranges, STORED_ZEROS, matrix, first, bytes.zeros, q->zeros);
    }
    if (first > 0)
        return ranges.count;
    if (stored->part[STORED_TENSOR_SCALE].present) {
        slice->tensor_scale = q->tensor_scales ? q->tensor_scales[0] : 1.0f;
        if (stored->inverse)
            slice->tensor_scale = 1.0f / slice->tensor_scale;
        add_range(&ranges, STORED_TENSOR_SCALE, (uint64_t)matrix * sizeof(float), sizeof(float),
                  &slice->tensor_scale);
    }
    if (stored->part[STORED_INPUT_SCALE].present)
        add_range(&ranges, STORED_INPUT_SCALE, 0, sizeof(float), &stored->input_scale);
    if (stored->part[STORED_SHAPE].present)
        add_range(&ranges, STORED_SHAPE, 0, sizeof(slice->shape), slice->shape);
    return ranges.count;
}
