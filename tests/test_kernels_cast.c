// The casts' fast loops give the bytes of the reference: every recipe and operand, bf16 and f32,
// every instruction set that this CPU has, from 0 rows to odd ones, with NaN, infinities, zeros
// and subnormals; nothing is written beyond the tensor.
#include "kernels/cast.h"
#include "quant/recipe.h"
#include "tests/kernels_data.h"

enum { GUARD_BYTES = 64 };

static const int64_t shapes[][3] = {{1, 0, 128},   {1, 1, 128},  {1, 3, 1280}, {2, 16, 256},
                                    {3, 16, 64},   {1, 130, 32}, {1, 5, 34},   {1, 7, 33},
                                    {1, 128, 256}, {1, 34, 256}, {0, 16, 256}, {1, 16, 0}};

// Rows of different size, among them rows of zeros, of subnormals, of one value, and now and then
// something that is not finite.
static void fill(Data *data, DType input, int64_t rows, int64_t columns, void *values)
{
    for (int64_t row = 0; row < rows; row++) {
        int kind = (int)data_below(data, 8), exponent = (int)data_below(data, 60) - 30;
        for (int64_t column = 0; column < columns; column++) {
            float value = ldexpf(data_normal(data), exponent);
            value = kind == 0 ? (column % 2 ? -0.0f : 0.0f) : value;
            value = kind == 1 ? ldexpf(value, -126 - exponent) : value;
            value = kind == 2 && column % 100 == 40 ? INFINITY : value;
            value = kind == 3 && column % 100 == 77 ? NAN : value;
            value = kind == 4 && column % 50 == 13 ? -1e38f : value;
            value = kind == 5 && column / 16 % 3 == 1 ? 0.0f : value;
            if (input == DTYPE_F32)
                ((float *)values)[row * columns + column] = value;
            else
                ((uint16_t *)values)[row * columns + column] = bf16_from_f32(value);
        }
    }
}

// Memory for a tensor, one block of the heap per part, so that a write beyond it is found.
static void give_memory(Data *data, QTensor *q)
{
    QTensorBytes bytes = qtensor_bytes(q);
    q->codes = data_poisoned(data, (int64_t)bytes.codes + GUARD_BYTES, 1);
    q->scales = data_poisoned(data, (int64_t)bytes.scales + GUARD_BYTES, 1);
    if (q->rule.has_zeros && q->scale_layout != SCALES_PAIRED)
        q->zeros = data_poisoned(data, (int64_t)bytes.zeros + GUARD_BYTES, 1);
    if (q->rule.two_level)
        q->tensor_scales = data_poisoned(data, (int64_t)bytes.tensor_scales + GUARD_BYTES, 1);
}

static void compare(const char *what, const char *part, const void *ours, const void *reference,
                    uint64_t bytes)
{
    const uint8_t *a = ours, *b = reference;
    if (!a)
        return;
    for (uint64_t i = 0; i < bytes + GUARD_BYTES; i++)
        if (a[i] != b[i])
            fail_msg("%s: byte %llu of %llu of %s is %02X, the reference has %02X", what,
                     (unsigned long long)i, (unsigned long long)bytes, part, a[i], b[i]);
}

static void check_loops(Data *data, const char *name, const void *values, const QTensor *reference,
                        const CastLoops *loops)
{
    int mark = data->blocks;
    QTensor q = *reference;
    give_memory(data, &q);
    Cast args = {.values = values, .to = q, .threads = 1 + (int)data_below(data, 3)};
    cast_with_loops(&args, loops);
    char what[256];
    snprintf(what, sizeof(what), "%s, %s, %s, [%lld, %lld, %lld]", name, loops->name,
             dtype_row(q.input)->name, (long long)q.shape[0], (long long)q.shape[1],
             (long long)q.shape[2]);
    QTensorBytes bytes = qtensor_bytes(&q);
    compare(what, "scales", q.scales, reference->scales, bytes.scales);
    compare(what, "zeros", q.zeros, reference->zeros, bytes.zeros);
    compare(what, "second scales", q.tensor_scales, reference->tensor_scales, bytes.tensor_scales);
    compare(what, "codes", q.codes, reference->codes, bytes.codes);
    data_release(data, mark);
}

