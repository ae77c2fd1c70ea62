// RMS norm forward and backward against double precision; the order of the weight's gradient
// against plain loops, bit for bit; rows do not see each other; results in place, in any place and
// with any number of threads are the same bits.
#include "kernels/rms_norm.h"
#include "tests/kernels_data.h"

#include <omp.h>

typedef struct Case {
    int64_t rows, hidden;
    DType dtype;
    float eps;
    void *x, *weight, *dy, *addend;
    float *rstd;
} Case;

static Case make_case(Data *data, int64_t rows_most)
{
    const int64_t widths[] = {1, 7, 8, 31, 255, 256, 511, 512, 513, 1000};
    Case c = {.rows = data_below(data, rows_most + 1),
              .hidden = widths[data_below(data, COUNT_OF(widths))],
              .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16,
              .eps = data_below(data, 2) ? 1e-5f : 1e-6f};
    float size = ldexpf(1.0f, (int)data_below(data, 40) - 20);
    c.x = data_normals(data, c.rows * c.hidden, c.dtype, size);
    c.weight = data_normals(data, c.hidden, c.dtype, 1.0f);
    c.dy = data_normals(data, c.rows * c.hidden, c.dtype, 1.0f);
    c.addend = data_normals(data, c.rows * c.hidden, c.dtype, 1.0f);
    c.rstd = data_poisoned(data, c.rows, sizeof(float));
    return c;
}

static void *run_forward(Data *data, const Case *c)
{
    void *y = data_poisoned(data, c->rows * c->hidden + 5, dtype_bytes(c->dtype, 1));
    RmsNormForward args = {.rows = c->rows,
                           .hidden = c->hidden,
                           .dtype = c->dtype,
                           .eps = c->eps,
                           .x = c->x,
                           .weight = c->weight,
                           .y = y,
                           .rstd_out = c->rstd};
    rms_norm_forward(&args, CPU);
    return y;
}

static RmsNormBackward backward_args(Data *data, const Case *c, bool added)
{
    uint64_t scratch = rms_norm_backward_scratch_bytes(c->rows, c->hidden);
    return (RmsNormBackward){
        .rows = c->rows,
        .hidden = c->hidden,
        .dtype = c->dtype,
        .x = c->x,
        .weight = c->weight,
        .rstd = c->rstd,
        .dy = c->dy,
        .addend = added ? c->addend : NULL,
        .dx = data_poisoned(data, c->rows * c->hidden + 5, dtype_bytes(c->dtype, 1)),
        .dweight = data_poisoned(data, c->hidden, sizeof(float)),
        .scratch = data_poisoned(data, (int64_t)scratch, 1)};
}

static void forward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data, 70);
        const void *y = run_forward(&data, &c);
        double share = ((double)c.hidden / 64 + 16) * FLT_EPSILON;
        for (int64_t row = 0; row < c.rows; row++) {
            double squares = 0;
            for (int64_t h = 0; h < c.hidden; h++)
                squares += pow(value_of(c.x, c.dtype, row * c.hidden + h), 2);
            double rstd = 1 / sqrt(squares / (double)c.hidden + (double)c.eps);
            expect_near(c.rstd[row], rstd, share * rstd, "rstd", row);
            for (int64_t i = row * c.hidden; i < (row + 1) * c.hidden; i++) {
                double weight = value_of(c.weight, c.dtype, i % c.hidden);
                double exact = value_of(c.x, c.dtype, i) * rstd * weight;
                double bound = (share + 3 * FLT_EPSILON + rounding_of(c.dtype)) * fabs(exact);
                expect_near(value_of(y, c.dtype, i), exact, bound + 0x1p-130, "y", i);
            }
        }
        for (int64_t i = c.rows * c.hidden; i < c.rows * c.hidden + 5; i++)
            expect_poison(y, c.dtype, i, "past y");
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One row of dx. half is the largest relative error of one f32 operation; c, the mean of g n, comes
// from a chain of hidden / 32 fused steps over terms that two more roundings each have touched.
static void expect_dx(const Case *c, const RmsNormBackward *args, int64_t row)
{
    double half = FLT_EPSILON / 2.0, rstd = c->rstd[row], mean = 0, size = 0;
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++) {
        double n = value_of(c->x, c->dtype, i) * rstd;
        double g =
            (double)value_of(c->dy, c->dtype, i) * value_of(c->weight, c->dtype, i % c->hidden);
        mean += g * n / (double)c->hidden;
        size += fabs(g * n) / (double)c->hidden;
    }
    double mean_error = ((double)c->hidden / 32 + 12) * half * size;
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++) {
        double n = value_of(c->x, c->dtype, i) * rstd;
        double g =
            (double)value_of(c->dy, c->dtype, i) * value_of(c->weight, c->dtype, i % c->hidden);
        double addend = args->addend ? (double)value_of(c->addend, c->dtype, i) : 0.0;
        double exact = rstd * (g - n * mean) + addend;
        double inner = 2 * half * (fabs(g) + 2 * fabs(n * mean)) + 1.01 * fabs(n) * mean_error;
        double bound = rstd * inner + 2 * half * rstd * fabs(g - n * mean) +
                       (half + rounding_of(c->dtype)) * (fabs(exact) + rstd * inner);
        expect_near(value_of(args->dx, c->dtype, i), exact, bound + 0x1p-120, "dx", i);
    }
}

