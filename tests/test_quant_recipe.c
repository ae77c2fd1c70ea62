// Recipes: names and options are read, wrong ones are refused with the nearest, shapes that a
// block does not divide are refused with the reason, and NaN, infinities and zeros become what the
// headers of the methods say.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quantise.h"
#include "quant/recipe.h"

static void read_and_written(void **state)
{
    (void)state;
    static const char *const texts[] = {"mxfp4:mode=floor", "int4_weight_only:group=32",
                                        "fp8_row:lower_bound=0", "none"};
    Recipe recipe;
    Error error = {0};
    char text[RECIPE_NAME_BYTES];
    for (const Recipe *row = recipe_table; row->name; row++) {
        assert_true(recipe_parse(row->name, &recipe, &error));
        recipe_format(&recipe, text, sizeof(text));
        assert_string_equal(text, row->name);
    }
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        assert_true(recipe_parse(texts[i], &recipe, &error));
        recipe_format(&recipe, text, sizeof(text));
        assert_string_equal(text, texts[i]);
    }
    assert_true(recipe_parse("mxfp8:mode=rceil", &recipe, &error)); // the row's own
    recipe_format(&recipe, text, sizeof(text));
    assert_string_equal(text, "mxfp8");
}

static void refused(const char *text, const char *what, const char *fix)
{
    Recipe recipe;
    Error error = {0};
    assert_false(recipe_parse(text, &recipe, &error));
    assert_int_equal(error.exit_code, EXIT_CODE_USAGE);
    if (!strstr(error.what, what) || !strstr(error.fix, fix))
        fail_msg("%s: '%s', fix '%s'; expected '%s' and '%s'", text, error.what, error.fix, what,
                 fix);
}

static void wrong_names(void **state)
{
    (void)state;
    refused("mxpf8", "there is no recipe 'mxpf8'", "did you mean mxfp8?");
    refused("W4A16_ASYMM", "there is no recipe 'W4A16_ASYMM'", "did you mean W4A16_ASYM?");
    refused("", "there is no recipe ''", "meshwork recipes");
    refused("mxfp8:group=32", "recipe mxfp8 has no option 'group'", "mode=");
    refused("mxfp8:mode=up", "mode=up is no value", "floor, ceil, even or rceil");
    refused("int4_tile:group=48", "group=48 is no value", "32, 64, 128 or 256");
    refused("fp8_row:lower_bound=-1", "lower_bound=-1 is no value", "0 .. 448");
    refused("fp8_row:lower_bound=nan", "lower_bound=nan is no value", "0 .. 448");
    refused("fp8_row:", "recipe fp8_row has no option ''", "lower_bound=");
    refused("int8_dynamic:group=32", "has no option 'group'", "no options");
}

typedef struct Refusal {
    const char *recipe;
    int rank;
    int64_t shape[4];
    const char *what;
} Refusal;