// Every instruction set that this CPU has; only_best: the first of them.
static void check(Data *data, const char *recipe, const QuantRule *rule, DType input,
                  const int64_t *shape, bool only_best)
{
    QTensor reference;
    Error error = {0};
    if (!qtensor_plan(rule, input, 3, shape, &reference, &error))
        return; // a shape that the recipe refuses: tests/test_quant_recipe.c
    int mark = data->blocks;
    give_memory(data, &reference);
    int64_t count = shape[0] * shape[1] * shape[2];
    void *values = data_poisoned(data, count, dtype_bytes(input, 1));
    fill(data, input, shape[0] * shape[1], shape[2], values);
    quantise(values, NULL, &reference);
    bool done = false;
    for (int row = 0; cast_loops_row(row) && !(done && only_best); row++)
        if (cast_loops_row(row)->supported()) {
            check_loops(data, recipe, values, &reference, cast_loops_row(row));
            done = true;
        }
    data_release(data, mark);
}

static void equals_the_reference(void **state)
{
    (void)state;
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int operand = 0; operand < 2; operand++) {
            const QuantRule *rule = operand ? &recipe->activations : &recipe->weights;
            for (size_t i = 0; i < COUNT_OF(shapes) && rule->method != QUANT_NONE; i++) {
                check(&data, recipe->name, rule, DTYPE_BF16, shapes[i], false);
                if (i % 4 == 1)
                    check(&data, recipe->name, rule, DTYPE_F32, shapes[i], false);
            }
        }
    data_destroy(&data);
}

// Groups and modes that no row has as its default.
static void options_too(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "mxfp8:mode=floor",          "mxfp8:mode=ceil",           "mxfp8:mode=even",
        "mxfp4:mode=floor",          "mxfp4:mode=ceil",           "mxfp4:mode=even",
        "int4_weight_only:group=32", "int4_weight_only:group=64", "int4_weight_only:group=256",
        "int4_tile:group=32",        "int4_tile:group=256",       "int8_int4:group=128",
        "fp8_row:lower_bound=0",
    };
    Data data = data_create();
    for (size_t t = 0; t < COUNT_OF(texts); t++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(texts[t], &recipe, &error));
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            check(&data, texts[t], &recipe.weights, DTYPE_BF16, shapes[i], true);
    }
    data_destroy(&data);
}

// What files have two to a byte that the recipe's own library has one to a byte.
static void packed_too(void **state)
{
    (void)state;
    static const char *const names[] = {"W4A16", "W4A16_ASYM"};
    Data data = data_create();
    for (size_t t = 0; t < COUNT_OF(names); t++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[t], &recipe, &error));
        recipe.weights.code_layout = CODES_PAIRS;
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            check(&data, names[t], &recipe.weights, DTYPE_BF16, shapes[i], false);
        QTensor q;
        assert_true(qtensor_plan(&recipe.weights, DTYPE_BF16, 3, shapes[1], &q, &error));
        assert_true(cast_is_fast(&q));
    }
    data_destroy(&data);
}

// Enough elements that threads share them.
static void several_threads(void **state)
{
    (void)state;
    static const int64_t shape[] = {2, 128, 256};
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        if (recipe->weights.method != QUANT_NONE)
            check(&data, recipe->name, &recipe->weights, DTYPE_BF16, shape, true);
    data_destroy(&data);
}

