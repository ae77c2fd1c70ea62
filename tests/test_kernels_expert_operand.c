// Expert rows made ready for weights' gradients: transposed with zeros in the gaps, measured, cast
// under a scale per row and group with the bytes of the reference; and sums over groups are, bit
// for bit, one product per group of its own columns.
#include "kernels/expert_operand.h"
#include "tests/quant_product.h"

enum { GROUPS = 5, ROWS_MAX = 800, TERMS = 1024, TOTAL = 768, SOURCES = 90 };

static const int32_t group_first[GROUPS] = {0, 0, 128, 384, 512};
static const int32_t group_rows[GROUPS] = {0, 5, 130, 1, 200};
static const int32_t rows_total = TOTAL;

// -1 for padding, else any source row.
static int32_t *row_map_make(Data *data)
{
    int32_t *map = data_poisoned(data, ROWS_MAX, sizeof(int32_t));
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < group_rows[g]; i++)
            map[group_first[g] + i] = (int32_t)data_below(data, SOURCES);
    return map;
}

// [columns, TERMS] of expert rows: those of `values` that the map names.
static void *transposed_make(Data *data, const int32_t *map, DType dtype, int64_t columns,
                             const void *values)
{
    void *to = data_poisoned(data, columns * TERMS, dtype_bytes(dtype, 1));
    rows_transpose(&(RowsTranspose){.matrices = 1,
                                    .rows = ROWS_MAX,
                                    .columns = columns,
                                    .dtype = dtype,
                                    .from = values,
                                    .row_map = map,
                                    .mapped = true,
                                    .rows_total = &rows_total,
                                    .to_columns = TERMS,
                                    .to = to},
                   CPU);
    return to;
}

static void rows_are_transposed(void **state)
{
    (void)state;
    Data data = data_create();
    for (int pass = 0; pass < 2; pass++) {
        DType dtype = pass ? DTYPE_BF16 : DTYPE_F32;
        int64_t columns = pass ? 37 : 64;
        int32_t *map = row_map_make(&data);
        void *values = data_normals(&data, SOURCES * columns, dtype, 1.0f);
        void *to = transposed_make(&data, map, dtype, columns, values);
        for (int64_t c = 0; c < columns; c++)
            for (int64_t r = 0; r < TERMS; r++) {
                int64_t at = c * TERMS + r;
                if (r >= TOTAL)
                    expect_poison(to, dtype, at, "behind the last group");
                else
                    expect_same(value_of(to, dtype, at),
                                map[r] < 0 ? 0 : value_of(values, dtype, map[r] * columns + c),
                                "transposed", at);
            }
    }
    data_destroy(&data);
}

static void matrices_are_transposed(void **state)
{
    (void)state;
    Data data = data_create();
    float *from = data_normals(&data, 3 * 5 * 70, DTYPE_F32, 1.0f);
    float *to = data_poisoned(&data, 3 * 5 * 70, sizeof(float));
    rows_transpose(&(RowsTranspose){.matrices = 3,
                                    .rows = 5,
                                    .columns = 70,
                                    .dtype = DTYPE_F32,
                                    .from = from,
                                    .to_columns = 5,
                                    .to = to},
                   CPU);
    for (int64_t i = 0; i < 3 * 5 * 70; i++)
        expect_same(to[i], from[i / 350 * 350 + i % 5 * 70 + i % 350 / 5], "to", i);
    data_destroy(&data);
}

static void amax_is_of_real_rows(void **state)
{
    (void)state;
    Data data = data_create();
    int32_t *map = row_map_make(&data);
    float *values = data_poisoned(&data, ROWS_MAX * 9, sizeof(float)); // NaN in padding
    float most = 0, amax = 0.001f;
    for (int64_t r = 0; r < TOTAL; r++)
        for (int64_t c = 0; c < 9 && map[r] >= 0; c++) {
            values[r * 9 + c] = data_normal(&data);
            most = fmaxf(most, fabsf(values[r * 9 + c]));
        }
    RowsAmax args = {.rows = ROWS_MAX,
                     .columns = 9,
                     .dtype = DTYPE_F32,
                     .values = values,
                     .row_map = map,
                     .rows_total = &rows_total,
                     .amax = &amax};
    rows_amax(&args, CPU);
    expect_same(amax, most, "amax", 0);
    amax = 1000;
    rows_amax(&args, CPU);
    expect_same(amax, 1000, "amax that was more", 0);
    values[group_first[2] * 9] = NAN;
    rows_amax(&args, CPU);
    expect_same(amax, NAN, "amax with a NaN", 0);
    data_destroy(&data);
}

static QTensor tensor_make(Data *data, const QuantRule *rule, DType dtype, int64_t rows,
                           int64_t columns, int groups)
{
    QTensor q;
    Error error = {0};
    assert_true(qtensor_plan(rule, dtype, 2, (int64_t[]){rows, columns}, &q, &error));
    q.scale_layout = SCALES_PLAIN;
    QTensorBytes bytes = qtensor_bytes(&q);
    q.codes = data_poisoned(data, (int64_t)bytes.codes, 1);
    q.scales = data_poisoned(data, groups * (int64_t)bytes.scales, 1);
    if (q.rule.has_zeros)
        q.zeros = data_poisoned(data, (int64_t)bytes.zeros, 1);
    return q;
}

