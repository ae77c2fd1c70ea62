// Products of quantised operands: tiles give the bits of the plain loops for every recipe, group
// sizes from 0 on, odd shapes, f32 and bf16; and both are the product, in double, of what the codes
// stand for, within the bound of the header.
#include "tests/quant_product.h"

static const QuantCase cases[] = {{3, {0, 1, 17}, 48, 128},
                                  {3, {3, 0, 30}, 128, 256},
                                  {3, {1, 2, 0}, 16, 1408},
                                  {0, {5}, 128, 128}};

// What an element stands for.
static double value_at(const QuantOperand *o, DType dtype, int64_t matrix, int64_t row, int64_t k,
                       int64_t rows, int64_t columns)
{
    bool merged = o->quantised && o->q.rank == 3 && o->q.rule.block_rows == 0;
    if (!o->quantised)
        return value_of(o->values, dtype, (matrix * rows + row) * columns + k);
    return merged ? dequantise_element(&o->q, 0, matrix * rows + row, k)
                  : dequantise_element(&o->q, matrix, row, k);
}

static void check_value(const QuantGemm *g, const char *what, int group, int64_t row, int64_t n)
{
    double sum = 0, size = 0;
    for (int64_t k = 0; k < g->k; k++) {
        double a = value_at(&g->a, g->dtype, 0, row, k, g->rows_max, g->k);
        double b = value_at(&g->b, g->dtype, group, n, k, g->n, g->k);
        sum += a * b;
        size += fabs(a * b);
    }
    double unit = rounding_of(g->dtype);
    int roundings = 1 + (g->product == PRODUCT_ROUNDED) +
                    2 * (g->a.quantised && g->a.q.rule.two_level && g->product == PRODUCT_SCALED);
    double bound = (double)(5 * g->k) * FLT_EPSILON * size + roundings * unit * fabs(sum) * 1.02;
    if (g->product == PRODUCT_VALUES) // operands are rounded to their own type as well
        bound += 2 * unit * size;
    if (g->out_dtype == DTYPE_BF16)
        bound += 1e-38;
    expect_near(value_of(g->c, g->out_dtype, row * g->n + n), sum, bound, what, row * g->n + n);
}

static void check(Data *data, const Recipe *recipe, const QuantCase *c, DType dtype)
{
    int mark = data->blocks;
    QuantGemm args;
    char what[128];
    snprintf(what, sizeof(what), "%s, %s, n %lld, k %lld", recipe->name, dtype_row(dtype)->name,
             (long long)c->n, (long long)c->k);
    if (quant_product_make(data, recipe, c, &(QuantTypes){dtype, dtype, false}, &args)) {
        int64_t rows_max = args.rows_max;
        args.threads = 1 + (int)data_below(data, 3);
        uint64_t bytes = dtype_bytes(dtype, (uint64_t)(rows_max * c->n));
        void *ours = data_poisoned(data, rows_max * c->n, dtype_bytes(dtype, 1));
        args.c = data_poisoned(data, rows_max * c->n, dtype_bytes(dtype, 1));
        args.workspace =
            data_poisoned(data, (int64_t)quant_gemm_workspace_bytes(&args, DEVICE_CPU), 1);
        quant_gemm_reference(&args);
        QuantGemm fast = args;
        fast.c = ours;
        quant_gemm(&fast, CPU);
        for (int64_t i = 0; i < rows_max * c->n; i++) // padding rows keep the poison
            expect_same(value_of(ours, dtype, i), value_of(args.c, dtype, i), what, i);
        assert_memory_equal(ours, args.c, bytes);
        for (int g = 0; g < args.groups; g++)
            for (int64_t i = 0; i < quant_rows_of(&args, g); i++)
                check_value(&args, what, g, quant_first(&args, g) + i, data_below(data, c->n));
    }
    data_release(data, mark);
}

static void every_recipe(void **state)
{
    (void)state;
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (size_t i = 0; i < COUNT_OF(cases); i++)
            check(&data, recipe, &cases[i], i == 0 ? DTYPE_F32 : DTYPE_BF16);
    data_destroy(&data);
}

// Whole numbers are exact beyond 2^24: 2047 products of 127 x 127 and one of 127 x 126 are odd and
// above it, which an f32 cannot hold; 1024 negative ones bring the sum back to where it can.
static void integers_are_exact(void **state)
{
    (void)state;
    enum { K = 3072 };
    Data data = data_create();
    Recipe recipe;
    Error error = {0};
    assert_true(recipe_parse("W8A8", &recipe, &error));
    QuantOperand operand[2];
    for (int i = 0; i < 2; i++) {
        assert_true(quant_operand_make(&data, i ? &recipe.weights : &recipe.activations, DTYPE_F32,
                                       2, (int64_t[]){1, K}, &operand[i]));
        for (int64_t k = 0; k < K; k++)
            qtensor_store_code(&operand[i].q, 0, 0, k,
                               i == 0      ? 127
                               : k >= 2048 ? (uint8_t)-127
                                           : (k == 7 ? 126 : 127));
        qtensor_store_block(&operand[i].q, 0, 0, 0, &(QuantBlock){.scale_bits = 0x3F80}); // 1
    }
    int32_t zero = 0, one = 1;
    float out = 0;
    QuantGemm args = {.product = recipe.form,
                      .dtype = DTYPE_F32,
                      .out_dtype = DTYPE_F32,
                      .groups = 1,
                      .group_first = &zero,
                      .group_rows = &one,
                      .rows_max = 1,
                      .n = 1,
                      .k = K,
                      .a = operand[0],
                      .b = operand[1],
                      .c = &out,
                      .threads = 1};
    args.workspace =
        data_poisoned(&data, (int64_t)quant_gemm_workspace_bytes(&args, DEVICE_CPU), 1);
    quant_gemm(&args, CPU);
    expect_same(out, 127.0f * (127 * 2048 - 1 - 127 * 1024), "sum", 0);
    data_destroy(&data);
}

// c += in f32, and no columns: zeros.
static void accumulates(void **state)
{
    (void)state;
    Data data = data_create();
    int32_t zero = 0, two = 2;
    float a[2] = {2, 3}, b[2] = {5, 7}, c[4] = {1, 2, 3, 4};
    QuantGemm args = {.product = PRODUCT_VALUES,
                      .dtype = DTYPE_F32,
                      .out_dtype = DTYPE_F32,
                      .accumulate = true,
                      .groups = 1,
                      .group_first = &zero,
                      .group_rows = &two,
                      .rows_max = 2,
                      .n = 2,
                      .k = 1,
                      .a = {.values = a},
                      .b = {.values = b},
                      .c = c,
                      .threads = 1};
    args.workspace =
        data_poisoned(&data, (int64_t)quant_gemm_workspace_bytes(&args, DEVICE_CPU), 1);
    quant_gemm(&args, CPU);
    const float expected[4] = {11, 16, 18, 25};
    for (int i = 0; i < 4; i++)
        expect_same(c[i], expected[i], "c", i);
    args.k = 0;
    args.accumulate = false;
    quant_gemm(&args, CPU);
    for (int i = 0; i < 4; i++)
        expect_same(c[i], 0, "c of no columns", i);
    data_destroy(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_recipe),
                                       cmocka_unit_test(integers_are_exact),
                                       cmocka_unit_test(accumulates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
