// stored_read.c -- slices of rows out of stored parts, and from one layout into another.
//
// Parts of files may lie at any address, so numbers are copied out byte by byte before they are
// used. Reading always gives plain scales and row-major codes; from there every layout is reached.
#include "quant/place.h"
#include "quant/stored.h"

#include <string.h>

enum { WORD_BITS = 32, VALUE_ROWS = 64 };

static bool whole_tensor(const QTensor *q)
{
    return q->rule.block_rows == 0;
}

static uint32_t load_bits(const void *data, DType dtype, int64_t index)
{
    int bytes = dtype_row(dtype)->bits / 8;
    uint32_t bits = 0; // the machine is little-endian
    memcpy(&bits, (const char *)data + index * bytes, (size_t)bytes);
    return bits;
}

static void store_bits(void *data, DType dtype, int64_t index, uint32_t bits)
{
    int bytes = dtype_row(dtype)->bits / 8;
    memcpy((char *)data + index * bytes, &bits, (size_t)bytes);
}

// ---- codes ----

static int64_t code_row_bytes(const QTensor *q)
{
    return q->code_layout == CODES_PAIRS ? q->columns / 2 : q->columns;
}

static void read_codes(const Stored *stored, int64_t matrix, int64_t first, QTensor *rows)
{
    const QTensor *q = &stored->q;
    const uint8_t *data = stored->part[STORED_CODES].tensor.data;
    uint8_t *out = rows->codes;
    if (q->code_layout == CODES_TILED) {
        QTensor view = *q;
        view.codes = (void *)(uintptr_t)data;
        for (int64_t row = 0; row < rows->rows; row++)
            for (int64_t column = 0; column < q->columns; column++) // kept as it is: 0 .. 15
                out[row * q->columns + column] =
                    (uint8_t)qtensor_load_code(&view, matrix, first + row, column);
        return;
    }
    bool pairs = q->code_layout == CODES_PAIRS;
    uint8_t turn = !stored->words ? 0 : pairs ? 0x88 : 0x80;
    int64_t bytes = code_row_bytes(q), stride = bytes;
    if (stored->words)
        stride = (bytes + 3) / 4 * 4;
    data += (matrix * q->rows + first) * stride;
    if (turn == 0) {
        memcpy(out, data, (size_t)(rows->rows * bytes));
        return;
    }
    for (int64_t row = 0; row < rows->rows; row++)
        for (int64_t i = 0; i < bytes; i++)
            out[row * bytes + i] = data[row * stride + i] ^ turn;
}

// ---- scales ----

static uint32_t read_zero(const Stored *stored, int64_t index, int64_t block_row, int64_t column)
{
    const QTensor *q = &stored->q;
    const void *zeros = stored->part[STORED_ZEROS].tensor.data;
    if (q->scale_layout == SCALES_PAIRED)
        return load_bits(stored->part[STORED_SCALES].tensor.data, q->rule.zero_dtype, index + 1);
    if (!stored->words)
        return load_bits(zeros, q->rule.zero_dtype, index);
    int bits = q->rule.code == CODE_INT4 ? 4 : 8, per_word = WORD_BITS / bits;
    uint32_t word =
        load_bits(zeros, DTYPE_I32, block_row / per_word * qtensor_grid_columns(q) + column);
    uint32_t code = word >> (block_row % per_word * bits) & (bits == 4 ? 0xFu : 0xFFu);
    return (code - (1u << (bits - 1))) & 0xFFu;
}

// Where the scales of a row of blocks lie: runs of them side by side, the runs equally far apart.
typedef struct ScaleRow {
    int64_t first, run, step; // elements
} ScaleRow;

static ScaleRow scale_row(const QTensor *q, int64_t matrix, int64_t block_row)
{
    int64_t columns = qtensor_grid_columns(q);
    ScaleRow row = {.first = qtensor_scale_index(q, matrix, block_row, 0), .run = 1};
    if (q->scale_layout == SCALES_PLAIN)
        row.run = columns;
    else if (q->scale_layout == SCALES_SWIZZLED)
        row.run = SWIZZLE_COLUMNS;
    if (row.run < columns)
        row.step = qtensor_scale_index(q, matrix, block_row, row.run) - row.first;
    return row;
}

// Runs are of few bytes or of a whole row.
static void copy_run(void *to, const void *from, uint64_t bytes)
{
    if (bytes == SWIZZLE_COLUMNS)
        memcpy(to, from, SWIZZLE_COLUMNS);
    else
        memcpy(to, from, bytes);
}

