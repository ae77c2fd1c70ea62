// Cross-entropy over whole and divided vocabularies against double precision: maxima, sums, losses,
// gradients; ignored rows; NaN and infinity; rows do not see each other; results in place and with
// any number of threads are the same bits.
#include "kernels/cpu_math.h"
#include "kernels/cross_entropy.h"
#include "tests/kernels_data.h"

#include <omp.h>

enum { PARTS_MAX = 5 };

// Rows of logits, the vocabulary cut into parts as ranks would have them.
typedef struct Case {
    int64_t rows, vocab;
    DType dtype;
    int parts;
    int64_t first[PARTS_MAX + 1]; // of part p; first[parts] = vocab
    void *logits[PARTS_MAX];      // [rows, first[p + 1] - first[p]]
    int32_t *targets;
    float *row_max, *row_sum, *target_logit, *loss; // over the whole vocabulary
    double totals[CROSS_ENTROPY_TOTALS];
} Case;

static int64_t part_columns(const Case *c, int part)
{
    return c->first[part + 1] - c->first[part];
}

static float logit(const Case *c, int64_t row, int64_t column)
{
    int part = 0;
    while (column >= c->first[part + 1])
        part++;
    return value_of(c->logits[part], c->dtype,
                    row * part_columns(c, part) + column - c->first[part]);
}

static void cut_vocabulary(Data *data, Case *c)
{
    c->first[c->parts] = c->vocab;
    for (int p = c->parts - 1; p > 0; p--) // some parts are empty
        c->first[p] = data_below(data, c->first[p + 1] + 1);
}

static Case make_case(Data *data)
{
    const int64_t sizes[] = {1, 2, 7, 8, 255, 256, 257, 511, 512, 513, 1300};
    Case c = {.rows = data_below(data, 30),
              .vocab = sizes[data_below(data, COUNT_OF(sizes))],
              .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16,
              .parts = 1 + (int)data_below(data, PARTS_MAX)};
    cut_vocabulary(data, &c);
    float deviation = data_below(data, 2) ? 1.0f : 30.0f;
    for (int p = 0; p < c.parts; p++)
        c.logits[p] = data_normals(data, c.rows * part_columns(&c, p), c.dtype, deviation);
    c.targets = data_poisoned(data, c.rows, sizeof(int32_t));
    for (int64_t row = 0; row < c.rows; row++)
        c.targets[row] =
            data_below(data, 6) ? (int32_t)data_below(data, c.vocab) : CROSS_ENTROPY_IGNORED;
    return c;
}

// The parts one after another, and between them what the all-reduces would do.
static void run_forward(Data *data, Case *c)
{
    c->row_max = data_poisoned(data, c->rows, sizeof(float));
    c->row_sum = data_poisoned(data, c->rows, sizeof(float));
    c->target_logit = data_poisoned(data, c->rows, sizeof(float));
    c->loss = data_poisoned(data, c->rows, sizeof(float));
    float *part_max = data_poisoned(data, c->rows, sizeof(float));
    float *part_sum = data_poisoned(data, c->rows, sizeof(float));
    float *part_logit = data_poisoned(data, c->rows, sizeof(float));
    for (int p = 0; p < c->parts; p++) {
        CrossEntropyRowMax args = {.rows = c->rows,
                                   .vocab_count = part_columns(c, p),
                                   .dtype = c->dtype,
                                   .logits = c->logits[p],
                                   .row_max = part_max};
        cross_entropy_row_max(&args, CPU);
        for (int64_t row = 0; row < c->rows; row++)
            c->row_max[row] = p ? fmaxf(c->row_max[row], part_max[row]) : part_max[row];
    }
    for (int p = 0; p < c->parts; p++) {
        CrossEntropyRowSum args = {.rows = c->rows,
                                   .vocab_first = c->first[p],
                                   .vocab_count = part_columns(c, p),
                                   .dtype = c->dtype,
                                   .logits = c->logits[p],
                                   .row_max = c->row_max,
                                   .targets = c->targets,
                                   .row_sum = part_sum,
                                   .target_logit = part_logit};
        cross_entropy_row_sum(&args, CPU);
        for (int64_t row = 0; row < c->rows; row++) {
            c->row_sum[row] = p ? c->row_sum[row] + part_sum[row] : part_sum[row];
            c->target_logit[row] = p ? c->target_logit[row] + part_logit[row] : part_logit[row];
        }
    }
    CrossEntropyLoss args = {.rows = c->rows,
                             .row_max = c->row_max,
                             .row_sum = c->row_sum,
                             .target_logit = c->target_logit,
                             .targets = c->targets,
                             .loss = c->loss,
                             .totals = c->totals};
    cross_entropy_loss(&args, CPU);
}

