// dequantise.c -- what codes stand for, a row at a time: codes to numbers through a table, then
// each block's numbers to values in one loop of one of three forms. Bit for bit what
// dequantise_element gives.
#include "quant/quantise.h"

#include "harness/bf16.h"

#include <string.h>

enum { CHUNK = 512, TABLE = 256, WIDE_BLOCK = 4 * TABLE };

typedef enum Form {
    FORM_SCALED,  // number * scale
    FORM_OFFSET,  // number * scale + zero
    FORM_SHIFTED, // (number - zero) * scale
} Form;

typedef struct Walk {
    const QTensor *q;
    float number[TABLE]; // of each code
    Form form;
    DType dtype;
    void *values;
} Walk;

static Form form_of(QuantMethod method)
{
    if (method == QUANT_RANGE || method == QUANT_TILE)
        return FORM_OFFSET;
    return method == QUANT_ZERO_POINT || method == QUANT_ZERO_POINT_CT ? FORM_SHIFTED : FORM_SCALED;
}

static void fill_numbers(Walk *walk)
{
    const QuantRule *rule = &walk->q->rule;
    bool four_bits = rule->code == CODE_INT4 || rule->code == CODE_E2M1;
    for (uint32_t code = 0; code < TABLE; code++) {
        uint32_t bits = four_bits ? code & 15u : code;
        walk->number[code] =
            rule->method == QUANT_TILE ? (float)bits - 8.0f : quant_value(rule->code, bits);
    }
}

static void look_up(const Walk *walk, int64_t matrix, int64_t row, int64_t first, int64_t count,
                    float *out)
{
    const QTensor *q = walk->q;
    if (q->code_layout == CODES_TILED) {
        for (int64_t i = 0; i < count; i++)
            out[i] = walk->number[qtensor_load_code(q, matrix, row, first + i)];
        return;
    }
    const uint8_t *codes = (const uint8_t *)q->codes + qtensor_code_bit(q, matrix, row, first) / 8;
    if (q->code_layout == CODES_BYTES) {
        for (int64_t i = 0; i < count; i++)
            out[i] = walk->number[codes[i]];
        return;
    }
    if (first % 2) { // the high half of a byte
        *out++ = walk->number[*codes++ >> 4];
        count--;
    }
    for (int64_t i = 0; i + 1 < count; i += 2) {
        out[i] = walk->number[codes[i / 2] & 15u];
        out[i + 1] = walk->number[codes[i / 2] >> 4];
    }
    if (count % 2)
        out[count - 1] = walk->number[codes[count / 2] & 15u];
}

static void apply(Form form, float scale, float zero, int64_t count, float *numbers)
{
    if (form == FORM_SCALED)
        for (int64_t i = 0; i < count; i++)
            numbers[i] *= scale;
    else if (form == FORM_OFFSET)
        for (int64_t i = 0; i < count; i++)
            numbers[i] = numbers[i] * scale + zero;
    else
        for (int64_t i = 0; i < count; i++)
            numbers[i] = (numbers[i] - zero) * scale;
}

// What a block's numbers are multiplied with: with the second level.
static float scale_of(const QTensor *q, int64_t matrix, float scale)
{
    if (!q->rule.two_level)
        return scale;
    return q->rule.method == QUANT_NVFP4_CT ? scale / q->tensor_scales[matrix]
                                            : q->tensor_scales[matrix] * scale;
}

// A block of many columns, to bf16: what each code stands for in it is found once.
static void dequantise_wide(const Walk *walk, const uint8_t *codes, float scale, float zero,
                            int64_t count, uint16_t *out)
{
    float numbers[TABLE];
    uint16_t value[TABLE];
    memcpy(numbers, walk->number, sizeof(numbers));
    apply(walk->form, scale, zero, TABLE, numbers);
    for (int code = 0; code < TABLE; code++)
        value[code] = bf16_bits_from_f32(numbers[code]);
    for (int64_t i = 0; i < count; i++)
        out[i] = value[codes[i]];
}

static void dequantise_row(const Walk *walk, int64_t matrix, int64_t row)
{
    const QTensor *q = walk->q;
    int64_t width = qtensor_block_columns(q), start = (matrix * q->rows + row) * q->columns;
    int64_t block_row = row / qtensor_block_rows(q);
    bool plain = q->scale_layout == SCALES_PLAIN;
    bool wide = width >= WIDE_BLOCK && q->code_layout == CODES_BYTES && walk->dtype == DTYPE_BF16;
    int64_t index = qtensor_scale_index(q, matrix, block_row, 0);
    for (int64_t first = 0; first < q->columns; first += width, index++) {
        QuantBlock block = plain ? qtensor_load_block_at(q, index)
                                 : qtensor_load_block(q, matrix, block_row, first / width);
        float scale = scale_of(q, matrix, block.scale);
        int64_t end = first + width < q->columns ? first + width : q->columns;
        if (wide) {
            const uint8_t *codes =
                (const uint8_t *)q->codes + qtensor_code_bit(q, matrix, row, first) / 8;
            dequantise_wide(walk, codes, scale, block.zero, end - first,
                            (uint16_t *)walk->values + start + first);
            continue;
        }
        for (int64_t at = first; at < end; at += CHUNK) {
            float numbers[CHUNK];
            int64_t count = end - at < CHUNK ? end - at : CHUNK;
            look_up(walk, matrix, row, at, count, numbers);
            apply(walk->form, scale, block.zero, count, numbers);
            if (walk->dtype == DTYPE_F32)
                for (int64_t i = 0; i < count; i++)
                    ((float *)walk->values)[start + at + i] = numbers[i];
            else
                for (int64_t i = 0; i < count; i++)
                    ((uint16_t *)walk->values)[start + at + i] = bf16_bits_from_f32(numbers[i]);
        }
    }
}

void dequantise(const QTensor *q, DType dtype, void *values)
{
    CHECK_RULE(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    Walk walk = {.q = q, .form = form_of(q->rule.method), .dtype = dtype, .values = values};
    fill_numbers(&walk);
    int64_t rows = q->matrices * q->rows;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        dequantise_row(&walk, i / q->rows, i % q->rows);
}
