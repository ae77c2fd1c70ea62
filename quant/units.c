// units.c -- rows of operands through tables: 16 values of a block of 4-bit codes, 256 of 8-bit
// ones.
#include "quant/units.h"

#include "quant/quantise.h"

// The matrix and row that the tensor counts.
static UnitRow place(const QTensor *q, UnitRow at)
{
    bool merged = q->rank == 3 && q->rule.block_rows == 0;
    return merged ? (UnitRow){0, at.matrix * q->shape[1] + at.row} : at;
}

static bool four_bits(const QTensor *q)
{
    return q->rule.code == CODE_INT4 || q->rule.code == CODE_E2M1;
}

// Codes [first, first + count) of a row through a table, `stride` floats apart.
typedef struct Lookup {
    const QTensor *q;
    UnitRow at; // as the tensor counts
    int64_t first, count;
    const float *table; // [16] or [256]
    float *out;         // of column `first`
    int64_t stride;
} Lookup;

static void look_up(const Lookup *l)
{
    const QTensor *q = l->q;
    if (q->code_layout == CODES_TILED) {
        for (int64_t i = 0; i < l->count; i++)
            l->out[i * l->stride] =
                l->table[qtensor_load_code(q, l->at.matrix, l->at.row, l->first + i)];
        return;
    }
    int64_t bit = qtensor_code_bit(q, l->at.matrix, l->at.row, l->first);
    const uint8_t *codes = (const uint8_t *)q->codes + bit / 8;
    if (q->code_layout == CODES_PAIRS) { // blocks begin at even columns
        for (int64_t i = 0; i < l->count; i++)
            l->out[i * l->stride] = l->table[codes[i / 2] >> i % 2 * 4 & 15u];
        return;
    }
    uint8_t mask = four_bits(q) ? 15u : 255u;
    for (int64_t i = 0; i < l->count; i++)
        l->out[i * l->stride] = l->table[codes[i] & mask];
}

void units_of_codes(const QTensor *q, UnitRow at, float *out, int64_t stride)
{
    float table[256];
    uint32_t codes = four_bits(q) ? 16 : 256;
    for (uint32_t code = 0; code < codes; code++)
        table[code] = quant_value(q->rule.code, code);
    look_up(&(Lookup){.q = q,
                      .at = place(q, at),
                      .count = q->columns,
                      .table = table,
                      .out = out,
                      .stride = stride});
}

void units_of_values(const QTensor *q, DType dtype, UnitRow at, float *out, int64_t stride)
{
    UnitRow here = place(q, at);
    const QuantMethodRow *method = quant_method(q->rule.method);
    QuantContext context = {
        .rule = q->rule, .input = q->input, .tensor_scale = units_tensor_scale(q, at)};
    int64_t width = qtensor_block_columns(q);
    uint32_t codes = four_bits(q) ? 16 : 256;
    for (int64_t first = 0; first < q->columns; first += width) {
        QuantBlock block =
            qtensor_load_block(q, here.matrix, here.row / qtensor_block_rows(q), first / width);
        float table[256];
        for (uint32_t code = 0; code < codes; code++)
            table[code] = quant_round(dtype, method->decode(&context, &block, code));
        int64_t left = q->columns - first;
        look_up(&(Lookup){.q = q,
                          .at = here,
                          .first = first,
                          .count = left < width ? left : width,
                          .table = table,
                          .out = out + first * stride,
                          .stride = stride});
    }
}

float units_scale(const QTensor *q, UnitRow at, int64_t block_column)
{
    UnitRow here = place(q, at);
    return qtensor_load_block(q, here.matrix, here.row / qtensor_block_rows(q), block_column).scale;
}

float units_tensor_scale(const QTensor *q, UnitRow at)
{
    return q->rule.two_level ? q->tensor_scales[place(q, at).matrix] : 1.0f;
}