// Transposed values, quantised, are what the reference makes of values that were transposed before.
static void transposed_too(void **state)
{
    (void)state;
    static const int64_t places[][3] = {
        {1, 128, 256}, {2, 32, 48}, {3, 16, 16}, {1, 20, 7}, {2, 0, 32}};
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (size_t i = 0; i < COUNT_OF(places); i++) {
            const int64_t *shape = places[i], turned[] = {shape[0], shape[2], shape[1]};
            QTensor reference;
            Error error = {0};
            if (recipe->weights.method == QUANT_NONE ||
                !qtensor_plan(&recipe->weights, DTYPE_BF16, 3, turned, &reference, &error))
                continue;
            int64_t per_matrix = shape[1] * shape[2], count = shape[0] * per_matrix;
            uint16_t *values = data_poisoned(&data, count, sizeof(*values));
            uint16_t *transposed = data_poisoned(&data, count, sizeof(*transposed));
            fill(&data, DTYPE_BF16, shape[0] * shape[1], shape[2], values);
            for (int64_t at = 0; at < count; at++)
                transposed[at / per_matrix * per_matrix + at % shape[2] * shape[1] +
                           at % per_matrix / shape[2]] = values[at];
            QTensor q = reference;
            give_memory(&data, &reference);
            give_memory(&data, &q);
            quantise(transposed, NULL, &reference);
            cast_cpu(&(Cast){.values = values, .transposed = q}, CPU);
            QTensorBytes bytes = qtensor_bytes(&q);
            compare(recipe->name, "scales", q.scales, reference.scales, bytes.scales);
            compare(recipe->name, "zeros", q.zeros, reference.zeros, bytes.zeros);
            compare(recipe->name, "codes", q.codes, reference.codes, bytes.codes);
            data_release(&data, 0);
        }
    data_destroy(&data);
}

static void every_recipe_is_fast(void **state)
{
    (void)state;
    const int64_t shape[] = {1024, 1024};
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
        for (int operand = 0; operand < 2; operand++) {
            const QuantRule *rule = operand ? &recipe->activations : &recipe->weights;
            QTensor q;
            Error error = {0};
            if (rule->method == QUANT_NONE)
                continue;
            assert_true(qtensor_plan(rule, DTYPE_BF16, 2, shape, &q, &error));
            if (!cast_is_fast(&q))
                fail_msg("%s: no loops for its %s", recipe->name,
                         operand ? "activations" : "weights");
        }
}

// The pieces of a tensor together, in any order; NaN stays.
static void largest_of_pieces(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 77, 65536, 200001};
    Data data = data_create();
    for (size_t i = 0; i < COUNT_OF(counts); i++)
        for (int kind = 0; kind < 4; kind++) {
            const DType dtype = kind % 2 ? DTYPE_F32 : DTYPE_BF16;
            int64_t count = counts[i];
            char *values = data_poisoned(&data, count + 1, (uint64_t)dtype_bytes(dtype, 1));
            fill(&data, dtype, 1, count, values);
            if (kind >= 2 && count > 0)
                memset(values + dtype_bytes(dtype, (uint64_t)data_below(&data, count)), 0xFF,
                       dtype_bytes(dtype, 1));
            float most = 0, amax = 0;
            for (int64_t k = 0; k < count; k++) {
                float value = dtype == DTYPE_F32
                                  ? fabsf(((float *)(void *)values)[k])
                                  : fabsf(f32_from_bf16(((uint16_t *)(void *)values)[k]));
                most = isnan(value) || value > most ? value : most;
            }
            int64_t cut = count / 3;
            cast_largest(&(CastLargest){.values = values + dtype_bytes(dtype, (uint64_t)cut),
                                        .dtype = dtype,
                                        .count = count - cut,
                                        .amax = &amax},
                         CPU);
            cast_largest(
                &(CastLargest){.values = values, .dtype = dtype, .count = cut, .amax = &amax}, CPU);
            if (!(amax == most || (isnan(amax) && isnan(most))))
                fail_msg("%lld %s: %g, but the largest is %g", (long long)count,
                         dtype_row(dtype)->name, (double)amax, (double)most);
            data_release(&data, 0);
        }
    data_destroy(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_reference), cmocka_unit_test(options_too),
        cmocka_unit_test(packed_too),           cmocka_unit_test(several_threads),
        cmocka_unit_test(transposed_too),       cmocka_unit_test(every_recipe_is_fast),
        cmocka_unit_test(largest_of_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