// Each row as if it were cast alone; rows of padding as they were.
static void rows_are_cast(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_block", "mxfp8", "int8_dynamic"};
    enum { COLUMNS = 256 };
    Data data = data_create();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        DType dtype = i % 2 ? DTYPE_F32 : DTYPE_BF16;
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[i], &recipe, &error));
        int32_t *map = row_map_make(&data);
        void *values = data_normals(&data, SOURCES * COLUMNS, dtype, 1.0f);
        QTensor q = tensor_make(&data, &recipe.activations, dtype, ROWS_MAX, COLUMNS, 1);
        QTensor all = tensor_make(&data, &recipe.activations, dtype, SOURCES, COLUMNS, 1);
        rows_cast(&(RowsCast){.values = values,
                              .row_map = map,
                              .mapped = true,
                              .rows_total = &rows_total,
                              .to = q},
                  CPU);
        quantise(values, NULL, &all);
        uint64_t line = qtensor_bytes(&all).scales / SOURCES;
        for (int64_t r = 0; r < ROWS_MAX; r++) {
            const uint8_t *codes = (const uint8_t *)q.codes + r * COLUMNS;
            bool real = r < TOTAL && map[r] >= 0;
            if (!real) {
                expect_poison(codes, DTYPE_BF16, 0, "codes of padding");
                continue;
            }
            assert_memory_equal(codes, (const uint8_t *)all.codes + map[r] * COLUMNS, COLUMNS);
            assert_memory_equal((const char *)q.scales + (uint64_t)r * line,
                                (const char *)all.scales + (uint64_t)map[r] * line, line);
        }
    }
    data_destroy(&data);
}

// ---- sums over groups ----

// Of expert rows: those of `values` that the map names.
static QTensor quantised(Data *data, const QuantRule *rule, DType dtype, int64_t rows,
                         const int32_t *map, const void *values)
{
    QTensor q = tensor_make(data, rule, dtype, rows, TERMS, GROUPS);
    group_cast(&(GroupCast){.values = values,
                            .row_map = map,
                            .mapped = true,
                            .rows_total = &rows_total,
                            .groups = GROUPS,
                            .group_first = group_first,
                            .group_rows = group_rows,
                            .to = q},
               CPU);
    return q;
}

// One group's columns, up to a whole block, quantised alone.
static QTensor of_group(Data *data, const QuantRule *rule, DType dtype, int64_t rows,
                        const void *values, int group)
{
    int64_t block = rule->block_columns ? rule->block_columns : 1;
    int64_t columns = (group_rows[group] + block - 1) / block * block;
    uint64_t size = dtype_bytes(dtype, 1);
    char *part = data_poisoned(data, rows * columns, size);
    for (int64_t r = 0; r < rows && columns > 0; r++)
        memcpy(part + (uint64_t)(r * columns) * size,
               (const char *)values + (uint64_t)(r * TERMS + group_first[group]) * size,
               (uint64_t)columns * size);
    QTensor q = tensor_make(data, rule, dtype, rows, columns, 1);
    quantise(part, NULL, &q);
    return q;
}

static void check_codes(const QTensor *all, const QTensor *one, int group, const char *what)
{
    for (int64_t r = 0; r < all->rows; r++)
        for (int64_t c = 0; c < one->columns; c++)
            expect_equal(qtensor_load_code(all, 0, r, group_first[group] + c),
                         qtensor_load_code(one, 0, r, c), what, r * TERMS + c);
}

static void check_group(Data *data, const QuantGemm *sums, const void *a, const void *b, int group)
{
    const QuantRule *rule = &sums->a.q.rule;
    QuantGemm alone = *sums;
    alone.sums_over_groups = false;
    alone.groups = 1;
    alone.group_first = alone.group_rows = NULL;
    alone.a.q = of_group(data, rule, sums->dtype, sums->rows_max, a, group);
    alone.b.q = of_group(data, rule, sums->dtype, sums->n, b, group);
    alone.k = alone.a.q.columns;
    int64_t count = sums->rows_max * sums->n;
    float *c = alone.c = data_normals(data, count, DTYPE_F32, 0);
    alone.workspace =
        data_poisoned(data, (int64_t)quant_gemm_workspace_bytes(&alone, DEVICE_CPU), 1);
    quant_gemm(&alone, CPU);
    check_codes(&sums->a.q, &alone.a.q, group, "code of a");
    for (int64_t i = 0; i < count; i++)
        expect_same(((const float *)sums->c)[group * count + i], c[i], "c", group * count + i);
}

static void sums_are_products_of_groups(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_block", "mxfp8", "mxfp8:mode=floor"};
    enum { M = 24, N = 16 };
    Data data = data_create();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        DType dtype = i % 2 ? DTYPE_F32 : DTYPE_BF16;
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[i], &recipe, &error));
        int32_t *map = row_map_make(&data);
        void *a_rows = data_normals(&data, SOURCES * M, dtype, 2);
        void *b_rows = data_normals(&data, SOURCES * N, dtype, 1);
        void *a = transposed_make(&data, map, dtype, M, a_rows);
        void *b = transposed_make(&data, map, dtype, N, b_rows);
        QuantGemm sums = {
            .product = recipe.form,
            .dtype = dtype,
            .out_dtype = DTYPE_F32,
            .accumulate = i == 0,
            .sums_over_groups = true,
            .groups = GROUPS,
            .group_first = group_first,
            .group_rows = group_rows,
            .rows_max = M,
            .n = N,
            .k = TERMS,
            .a = {true, quantised(&data, &recipe.activations, dtype, M, map, a_rows), NULL},
            .b = {true, quantised(&data, &recipe.activations, dtype, N, map, b_rows), NULL},
            .c = data_normals(&data, GROUPS * M * N, DTYPE_F32, 0),
            .threads = 2};
        quant_gemm(&sums, CPU);
        for (int group = 0; group < GROUPS; group++)
            check_group(&data, &sums, a, b, group);
    }
    data_destroy(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_transposed),         cmocka_unit_test(matrices_are_transposed),
        cmocka_unit_test(amax_is_of_real_rows),        cmocka_unit_test(rows_are_cast),
        cmocka_unit_test(sums_are_products_of_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
