// Sums and copies of flat arrays, bit for bit; sums of squares against plain loops in the stated
// order and against long double; the clip factor.
#include "kernels/elementwise.h"
#include "tests/kernels_data.h"

#include <omp.h>

static const int64_t sizes[] = {0, 1, 7, 511, 512, 513, 5000, 8191, 8192, 8193, 70001};

static DType any_dtype(Data *data)
{
    return data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16;
}

static float narrowed(float value, DType dtype)
{
    return dtype == DTYPE_F32 ? value : f32_from_bf16(bf16_from_f32(value));
}

static void sums_are_rounded_once(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        AddRows args = {.count = sizes[data_below(&data, COUNT_OF(sizes))],
                        .dtype = any_dtype(&data)};
        void *a = data_normals(&data, args.count, args.dtype, 1.0f);
        void *b = data_normals(&data, args.count, args.dtype, 0.1f);
        if (args.count > 3) {
            put_value(a, args.dtype, 0, NAN);
            put_value(a, args.dtype, 1, INFINITY);
            put_value(a, args.dtype, 2, 3.3e38f);
            put_value(b, args.dtype, 2, 3.3e38f);
        }
        size_t bytes = dtype_bytes(args.dtype, (uint64_t)args.count);
        void *y = data_poisoned(&data, args.count + 3, dtype_bytes(args.dtype, 1));
        void *over = data_poisoned(&data, args.count, dtype_bytes(args.dtype, 1));
        args.a = a;
        args.b = b;
        args.y = y;
        add_rows(&args, CPU);
        for (int64_t i = 0; i < args.count; i++) {
            volatile float sum = value_of(a, args.dtype, i) + value_of(b, args.dtype, i);
            expect_same(value_of(y, args.dtype, i), narrowed(sum, args.dtype), "y", i);
        }
        for (int64_t i = args.count; i < args.count + 3; i++)
            expect_poison(y, args.dtype, i, "past y");
        bool over_a = data_below(&data, 2);
        if (bytes)
            memcpy(over, over_a ? a : b, bytes);
        args.a = over_a ? over : a;
        args.b = over_a ? b : over;
        args.y = over;
        add_rows(&args, CPU);
        assert_true(bytes == 0 || memcmp(over, y, bytes) == 0);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void casts_round_to_nearest(void **state)
{
    (void)state;
    const float special[] = {0.0f, -0.0f, NAN, INFINITY, -INFINITY, 3.4e38f, 1e-40f, 1.00390625f};
    Data data = data_create();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        CastCopy args = {.count = sizes[data_below(&data, COUNT_OF(sizes))],
                         .from_dtype = any_dtype(&data),
                         .to_dtype = any_dtype(&data)};
        void *from = data_normals(&data, args.count, args.from_dtype, 100.0f);
        for (int64_t i = 0; i < (int64_t)COUNT_OF(special) && i < args.count; i++)
            put_value(from, args.from_dtype, i, special[i]);
        args.from = from;
        args.to = data_poisoned(&data, args.count + 3, dtype_bytes(args.to_dtype, 1));
        cast_copy(&args, CPU);
        for (int64_t i = 0; i < args.count; i++)
            expect_same(value_of(args.to, args.to_dtype, i),
                        narrowed(value_of(from, args.from_dtype, i), args.to_dtype), "to", i);
        for (int64_t i = args.count; i < args.count + 3; i++)
            expect_poison(args.to, args.to_dtype, i, "past the end");
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static double pairwise(double *sum, int count, int stride)
{
    for (int apart = count / 2; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            sum[i * stride] += sum[(i + apart) * stride];
    return sum[0];
}

// The order of the header, as plain loops.
static double ordered_squares(const void *x, DType dtype, int64_t count)
{
    double of_pieces[1024] = {0};
    for (int64_t piece = 0; piece * SUM_SQUARES_PIECE < count; piece++) {
        double sum[256] = {0};
        for (int64_t i = 0; i < SUM_SQUARES_PIECE && piece * SUM_SQUARES_PIECE + i < count; i++) {
            double value = value_of(x, dtype, piece * SUM_SQUARES_PIECE + i);
            sum[i % 256] += value * value;
        }
        for (int group = 0; group < 32; group++)
            pairwise(sum + 8 * group, 8, 1);
        of_pieces[piece % 1024] += pairwise(sum, 32, 8);
    }
    return pairwise(of_pieces, 1024, 1);
}

static double run_squares(Data *data, const void *x, DType dtype, int64_t count, double before)
{
    double sum = before;
    SumSquares args = {.count = count,
                       .dtype = dtype,
                       .x = x,
                       .sum = &sum,
                       .accumulate = before != 0.0,
                       .scratch =
                           data_poisoned(data, (int64_t)sum_squares_scratch_bytes(count), 1)};
    sum_squares(&args, CPU);
    return sum;
}

static void squares_have_the_stated_order(void **state)
{
    (void)state;
    Data data = data_create();
    int threads = omp_get_max_threads();
    for (int round = 0; round < 40; round++) {
        int mark = data.blocks;
        DType dtype = any_dtype(&data);
        int64_t count = sizes[data_below(&data, COUNT_OF(sizes))];
        float size = ldexpf(1.0f, (int)data_below(&data, 120) - 60);
        const void *x = data_normals(&data, count, dtype, size);
        long double exact = 0;
        for (int64_t i = 0; i < count; i++)
            exact += (long double)value_of(x, dtype, i) * (long double)value_of(x, dtype, i);
        omp_set_num_threads(1 + (int)data_below(&data, 5));
        double sum = run_squares(&data, x, dtype, count, 0.0);
        expect_near(sum, ordered_squares(x, dtype, count), 0, "sum of squares", count);
        expect_near(sum, (double)exact, 200 * DBL_EPSILON * (double)exact, "sum", count);
        expect_near(run_squares(&data, x, dtype, count, 3.5), 3.5 + sum, 0, "added", count);
        data_release(&data, mark);
    }
    omp_set_num_threads(threads);
    data_destroy(&data);
}

// More pieces than partial sums over pieces.
static void squares_of_many_pieces(void **state)
{
    (void)state;
    Data data = data_create();
    int64_t count = 1030 * (int64_t)SUM_SQUARES_PIECE + 17;
    uint16_t *x = data_poisoned(&data, count, sizeof(uint16_t));
    for (int64_t i = 0; i < count; i++)
        x[i] = (uint16_t)(0x3F80 + (i * 2654435761u >> 7) % 128); // 1 .. 2
    double sum = run_squares(&data, x, DTYPE_BF16, count, 0.0);
    expect_near(sum, ordered_squares(x, DTYPE_BF16, count), 0, "sum of squares", count);
    x[count - 1] = 0x7F80;
    assert_true(isinf(run_squares(&data, x, DTYPE_BF16, count, 0.0)));
    x[0] = 0x7FC0;
    assert_true(isnan(run_squares(&data, x, DTYPE_BF16, count, 0.0)));
    data_destroy(&data);
}

static void clip_factors(void **state)
{
    (void)state;
    const double rows[][3] = {
        // sum of squares, largest norm, expected
        {4.0, 1.0, 1.0 / (2.0 + 1e-6)}, {0.25, 1.0, 1.0},     {0.0, 1.0, 1.0},
        {1.0, 1.0, 1.0 / (1.0 + 1e-6)}, {INFINITY, 1.0, 0.0}, {NAN, 1.0, NAN},
        {1e200, 2.0, 2e-100},           {4.0, 0.0, 0.0},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        float scale = -1.0f, norm = -1.0f;
        ClipScale args = {
            .sum = &rows[i][0], .max_norm = rows[i][1], .scale = &scale, .norm = &norm};
        clip_scale(&args, CPU);
        expect_same(scale, (float)rows[i][2], "scale", (int64_t)i);
        expect_same(norm, (float)sqrt(rows[i][0]), "norm", (int64_t)i);
        norm = -1.0f;
        args.norm = NULL;
        clip_scale(&args, CPU);
        expect_same(norm, -1.0f, "norm that was not wanted", (int64_t)i);
    }
}

static void costs(void **state)
{
    (void)state;
    AddRows add = {.count = 10, .dtype = DTYPE_BF16};
    expect_near(add_rows_cost(&add).bytes, 60, 0, "add", 0);
    CastCopy cast = {.count = 10, .from_dtype = DTYPE_F32, .to_dtype = DTYPE_BF16};
    expect_near(cast_copy_cost(&cast).bytes, 60, 0, "cast", 0);
    SumSquares squares = {.count = 10, .dtype = DTYPE_F32};
    expect_near(sum_squares_cost(&squares).bytes, 48, 0, "squares", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_rounded_once),
        cmocka_unit_test(casts_round_to_nearest),
        cmocka_unit_test(squares_have_the_stated_order),
        cmocka_unit_test(squares_of_many_pieces),
        cmocka_unit_test(clip_factors),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
