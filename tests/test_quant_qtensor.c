// Quantised tensors: scales lie where cuBLAS looks for them, parts are what quantising the parts of
// the values gives, for every recipe and axis, in their own layout and in another.
#include "quant/quantise.h"
#include "quant/recipe.h"
#include "tests/kernels_data.h"

// FORMATS of torchao's to_blocked: reshape, transpose and flatten, step by step.
static void swizzle_by_reshape(void **state)
{
    (void)state;
    static const int64_t grids[][2] = {{130, 5}, {256, 8}, {1408, 128}, {1, 1}};
    Recipe recipe;
    Error error = {0};
    assert_true(recipe_parse("mxfp8", &recipe, &error));
    for (size_t i = 0; i < COUNT_OF(grids); i++) {
        int64_t rows = grids[i][0], columns = grids[i][1], shape[] = {rows, 32 * columns};
        int64_t tile_columns = (columns + 3) / 4, at = 0;
        QTensor q;
        assert_true(qtensor_plan(&recipe.weights, DTYPE_BF16, 2, shape, &q, &error));
        for (int64_t tile = 0; tile < (rows + 127) / 128 * tile_columns; tile++)
            for (int64_t a = 0; a < 32; a++)
                for (int64_t b = 0; b < 4; b++)
                    for (int64_t c = 0; c < 4; c++, at++) {
                        int64_t row = tile / tile_columns * 128 + b * 32 + a;
                        int64_t column = tile % tile_columns * 4 + c;
                        if (row < rows && column < columns)
                            expect_equal(qtensor_scale_index(&q, 0, row, column), at, "swizzle",
                                         row * columns + column);
                    }
        expect_equal(qtensor_scale_elements(&q), at, "elements", (int64_t)i);
    }
}

static void copy_values(const uint16_t *from, const int64_t *shape, int axis, int64_t first,
                        const int64_t *part, uint16_t *to)
{
    int64_t at[3] = {0};
    for (at[0] = 0; at[0] < part[0]; at[0]++)
        for (at[1] = 0; at[1] < part[1]; at[1]++)
            for (at[2] = 0; at[2] < part[2]; at[2]++) {
                int64_t place[3] = {at[0], at[1], at[2]};
                place[axis] += first;
                *to++ = from[(place[0] * shape[1] + place[1]) * shape[2] + place[2]];
            }
}

static void expect_bytes(const char *what, const char *name, const void *ours, const void *theirs,
                         uint64_t bytes)
{
    if (bytes && memcmp(ours, theirs, bytes) != 0)
        fail_msg("%s: %s differ", what, name);
}

// Cuts [first, first + count) out and compares with quantising those values, where no scale spans
// the cut; else with what each element stands for.
static void check_part(Data *data, const QTensor *whole, const uint16_t *values, int axis,
                       int64_t first, int64_t count, const char *what)
{
    int64_t shape[3] = {whole->shape[0], whole->shape[1], whole->shape[2]};
    QTensor part, expected;
    Error error = {0};
    int mark = data->blocks;
    shape[axis] = count;
    assert_true(qtensor_plan(&whole->rule, DTYPE_BF16, 3, shape, &part, &error));
    expected = part;
    if (part.scale_layout == SCALES_SWIZZLED) // another layout holds the same
        part.scale_layout = expected.scale_layout = SCALES_PLAIN;
    qtensor_allocate(&part);
    qtensor_allocate(&expected);
    uint16_t *cut = data_poisoned(data, shape[0] * shape[1] * shape[2], 2);
    copy_values(values, whole->shape, axis, first, shape, cut);
    float amax[16] = {0};
    quantise_measure(whole, values, amax);
    bool one_block = whole->rule.block_rows == 0;
    quantise(cut, one_block ? amax : axis == 0 ? amax + first : amax, &expected);
    qtensor_copy_part(whole, axis, first, &part);
    bool spans = axis == 2 && whole->rule.block_columns == 0 && !one_block;
    QTensorBytes bytes = qtensor_bytes(&part);
    if (!spans) {
        expect_bytes(what, "codes", part.codes, expected.codes, bytes.codes);
        expect_bytes(what, "scales", part.scales, expected.scales, bytes.scales);
        expect_bytes(what, "zeros", part.zeros, expected.zeros, bytes.zeros);
        expect_bytes(what, "second scales", part.tensor_scales, expected.tensor_scales,
                     bytes.tensor_scales);
    }
    for (int64_t c = 0; spans && c < count; c++)
        expect_same(dequantise_element(&part, 1, 1, c), dequantise_element(whole, 1, 1, first + c),
                    what, c);
    qtensor_free(&part);
    qtensor_free(&expected);
    data_release(data, mark);
}

static void parts(void **state)
{
    (void)state;
    int64_t shape[3] = {2, 256, 256};
    Data data = data_create();
    uint16_t *values = data_normals(&data, shape[0] * shape[1] * shape[2], DTYPE_BF16, 1.0f);
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++) {
        QTensor q;
        Error error = {0};
        if (recipe->weights.method == QUANT_NONE)
            continue;
        assert_true(qtensor_plan(&recipe->weights, DTYPE_BF16, 3, shape, &q, &error));
        qtensor_allocate(&q);
        quantise(values, NULL, &q);
        for (int axis = 0; axis < 3; axis++) {
            int64_t step = qtensor_cut_step(&q, axis), half = shape[axis] / 2;
            if (half % step != 0) // padding: only the whole
                half = 0;
            check_part(&data, &q, values, axis, half, shape[axis] - half, recipe->name);
            check_part(&data, &q, values, axis, 0, half, recipe->name);
        }
        qtensor_free(&q);
    }
    data_destroy(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(swizzle_by_reshape),
                                       cmocka_unit_test(parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