static void *run_backward(Data *data, const Case *c, int part, float scale, bool in_place)
{
    int64_t elements = c->rows * part_columns(c, part);
    void *dlogits = data_poisoned(data, elements + 3, dtype_bytes(c->dtype, 1));
    if (in_place)
        memcpy(dlogits, c->logits[part], dtype_bytes(c->dtype, (uint64_t)elements));
    CrossEntropyBackward args = {.rows = c->rows,
                                 .vocab_first = c->first[part],
                                 .vocab_count = part_columns(c, part),
                                 .dtype = c->dtype,
                                 .logits = in_place ? dlogits : c->logits[part],
                                 .row_max = c->row_max,
                                 .row_sum = c->row_sum,
                                 .targets = c->targets,
                                 .scale = scale,
                                 .count = &c->totals[CROSS_ENTROPY_COUNT],
                                 .dlogits = dlogits};
    cross_entropy_backward(&args, CPU);
    return dlogits;
}

// A row in f64, and how far the f32 sum may be from it, relative.
typedef struct Exact {
    double largest, sum, sum_share;
} Exact;

static Exact exact_row(const Case *c, int64_t row)
{
    Exact exact = {.largest = -INFINITY};
    for (int64_t v = 0; v < c->vocab; v++)
        exact.largest = fmax(exact.largest, (double)logit(c, row, v));
    double terms_error = 0;
    for (int64_t v = 0; v < c->vocab; v++) {
        double d = (double)logit(c, row, v) - exact.largest, e = exp(d);
        exact.sum += e;
        terms_error += (3 + 2 * fabs(d)) * FLT_EPSILON * e;
    }
    double additions = ((double)c->vocab / 512 + 8 + c->parts) * FLT_EPSILON;
    exact.sum_share = terms_error / exact.sum + additions;
    return exact;
}

static void forward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 80; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        run_forward(&data, &c);
        double total = 0, total_bound = 0, counted = 0;
        for (int64_t row = 0; row < c.rows; row++) {
            Exact exact = exact_row(&c, row);
            expect_near(c.row_max[row], exact.largest, 0, "row_max", row);
            expect_near(c.row_sum[row], exact.sum, exact.sum_share * exact.sum, "row_sum", row);
            if (c.targets[row] == CROSS_ENTROPY_IGNORED) {
                expect_same(c.loss[row], 0.0f, "ignored loss", row);
                expect_same(c.target_logit[row], 0.0f, "ignored target", row);
                continue;
            }
            float target = logit(&c, row, c.targets[row]);
            double loss = log(exact.sum) + exact.largest - (double)target;
            double bound = 1.01 * exact.sum_share + rounding_of(DTYPE_F32) * loss;
            expect_same(c.target_logit[row], target, "target_logit", row);
            expect_near(c.loss[row], loss, bound, "loss", row);
            total += (double)c.loss[row];
            total_bound += 40 * DBL_EPSILON * loss;
            counted++;
        }
        expect_near(c.totals[CROSS_ENTROPY_SUM], total, total_bound, "sum of losses", 0);
        expect_near(c.totals[CROSS_ENTROPY_COUNT], counted, 0, "rows that counted", 0);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One row's gradient in one part.
static void expect_gradient(const Case *c, int part, int64_t row, double scale, const void *dlogits)
{
    Exact exact = exact_row(c, row);
    double factor = scale / c->totals[CROSS_ENTROPY_COUNT], last = rounding_of(c->dtype);
    for (int64_t i = 0, columns = part_columns(c, part); i < columns; i++) {
        int64_t at = row * columns + i, column = c->first[part] + i;
        double ours = value_of(dlogits, c->dtype, at);
        double d = (double)logit(c, row, column) - exact.largest;
        double probability = factor * exp(d) / exact.sum;
        double gradient = probability - (column == c->targets[row] ? factor : 0.0);
        double error = probability * ((4 + 2 * fabs(d)) * FLT_EPSILON + exact.sum_share) * 1.01;
        double bound = error + (2 * FLT_EPSILON + last) * fabs(gradient) + last * error;
        if (c->targets[row] == CROSS_ENTROPY_IGNORED)
            expect_near(ours, 0, 0, "ignored gradient", at);
        else
            expect_near(ours, gradient, bound + 0x1p-130, "dlogits", at);
    }
}

