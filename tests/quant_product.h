// quant_product.h -- one product of quantised operands with everything around it that could go
// wrong, for the tests of quant_gemm: random values, quantised by the reference; groups with
// padding between them; poison in what must be written and in what must not; exact sums in double.
#pragma once

#include "kernels/quant_gemm.h"
#include "quant/quantise.h"
#include "quant/recipe.h"
#include "quant/units.h"
#include "tests/kernels_data.h"

enum { QUANT_GROUPS_MAX = 12 };

typedef struct QuantCase {
    int groups; // 0: dense, rows[0]
    int64_t rows[QUANT_GROUPS_MAX], n, k;
} QuantCase;

typedef struct QuantTypes {
    DType dtype, out_dtype;
    bool accumulate;
} QuantTypes;

// Values of the operand stay behind for the bound. A recipe that refuses the shape: false.
static inline bool quant_operand_make(Data *data, const QuantRule *rule, DType dtype, int rank,
                                      const int64_t *shape, QuantOperand *operand)
{
    Error error = {0};
    int64_t count = 1;
    for (int i = 0; i < rank; i++)
        count *= shape[i];
    *operand = (QuantOperand){0};
    if (rule->method != QUANT_NONE && !qtensor_plan(rule, dtype, rank, shape, &operand->q, &error))
        return false;
    operand->values = data_normals(data, count, dtype, 0.7f);
    if (rule->method == QUANT_NONE)
        return true;
    operand->quantised = true;
    QTensorBytes bytes = qtensor_bytes(&operand->q);
    operand->q.codes = data_poisoned(data, (int64_t)bytes.codes, 1);
    operand->q.scales = data_poisoned(data, (int64_t)bytes.scales, 1);
    if (rule->has_zeros && operand->q.scale_layout != SCALES_PAIRED)
        operand->q.zeros = data_poisoned(data, (int64_t)bytes.zeros, 1);
    if (rule->two_level)
        operand->q.tensor_scales = data_poisoned(data, (int64_t)bytes.tensor_scales, 1);
    quantise(operand->values, NULL, &operand->q);
    return true;
}

// A product on the host without c and workspace; false: the recipe refuses the shape. Groups have
// two rows of padding behind them.
static inline bool quant_product_make(Data *data, const Recipe *recipe, const QuantCase *c,
                                      const QuantTypes *t, QuantGemm *args)
{
    int groups = c->groups ? c->groups : 1;
    int32_t *first = data_poisoned(data, groups, sizeof(int32_t));
    int32_t *rows = data_poisoned(data, groups, sizeof(int32_t));
    int64_t rows_max = 0, all = 0;
    for (int g = 0; g < groups; g++) {
        first[g] = (int32_t)rows_max;
        rows[g] = (int32_t)c->rows[g];
        rows_max += c->rows[g] + (c->groups ? 2 : 0);
        all += c->rows[g];
    }
    *args = (QuantGemm){.product = recipe->form,
                        .dtype = t->dtype,
                        .out_dtype = t->out_dtype,
                        .accumulate = t->accumulate,
                        .groups = groups,
                        .group_first = c->groups ? first : NULL,
                        .group_rows = c->groups ? rows : NULL,
                        .rows_max = rows_max,
                        .n = c->n,
                        .k = c->k,
                        .rows_expected = all,
                        .threads = 1};
    return quant_operand_make(data, &recipe->activations, t->dtype, 2, (int64_t[]){rows_max, c->k},
                              &args->a) &&
           quant_operand_make(data, &recipe->weights, t->dtype, 3, (int64_t[]){groups, c->n, c->k},
                              &args->b);
}

static inline int64_t quant_first(const QuantGemm *args, int group)
{
    return args->group_first ? args->group_first[group] : 0;
}

static inline int64_t quant_rows_of(const QuantGemm *args, int group)
{
    return args->group_rows ? args->group_rows[group] : args->rows_max;
}

// What an operand's rows stand for, [matrices, rows, k].
static inline float *quant_decoded(Data *data, const QuantGemm *args, const QuantOperand *o,
                                   int64_t matrices, int64_t rows)
{
    float *out = data_poisoned(data, matrices * rows * args->k, sizeof(float));
    DType rounding = args->product == PRODUCT_VALUES ? args->dtype : DTYPE_F32;
    for (int64_t i = 0; i < matrices * rows; i++)
        if (o->quantised)
            units_of_values(&o->q, rounding, (UnitRow){i / rows, i % rows}, out + i * args->k, 1);
        else
            for (int64_t k = 0; k < args->k; k++)
                out[i * args->k + k] = value_of(o->values, args->dtype, i * args->k + k);
    return out;
}

// The bound of quant_gemm.h around a sum of that value, `size` the sum of magnitudes.
static inline double quant_bound(const QuantGemm *args, bool on_tensor_cores, double sum,
                                 double size)
{
    const QuantRule *a = &args->a.q.rule, *b = &args->b.q.rule;
    bool scaled = args->product == PRODUCT_SCALED;
    double unit = rounding_of(args->dtype), blocks = 1;
    int roundings =
        1 + (args->product == PRODUCT_ROUNDED) + 2 * (args->a.quantised && a->two_level && scaled);
    int block = scaled ? (b->block_columns ? b->block_columns : a->block_columns) : 0;
    if (block)
        blocks = (double)args->k / block + 1;
    double bound = (on_tensor_cores ? 2 : 1) * ((double)args->k + 4 * blocks) * FLT_EPSILON * size +
                   roundings * unit * fabs(sum) * 1.02 + 1e-38;
    if (on_tensor_cores && scaled && a->code == CODE_E4M3 && a->method != QUANT_MX)
        bound += size / 1024;
    return bound;
}