static void wrong_shapes(void **state)
{
    (void)state;
    static const Refusal rows[] = {
        {"fp8_row", 2, {40, 64}, "dimension 0 (rows) is 40, which 16 does not divide"},
        {"fp8_block", 2, {128, 192}, "dimension 1 (columns) is 192, which 128 does not divide"},
        {"fp8_block", 3, {2, 64, 128}, "dimension 1 (rows) is 64, which 128 does not divide"},
        {"mxfp8", 2, {1, 48}, "dimension 1 (columns) is 48, which 32 does not divide"},
        {"nvfp4", 2, {16, 40}, "dimension 1 (columns) is 40, which 16 does not divide"},
        {"int4_weight_only", 2, {8, 64}, "which 128 does not divide: a block would be cut"},
        {"int4_int4", 1, {7}, "dimension 0 (columns) is 7, which 2 does not divide"},
        {"int8_dynamic", 4, {2, 2, 2, 2}, "rank 4"},
        {"int8_dynamic", 2, {INT64_C(1) << 40, INT64_C(1) << 40}, "more than 2^57 elements"},
        {"int8_dynamic", 2, {-1, 4}, "dimension 0 is -1"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Recipe recipe;
        QTensor q;
        Error error = {0};
        assert_true(recipe_parse(rows[i].recipe, &recipe, &error));
        assert_false(
            qtensor_plan(&recipe.weights, DTYPE_BF16, rows[i].rank, rows[i].shape, &q, &error));
        assert_int_equal(error.exit_code, EXIT_CODE_DATA);
        if (!strstr(error.what, rows[i].what))
            fail_msg("%s: '%s', expected '%s'", rows[i].recipe, error.what, rows[i].what);
    }
    QTensor q;
    Error error = {0};
    int64_t shape[] = {16, 128};
    assert_false(qtensor_plan(&recipe_table[1].weights, DTYPE_F16, 2, shape, &q, &error));
    assert_non_null(strstr(error.what, "type f16 cannot be quantised"));
}

// More than 2^32 elements: every place is computed in 64 bits.
static void large_tensors(void **state)
{
    (void)state;
    Recipe recipe;
    QTensor q;
    Error error = {0};
    int64_t shape[] = {6, INT64_C(1) << 16, INT64_C(1) << 15};
    uint64_t elements = UINT64_C(6) << 31;
    assert_true(recipe_parse("mxfp4", &recipe, &error));
    assert_true(qtensor_plan(&recipe.weights, DTYPE_BF16, 3, shape, &q, &error));
    assert_int_equal(qtensor_bytes(&q).codes, elements / 2);
    assert_int_equal(qtensor_bytes(&q).scales, elements / 32);
    assert_int_equal(qtensor_code_bit(&q, 5, shape[1] - 1, shape[2] - 1), (elements - 1) * 4);
    assert_int_equal(qtensor_scale_index(&q, 5, shape[1] - 1, shape[2] / 32 - 1),
                     elements / 32 - 1);
}

// ---- what is not finite ----

enum { ROWS = 4, COLUMNS = 128, BAD_COLUMN = 70 };

typedef struct Special {
    const char *recipe;
    float bad; // the one odd element of row 0
    // Of row 0: what the bad element stands for, and its neighbour, which is 1.
    float bad_becomes, neighbour_becomes;
} Special;

static float one_bad(const Special *row, QTensor *q, float *values, float *neighbour)
{
    Recipe recipe;
    Error error = {0};
    int64_t shape[] = {ROWS, COLUMNS};
    assert_true(recipe_parse(row->recipe, &recipe, &error));
    assert_true(qtensor_plan(&recipe.activations, DTYPE_F32, 2, shape, q, &error));
    for (int64_t i = 0; i < ROWS * COLUMNS; i++)
        values[i] = 1.0f;
    values[BAD_COLUMN] = row->bad;
    qtensor_allocate(q);
    quantise(values, NULL, q);
    *neighbour = dequantise_element(q, 0, 0, BAD_COLUMN - 1);
    return dequantise_element(q, 0, 0, BAD_COLUMN);
}

static bool same(float a, float b)
{
    return (isnan(a) && isnan(b)) || a == b;
}

// fp8: an infinity makes the scale infinite, so finite elements become 0 * inf = NaN when read
// back. Whole numbers: code 0. MX and NVFP4: the block's scale is NaN.
static void not_finite(void **state)
{
    (void)state;
    static const Special rows[] = {
        {"fp8_row", NAN, NAN, NAN},
        {"fp8_row", INFINITY, NAN, NAN},
        {"fp8_block", -INFINITY, NAN, NAN},
        {"fp8_tensor", NAN, NAN, NAN},
        {"int8_dynamic", NAN, NAN, NAN},
        {"int8_dynamic", INFINITY, NAN, NAN},
        {"int4_int4", NAN, NAN, NAN},
        {"mxfp8", NAN, NAN, NAN},
        {"mxfp8", INFINITY, NAN, NAN},
        {"mxfp8:mode=floor", INFINITY, NAN, NAN},
        {"mxfp4:mode=even", -NAN, NAN, NAN},
        {"mxfp4:mode=ceil", -INFINITY, NAN, NAN},
        {"nvfp4_one_level", NAN, NAN, NAN},
        {"nvfp4_one_level", INFINITY, 6 * 448, 0},
        {"nvfp4", NAN, NAN, NAN},
        {"deepseek_block", NAN, NAN, NAN},
        {"nvfp4_one_level", 1e9f, 6 * 448, 0},
    };
    float values[ROWS * COLUMNS], neighbour;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        QTensor q;
        float bad = one_bad(&rows[i], &q, values, &neighbour);
        if (!same(bad, rows[i].bad_becomes) || !same(neighbour, rows[i].neighbour_becomes))
            fail_msg("%s: %g became %g and its neighbour %g, expected %g and %g", rows[i].recipe,
                     (double)rows[i].bad, (double)bad, (double)neighbour,
                     (double)rows[i].bad_becomes, (double)rows[i].neighbour_becomes);
        bool whole = q.rule.block_rows == 0 || q.rule.two_level;
        float other = dequantise_element(&q, 0, 1, 0); // another row, another block
        if (!whole && !(fabsf(other - 1.0f) <= 0.07f))
            fail_msg("%s: %g in row 0 made row 1 %g", rows[i].recipe, (double)rows[i].bad,
                     (double)other);
        qtensor_free(&q);
    }
}