// Every column gets the scale and zero point of its group.
static void spread_scales(const Stored *stored, int64_t matrix, int64_t first, QTensor *rows)
{
    const QTensor *q = &stored->q;
    const void *scales = stored->part[STORED_SCALES].tensor.data;
    for (int64_t row = 0; row < rows->rows; row++) {
        ScaleRow from = scale_row(q, matrix, first + row);
        for (int64_t column = 0; column < q->columns; column++) {
            int64_t group = load_bits(stored->group_of_column, DTYPE_I32, column);
            int64_t at = from.first + group / from.run * from.step + group % from.run;
            int64_t to = row * q->columns + column;
            store_bits(rows->scales, q->rule.scale_dtype, to,
                       load_bits(scales, q->rule.scale_dtype, at));
            if (rows->zeros)
                store_bits(rows->zeros, q->rule.zero_dtype, to,
                           read_zero(stored, at, first + row, group));
        }
    }
}

static void read_scales(const Stored *stored, int64_t matrix, int64_t first, QTensor *rows)
{
    const QTensor *q = &stored->q;
    const char *scales = stored->part[STORED_SCALES].tensor.data;
    const DType dtype = q->rule.scale_dtype;
    int64_t first_block = whole_tensor(q) ? 0 : first / q->rule.block_rows;
    int64_t grid_rows = qtensor_grid_rows(rows), columns = qtensor_grid_columns(rows);
    const int64_t bytes = (int64_t)dtype_bytes(dtype, 1);
    for (int64_t row = 0; row < grid_rows; row++) {
        ScaleRow from = scale_row(q, matrix, first_block + row);
        int64_t at = from.first, to = row * columns;
        for (int64_t column = 0; column < columns; column += from.run, at += from.step) {
            int64_t left = columns - column, run = left < from.run ? left : from.run;
            copy_run((char *)rows->scales + (to + column) * bytes, scales + at * bytes,
                     (uint64_t)(run * bytes));
            for (int64_t i = 0; rows->zeros && i < run; i++)
                store_bits(rows->zeros, q->rule.zero_dtype, to + column + i,
                           read_zero(stored, at + i, first_block + row, column + i));
        }
    }
    if (!rows->tensor_scales)
        return;
    uint32_t bits = load_bits(stored->part[STORED_TENSOR_SCALE].tensor.data, DTYPE_F32, matrix);
    memcpy(rows->tensor_scales, &bits, sizeof(bits));
    if (stored->inverse)
        rows->tensor_scales[0] = 1.0f / rows->tensor_scales[0];
}

void stored_read_rows(const Stored *stored, int64_t matrix, int64_t first, int64_t count,
                      Arena *arena, QTensor *rows)
{
    stored_pick_rows(stored, STORED_ALL, matrix, first, count, arena, rows);
}

void stored_pick_rows(const Stored *stored, StoredPick pick, int64_t matrix, int64_t first,
                      int64_t count, Arena *arena, QTensor *rows)
{
    *rows = stored->q;
    rows->rank = 2;
    rows->matrices = 1;
    rows->rows = rows->shape[0] = count;
    rows->shape[1] = rows->columns;
    rows->rule.pad_rows = rows->rule.pad_columns = 1;
    rows->scale_layout = SCALES_PLAIN;
    if (rows->code_layout == CODES_TILED)
        rows->code_layout = CODES_BYTES;
    if (stored->group_of_column)
        rows->rule.block_columns = 1;
    qtensor_push(rows, arena, MEMORY_SCRATCH);
    if (pick == STORED_ALL_BUT_CODES)
        rows->codes = NULL;
    else
        read_codes(stored, matrix, first, rows);
    if (pick == STORED_ONLY_CODES)
        rows->scales = rows->zeros = rows->tensor_scales = NULL;
    else if (stored->group_of_column)
        spread_scales(stored, matrix, first, rows);
    else
        read_scales(stored, matrix, first, rows);
}

// ---- values ----