static void backward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        run_forward(&data, &c);
        float scale = data_below(&data, 2) ? 1.0f : 512.0f;
        for (int p = 0; p < c.parts; p++) {
            int64_t elements = c.rows * part_columns(&c, p);
            const void *dlogits = run_backward(&data, &c, p, scale, false);
            for (int64_t row = 0; row < c.rows; row++)
                expect_gradient(&c, p, row, scale, dlogits);
            for (int64_t i = elements; i < elements + 3; i++)
                expect_poison(dlogits, c.dtype, i, "past dlogits");
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// The header's order of additions, as plain loops over the same exponentials.
static void sums_have_the_stated_order(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        c.parts = 1;
        cut_vocabulary(&data, &c);
        c.logits[0] = data_normals(&data, c.rows * c.vocab, c.dtype, 2.0f);
        run_forward(&data, &c);
        for (int64_t row = 0; row < c.rows; row++) {
            float sum[256] = {0};
            for (int64_t v = 0; v < c.vocab; v++)
                sum[v % 256] += cpu_exp_negative(logit(&c, row, v) - c.row_max[row]);
            for (int first = 0; first < 256; first += 8)
                for (int apart = 4; apart > 0; apart /= 2)
                    for (int i = first; i < first + apart; i++)
                        sum[i] += sum[i + apart];
            for (int apart = 128; apart >= 8; apart /= 2)
                for (int i = 0; i < apart; i += 8)
                    sum[i] += sum[i + apart];
            expect_same(c.row_sum[row], sum[0], "row_sum", row);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void in_place_and_threads_change_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    int threads = omp_get_max_threads();
    for (int round = 0; round < 10; round++) {
        int mark = data.blocks;
        Case c = {.rows = 1 + data_below(&data, 150),
                  .vocab = 900 + data_below(&data, 300),
                  .dtype = data_below(&data, 2) ? DTYPE_F32 : DTYPE_BF16,
                  .parts = 1};
        cut_vocabulary(&data, &c);
        c.logits[0] = data_normals(&data, c.rows * c.vocab, c.dtype, 5.0f);
        c.targets = data_poisoned(&data, c.rows, sizeof(int32_t));
        for (int64_t row = 0; row < c.rows; row++)
            c.targets[row] = (int32_t)data_below(&data, c.vocab);
        Case many = c;
        omp_set_num_threads(1);
        run_forward(&data, &c);
        const void *beside = run_backward(&data, &c, 0, 1.0f, false);
        omp_set_num_threads(5);
        run_forward(&data, &many);
        const void *over = run_backward(&data, &many, 0, 1.0f, true);
        assert_memory_equal(c.row_sum, many.row_sum, sizeof(float) * (size_t)c.rows);
        assert_memory_equal(c.loss, many.loss, sizeof(float) * (size_t)c.rows);
        assert_memory_equal(c.totals, many.totals, sizeof c.totals);
        assert_memory_equal(beside, over, dtype_bytes(c.dtype, (uint64_t)(c.rows * c.vocab)));
        data_release(&data, mark);
    }
    omp_set_num_threads(threads);
    data_destroy(&data);
}

// A row alone gives the bits it gives among others.
static void rows_stand_alone(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        if (c.rows == 0)
            continue;
        run_forward(&data, &c);
        Case alone = c;
        int64_t row = data_below(&data, c.rows);
        alone.rows = 1;
        alone.targets = &c.targets[row];
        for (int p = 0; p < c.parts; p++) {
            size_t bytes = dtype_bytes(c.dtype, (uint64_t)part_columns(&c, p));
            alone.logits[p] = data_poisoned(&data, (int64_t)bytes, 1);
            if (bytes)
                memcpy(alone.logits[p], (char *)c.logits[p] + (size_t)row * bytes, bytes);
        }
        run_forward(&data, &alone);
        expect_same(alone.row_sum[0], c.row_sum[row], "row_sum alone", row);
        expect_same(alone.loss[0], c.loss[row], "loss alone", row);
        alone.totals[CROSS_ENTROPY_COUNT] = c.totals[CROSS_ENTROPY_COUNT];
        for (int p = 0; p < c.parts; p++) {
            const void *among = run_backward(&data, &c, p, 1.0f, false);
            const void *single = run_backward(&data, &alone, p, 1.0f, false);
            for (int64_t i = 0, columns = part_columns(&c, p); i < columns; i++)
                expect_same(value_of(single, c.dtype, i),
                            value_of(among, c.dtype, row * columns + i), "dlogits alone", i);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

// One row each: what a whole row becomes, in two parts of the vocabulary.
static void extremes(void **state)
{
    (void)state;
    enum { ROWS = 7 };
    const float inf = INFINITY;
    float left[ROWS][2] = {{NAN, 1},       {inf, 0},    {-inf, -inf}, {-inf, 3},
                           {1e38f, 1e38f}, {-200, 100}, {0, 0}};
    float right[ROWS][1] = {{2}, {5}, {-inf}, {-inf}, {-3e38f}, {-3e38f}, {NAN}};
    int32_t targets[ROWS] = {1, 1, 0, 1, 0, 0, CROSS_ENTROPY_IGNORED};
    Data data = data_create();
    Case c = {.rows = ROWS,
              .vocab = 3,
              .dtype = DTYPE_F32,
              .parts = 2,
              .first = {0, 2, 3},
              .logits = {left, right},
              .targets = targets};
    run_forward(&data, &c);
    for (int row = 0; row < 3; row++)
        assert_true(isnan(c.loss[row]));
    expect_same(c.loss[3], 0.0f, "all but the target at -inf", 3);
    expect_near(c.loss[4], log(2), 1e-6, "large logits", 4);
    expect_near(c.loss[5], 300, 1e-4, "far from the target", 5);
    expect_same(c.loss[6], 0.0f, "ignored, with NaN", 6);
    assert_true(isnan(c.totals[CROSS_ENTROPY_SUM]));
    expect_near(c.totals[CROSS_ENTROPY_COUNT], 6, 0, "rows that counted", 0);
    for (int p = 0; p < 2; p++) {
        const float *dlogits = run_backward(&data, &c, p, 6.0f, false);
        int64_t columns = part_columns(&c, p);
        for (int64_t i = 0; i < 3 * columns; i++)
            assert_true(isnan(dlogits[i]));
        for (int64_t i = 3 * columns; i < ROWS * columns; i++)
            assert_true(isfinite(dlogits[i]));
        for (int64_t i = 6 * columns; i < ROWS * columns; i++)
            expect_same(dlogits[i], 0.0f, "ignored row", i);
    }
    data_destroy(&data);
}

// Only ignored rows: no division by their number 0. Totals add up over calls.
static void nothing_counts(void **state)
{
    (void)state;
    Data data = data_create();
    float logits[2] = {1, 2};
    int32_t ignored = CROSS_ENTROPY_IGNORED;
    Case c = {.rows = 1,
              .vocab = 2,
              .dtype = DTYPE_F32,
              .parts = 1,
              .first = {0, 2},
              .logits = {logits},
              .targets = &ignored};
    run_forward(&data, &c);
    expect_near(c.totals[CROSS_ENTROPY_COUNT], 0, 0, "rows that counted", 0);
    const float *dlogits = run_backward(&data, &c, 0, 1.0f, false);
    expect_same(dlogits[0], 0.0f, "dlogits", 0);
    expect_same(dlogits[1], 0.0f, "dlogits", 1);
    int32_t target = 0;
    double totals[CROSS_ENTROPY_TOTALS] = {10, 20};
    CrossEntropyLoss args = {.rows = 1,
                             .row_max = c.row_max,
                             .row_sum = c.row_sum,
                             .target_logit = logits,
                             .targets = &target,
                             .totals = totals,
                             .accumulate = true};
    cross_entropy_loss(&args, CPU);
    expect_near(totals[CROSS_ENTROPY_SUM], 10 + log(1 + exp(1)), 1e-6, "sum of losses", 0);
    expect_near(totals[CROSS_ENTROPY_COUNT], 21, 0, "rows that counted", 0);
    data_destroy(&data);
}

static void costs(void **state)
{
    (void)state;
    CrossEntropyRowMax largest = {.rows = 3, .vocab_count = 5, .dtype = DTYPE_BF16};
    expect_near(cross_entropy_row_max_cost(&largest).bytes, 15 * 2 + 3 * 4, 0, "max", 0);
    CrossEntropyRowSum sum = {.rows = 3, .vocab_count = 5, .dtype = DTYPE_F32};
    expect_near(cross_entropy_row_sum_cost(&sum).bytes, 15 * 4 + 4 * 3 * 4, 0, "sum", 0);
    CrossEntropyLoss loss = {.rows = 3};
    expect_near(cross_entropy_loss_cost(&loss).bytes, 3 * 16 + 16, 0, "loss", 0);
    CrossEntropyBackward backward = {.rows = 3, .vocab_count = 5, .dtype = DTYPE_BF16};
    expect_near(cross_entropy_backward_cost(&backward).bytes, 2 * 15 * 2 + 3 * 12, 0, "grad", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_close),
        cmocka_unit_test(backward_is_close),
        cmocka_unit_test(sums_have_the_stated_order),
        cmocka_unit_test(in_place_and_threads_change_nothing),
        cmocka_unit_test(rows_stand_alone),
        cmocka_unit_test(extremes),
        cmocka_unit_test(nothing_counts),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