static void backward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data, 70);
        run_forward(&data, &c);
        RmsNormBackward args = backward_args(&data, &c, data_below(&data, 2));
        rms_norm_backward(&args, CPU);
        for (int64_t row = 0; row < c.rows; row++)
            expect_dx(&c, &args, row);
        for (int64_t i = c.rows * c.hidden; i < c.rows * c.hidden + 5; i++)
            expect_poison(args.dx, c.dtype, i, "past dx");
        for (int64_t h = 0; h < c.hidden; h++) {
            double exact = 0, size = 0;
            for (int64_t row = 0; row < c.rows; row++) {
                int64_t i = row * c.hidden + h;
                double term = (double)value_of(c.x, c.dtype, i) * (double)c.rstd[row] *
                              value_of(c.dy, c.dtype, i);
                exact += term;
                size += fabs(term);
            }
            expect_near(args.dweight[h], exact, (double)(c.rows + 4) * FLT_EPSILON / 2 * size,
                        "dweight", h);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// The order that the header prescribes, as plain loops; stored, and added to what is there.
static void dweight_has_the_stated_order(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data, 200);
        run_forward(&data, &c);
        RmsNormBackward args = backward_args(&data, &c, false);
        args.accumulate = data_below(&data, 2);
        float *before = data_poisoned(&data, c.hidden, sizeof(float));
        for (int64_t h = 0; h < c.hidden && args.accumulate; h++)
            args.dweight[h] = before[h] = data_normal(&data);
        rms_norm_backward(&args, CPU);
        for (int64_t h = 0; h < c.hidden; h++) {
            float total = 0;
            for (int64_t begin = 0; begin < c.rows; begin += RMS_NORM_SLAB_ROWS) {
                float slab = 0;
                for (int64_t row = begin; row < c.rows && row < begin + RMS_NORM_SLAB_ROWS; row++) {
                    volatile float n = value_of(c.x, c.dtype, row * c.hidden + h) * c.rstd[row];
                    slab = fmaf(value_of(c.dy, c.dtype, row * c.hidden + h), n, slab);
                }
                total += slab;
            }
            expect_same(args.dweight[h], args.accumulate ? before[h] + total : total, "dweight", h);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// A row alone, its neighbours poisoned, gives the bits it gives among others; in place too.
static void rows_stand_alone(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data, 50);
        if (c.rows == 0)
            continue;
        const void *y = run_forward(&data, &c);
        RmsNormBackward args = backward_args(&data, &c, true);
        rms_norm_backward(&args, CPU);
        uint64_t row_bytes = dtype_bytes(c.dtype, (uint64_t)c.hidden);
        int64_t row = data_below(&data, c.rows);
        size_t at = (size_t)row * row_bytes;
        Case alone = c;
        float rstd = NAN;
        alone.rows = 1;
        alone.rstd = &rstd;
        void *x = data_poisoned(&data, (int64_t)row_bytes, 1);
        void *dx = data_poisoned(&data, (int64_t)row_bytes, 1);
        memcpy(x, (char *)c.x + at, row_bytes);
        memcpy(dx, (char *)(data_below(&data, 2) ? c.dy : c.addend) + at, row_bytes);
        bool over_dy = memcmp(dx, (char *)c.dy + at, row_bytes) == 0;
        alone.x = x;
        RmsNormBackward backward = backward_args(&data, &alone, true);
        backward.rstd = c.rstd + row;
        backward.dy = over_dy ? dx : (char *)c.dy + at;
        backward.addend = over_dy ? (char *)c.addend + at : dx;
        backward.dx = dx;
        backward.dweight = NULL;
        backward.scratch = NULL;
        rms_norm_backward(&backward, CPU);
        RmsNormForward forward = {.rows = 1,
                                  .hidden = c.hidden,
                                  .dtype = c.dtype,
                                  .eps = c.eps,
                                  .x = x,
                                  .weight = c.weight,
                                  .y = x,
                                  .rstd_out = &rstd};
        rms_norm_forward(&forward, CPU);
        expect_same(rstd, c.rstd[row], "rstd alone", row);
        assert_memory_equal(x, (const char *)y + at, row_bytes);
        assert_memory_equal(dx, (const char *)args.dx + at, row_bytes);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    int threads = omp_get_max_threads();
    Case c = {.rows = 203, .hidden = 517, .dtype = DTYPE_BF16, .eps = 1e-5f};
    int64_t elements = c.rows * c.hidden;
    c.x = data_normals(&data, elements, c.dtype, 1.0f);
    c.weight = data_normals(&data, c.hidden, c.dtype, 1.0f);
    c.dy = data_normals(&data, elements, c.dtype, 1.0f);
    c.addend = data_normals(&data, elements, c.dtype, 1.0f);
    c.rstd = data_poisoned(&data, c.rows, sizeof(float));
    void *y[2];
    RmsNormBackward args[2];
    for (int run = 0; run < 2; run++) {
        omp_set_num_threads(run ? 5 : 1);
        y[run] = run_forward(&data, &c);
        args[run] = backward_args(&data, &c, true);
        rms_norm_backward(&args[run], CPU);
    }
    omp_set_num_threads(threads);
    assert_memory_equal(y[0], y[1], (size_t)elements * 2);
    assert_memory_equal(args[0].dx, args[1].dx, (size_t)elements * 2);
    assert_memory_equal(args[0].dweight, args[1].dweight, (size_t)c.hidden * 4);
    data_destroy(&data);
}

// Zeros, squares that overflow or vanish, NaN and infinity: each stays in its row.
static void extremes(void **state)
{
    (void)state;
    const float value[] = {0.0f, 1e30f, 1e-30f, NAN, INFINITY, 2.0f};
    enum { ROWS = COUNT_OF(value), HIDDEN = 3 };
    float x[ROWS][HIDDEN], y[ROWS][HIDDEN], dx[ROWS][HIDDEN], dy[ROWS][HIDDEN], rstd[ROWS];
    float weight[HIDDEN] = {1.0f, 2.0f, -3.0f};
    for (int row = 0; row < ROWS; row++)
        for (int h = 0; h < HIDDEN; h++) {
            x[row][h] = value[row];
            dy[row][h] = 1.0f;
        }
    RmsNormForward forward = {.rows = ROWS,
                              .hidden = HIDDEN,
                              .dtype = DTYPE_F32,
                              .eps = 1e-6f,
                              .x = x,
                              .weight = weight,
                              .y = y,
                              .rstd_out = rstd};
    rms_norm_forward(&forward, CPU);
    RmsNormBackward backward = {.rows = ROWS,
                                .hidden = HIDDEN,
                                .dtype = DTYPE_F32,
                                .x = x,
                                .weight = weight,
                                .rstd = rstd,
                                .dy = dy,
                                .dx = dx};
    rms_norm_backward(&backward, CPU);
    for (int h = 0; h < HIDDEN; h++) {
        expect_near(y[0][h], 0, 0, "y of zeros", h);
        expect_near(dx[0][h], 1e3 * (double)weight[h], 1e-3, "dx at zero", h);
        expect_near(y[1][h], 0, 0, "y, squares overflow", h);
        expect_near(y[2][h], 1e-27 * (double)weight[h], 1e-32, "y, squares vanish", h);
        assert_true(isnan(y[3][h]) && isnan(dx[3][h]));
        assert_true(isnan(y[4][h])); // inf * (1 / inf)
        expect_near(y[5][h], weight[h], 1e-6, "y", h);
        assert_true(isfinite(dx[5][h]));
    }
}

static void no_rows_give_a_zero_dweight(void **state)
{
    (void)state;
    float dweight[2] = {NAN, NAN};
    RmsNormBackward args = {.hidden = 2, .dtype = DTYPE_F32, .dweight = dweight};
    rms_norm_backward(&args, CPU);
    expect_same(dweight[0], 0.0f, "dweight", 0);
    dweight[1] = 5.0f;
    args.accumulate = true;
    rms_norm_backward(&args, CPU);
    expect_same(dweight[1], 5.0f, "dweight accumulated", 1);
}

static void costs(void **state)
{
    (void)state;
    float rstd;
    RmsNormForward forward = {.rows = 3, .hidden = 5, .dtype = DTYPE_BF16, .rstd_out = &rstd};
    expect_near(rms_norm_forward_cost(&forward).bytes, (2 * 15 + 5) * 2 + 3 * 4, 0, "forward", 0);
    RmsNormBackward backward = {.rows = 3, .hidden = 5, .dtype = DTYPE_F32, .dweight = &rstd};
    expect_near(rms_norm_backward_cost(&backward).bytes, (3 * 15 + 5) * 4 + 3 * 4 + 5 * 4, 0,
                "backward", 0);
    backward.addend = backward.dweight;
    backward.accumulate = true;
    expect_near(rms_norm_backward_cost(&backward).bytes, (4 * 15 + 5) * 4 + 3 * 4 + 10 * 4, 0,
                "backward, everything", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_close),
        cmocka_unit_test(backward_is_close),
        cmocka_unit_test(dweight_has_the_stated_order),
        cmocka_unit_test(rows_stand_alone),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(extremes),
        cmocka_unit_test(no_rows_give_a_zero_dweight),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