// Rows of blocks are read whole, whatever rows are wanted of them.
void stored_read_values(const Stored *stored, int64_t matrix, int64_t first, int64_t count,
                        Arena *arena, uint16_t *values)
{
    const QTensor *q = &stored->q;
    int64_t block = q->rule.block_rows > 1 ? q->rule.block_rows : 1;
    int64_t step = block > VALUE_ROWS ? block : VALUE_ROWS / block * block;
    int64_t end = first + count;
    for (int64_t row = first / block * block; row < end; row += step) {
        int64_t last = row + step < q->rows ? row + step : q->rows;
        int64_t from = row > first ? row : first, to = last < end ? last : end;
        ArenaMark mark = arena_mark(arena);
        uint16_t *out = values + (from - first) * q->columns, *piece = out;
        QTensor rows;
        stored_read_rows(stored, matrix, row, last - row, arena, &rows);
        if (from != row || to != last)
            piece = ARENA_PUSH(arena, uint16_t, (last - row) * q->columns, MEMORY_SCRATCH);
        dequantise(&rows, DTYPE_BF16, piece);
        if (piece != out)
            memcpy(out, piece + (from - row) * q->columns,
                   (size_t)((to - from) * q->columns) * sizeof(*out));
        arena_release(arena, mark);
    }
}

// ---- from one layout into another ----

// Bits of a scale in another type of the same value; e8m0 and plain bytes are the same.
static uint32_t change_dtype(uint32_t bits, DType from, DType to)
{
    if (from == DTYPE_F16 && to != DTYPE_F16) {
        float value = f32_from_f16((uint16_t)bits);
        memcpy(&bits, &value, sizeof(bits));
        from = DTYPE_F32;
    }
    if (from == DTYPE_F32 && to == DTYPE_BF16)
        return bits >> 16;
    return from == DTYPE_BF16 && to == DTYPE_F32 ? bits << 16 : bits;
}

static void copy_codes(const QTensor *from, QTensor *to, int64_t row)
{
    CHECK_RULE(to->code_layout != CODES_TILED && from->columns == to->columns);
    const uint8_t *in = from->codes;
    uint8_t *out = (uint8_t *)to->codes + row * code_row_bytes(to);
    if (from->code_layout == to->code_layout) {
        memcpy(out, in, (size_t)(from->rows * code_row_bytes(from)));
        return;
    }
    int64_t pairs = from->rows * from->columns / 2;
    if (to->code_layout == CODES_PAIRS)
        for (int64_t i = 0; i < pairs; i++)
            out[i] = (uint8_t)((in[2 * i] & 15u) | in[2 * i + 1] << 4);
    else
        for (int64_t i = 0; i < 2 * pairs; i++) { // int4 in a byte keeps its sign
            uint32_t code = in[i / 2] >> (i % 2 * 4) & 15u;
            out[i] = (uint8_t)(to->rule.code == CODE_INT4 ? (code ^ 8u) - 8u : code);
        }
}

void qtensor_copy_rows(const QTensor *from, QTensor *to, int64_t row)
{
    if (from->codes)
        copy_codes(from, to, row);
    if (!from->scales)
        return;
    int64_t first = whole_tensor(to) ? 0 : row / to->rule.block_rows;
    int64_t blocks = whole_tensor(to) ? 1 : qtensor_grid_rows(from);
    bool replicated = whole_tensor(from) && !whole_tensor(to);
    if (replicated)
        blocks = from->rows / to->rule.block_rows;
    int64_t columns = qtensor_grid_columns(to);
    const DType dtype = to->rule.scale_dtype;
    bool same = from->rule.scale_dtype == dtype && !replicated;
    const int64_t bytes = (int64_t)dtype_bytes(dtype, 1), each = replicated ? 0 : 1;
    for (int64_t block_row = 0; block_row < blocks; block_row++) {
        ScaleRow there = scale_row(to, 0, first + block_row);
        int64_t out = there.first, in = block_row * columns * each;
        for (int64_t column = 0; column < columns; column += there.run, out += there.step) {
            int64_t left = columns - column, run = left < there.run ? left : there.run;
            for (int64_t i = 0; !same && i < run; i++)
                store_bits(
                    to->scales, dtype, out + i,
                    change_dtype(load_bits(from->scales, from->rule.scale_dtype, in + i * each),
                                 from->rule.scale_dtype, dtype));
            if (same)
                copy_run((char *)to->scales + out * bytes, (const char *)from->scales + in * bytes,
                         (uint64_t)(run * bytes));
            for (int64_t i = 0; to->zeros && i < run; i++)
                store_bits(
                    to->zeros, to->rule.zero_dtype, out + i,
                    from->zeros ? load_bits(from->zeros, from->rule.zero_dtype, in + i * each) : 0);
            in += run * each;
        }
    }
    if (to->tensor_scales)
        to->tensor_scales[0] = from->tensor_scales ? from->tensor_scales[0] : 1.0f;
}