// Zeros come back as zeros, but for the weights of torchao's fp8, whose scale is then 0.
static void zeros(void **state)
{
    (void)state;
    static const float values[128 * 128] = {0};
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int weights = 0; weights < 2; weights++) {
            const QuantRule *rule = weights ? &recipe->weights : &recipe->activations;
            int64_t shape[] = {128, 128};
            QTensor q;
            Error error = {0};
            if (rule->method == QUANT_NONE)
                continue;
            assert_true(qtensor_plan(rule, DTYPE_F32, 2, shape, &q, &error));
            qtensor_allocate(&q);
            quantise(values, NULL, &q);
            bool poisoned = rule->method == QUANT_SYMMETRIC && rule->amax_minimum == 0 &&
                            rule->scale_minimum == 0 && rule->scale_of_zero == 0;
            float became = dequantise_element(&q, 0, 3, 5);
            bool offset = rule->method == QUANT_RANGE || rule->method == QUANT_TILE;
            bool good = poisoned ? isnan(became) : fabsf(became) <= (offset ? 1e-8f : 0.0f);
            if (!good)
                fail_msg("%s: 0 became %g", recipe->name, (double)became);
            if (poisoned)
                assert_int_equal(qtensor_load_code(&q, 0, 3, 5), 0x7F);
            qtensor_free(&q);
        }
}

// The whole tensor at once is what its elements are one by one, in every layout of codes.
static void whole_and_elements(void **state)
{
    (void)state;
    enum { LONG = 1280, COUNT = 2 * 128 * LONG }; // where blocks are rows, long ones
    static const int64_t shape[] = {2, 128, LONG};
    float *values = malloc(COUNT * sizeof(*values)), *whole = malloc(COUNT * sizeof(*whole));
    uint16_t *narrow = malloc(COUNT * sizeof(*narrow));
    assert_true(values && whole && narrow);
    for (int64_t i = 0; i < COUNT; i++) // zeros of both signs, subnormals, NaN, large and small
        values[i] = i % 97 == 0 ? NAN
                    : i / LONG == 3
                        ? (i % 2 ? -0.0f : 0.0f)
                        : ldexpf((float)(i * 7919 % 4001 - 2000), (int)(i / LONG % 60) - 40);
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int packed = 0; packed < 2; packed++) {
            QuantRule rule = recipe->weights;
            QTensor q;
            Error error = {0};
            if (rule.method == QUANT_NONE)
                continue;
            if (packed && rule.code == CODE_INT4 && rule.code_layout == CODES_BYTES)
                rule.code_layout = CODES_PAIRS;
            assert_true(qtensor_plan(&rule, DTYPE_F32, 3, shape, &q, &error));
            qtensor_allocate(&q);
            quantise(values, NULL, &q);
            dequantise(&q, DTYPE_F32, whole);
            dequantise(&q, DTYPE_BF16, narrow);
            for (int64_t i = 0; i < COUNT; i++) {
                int64_t row = i / q.columns;
                float one = dequantise_element(&q, row / q.rows, row % q.rows, i % q.columns);
                bool nan = isnan(one) && isnan(whole[i]);
                if ((!nan && memcmp(&one, &whole[i], sizeof(one)) != 0) ||
                    narrow[i] != bf16_from_f32(one))
                    fail_msg("%s: element %lld is %g (%04X), by itself %g", recipe->name,
                             (long long)i, (double)whole[i], narrow[i], (double)one);
            }
            qtensor_free(&q);
        }
    free(values);
    free(whole);
    free(narrow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(read_and_written),   cmocka_unit_test(wrong_names),
        cmocka_unit_test(wrong_shapes),       cmocka_unit_test(large_tensors),
        cmocka_unit_test(not_finite),         cmocka_unit_test(zeros),
        cmocka_unit_test(whole_and_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
