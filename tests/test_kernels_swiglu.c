// SwiGLU forward and backward against double precision; skipped rows and rows past the end keep
// their poison; results in place equal results beside; the routing weight's gradient has the bits
// of row_dot over what the forward stored.
#include "kernels/moe_combine.h"
#include "kernels/swiglu.h"
#include "tests/kernels_data.h"

typedef struct Case {
    int64_t inner, rows, rows_max;
    DType dtype;
    int32_t rows_total;
    int32_t *row_map; // or NULL
    void *gu, *da;
    float *weight; // or NULL
} Case;

static bool is_real(const Case *c, int64_t row)
{
    return row < c->rows_total && (!c->row_map || c->row_map[row] >= 0);
}

// Padding rows are NaN in every input.
static Case make_case(Data *data)
{
    const int64_t inners[] = {1, 7, 8, 31, 255, 256, 511, 512, 513, 1000};
    Case c = {.inner = inners[data_below(data, COUNT_OF(inners))],
              .rows_total = (int32_t)data_below(data, 40),
              .dtype = data_below(data, 2) ? DTYPE_F32 : DTYPE_BF16};
    c.rows_max = c.rows_total + 1 + data_below(data, 5);
    c.row_map = data_below(data, 4) ? data_poisoned(data, c.rows_max, sizeof(int32_t)) : NULL;
    c.gu = data_poisoned(data, c.rows_max * 2 * c.inner, dtype_bytes(c.dtype, 1));
    c.da = data_poisoned(data, c.rows_max * c.inner, dtype_bytes(c.dtype, 1));
    c.weight = data_below(data, 4) ? data_poisoned(data, c.rows_max, sizeof(float)) : NULL;
    for (int64_t row = 0; row < c.rows_max; row++) {
        if (c.row_map && data_below(data, 3))
            c.row_map[row] = (int32_t)data_below(data, 1000);
        if (!is_real(&c, row))
            continue;
        if (c.weight)
            c.weight[row] = data_normal(data);
        for (int64_t i = 0; i < 2 * c.inner; i++) // some gates far into saturation
            put_value(c.gu, c.dtype, row * 2 * c.inner + i,
                      data_normal(data) * (data_below(data, 8) ? 2.0f : 40.0f));
        for (int64_t i = 0; i < c.inner; i++)
            put_value(c.da, c.dtype, row * c.inner + i, data_normal(data));
    }
    return c;
}

static void *run_forward(Data *data, const Case *c)
{
    void *a = data_poisoned(data, c->rows_max * c->inner, dtype_bytes(c->dtype, 1));
    SwigluForward args = {.inner = c->inner,
                          .rows_max = c->rows_max,
                          .dtype = c->dtype,
                          .rows_total = &c->rows_total,
                          .row_map = c->row_map,
                          .gu = c->gu,
                          .a = a};
    swiglu_forward(&args, CPU);
    return a;
}

// sigmoid 4 ulp, two products, one rounding to the storage type; below the normal range 2^-149 per
// step, times u.
static void forward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        const void *a = run_forward(&data, &c);
        for (int64_t i = 0; i < c.rows_max * c.inner; i++) {
            int64_t row = i / c.inner, at = row * 2 * c.inner + i % c.inner;
            if (!is_real(&c, row)) {
                expect_poison(a, c.dtype, i, "a");
                continue;
            }
            double g = value_of(c.gu, c.dtype, at), u = value_of(c.gu, c.dtype, at + c.inner);
            double exact = g / (1.0 + exp(-g)) * u;
            double bound = (6 * FLT_EPSILON + rounding_of(c.dtype)) * fabs(exact);
            expect_near(value_of(a, c.dtype, i), exact, bound + 0x1p-130 * (1 + fabs(u)), "a", i);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

typedef struct Gradients {
    void *dgu, *a_weighted;
    float *dweight;
} Gradients;

static Gradients run_backward(Data *data, const Case *c, bool in_place)
{
    uint64_t bytes = dtype_bytes(c->dtype, (uint64_t)(c->rows_max * c->inner));
    Gradients out = {data_poisoned(data, c->rows_max * 2 * c->inner, dtype_bytes(c->dtype, 1)),
                     data_poisoned(data, c->rows_max * c->inner, dtype_bytes(c->dtype, 1)),
                     data_poisoned(data, c->rows_max, sizeof(float))};
    if (in_place) {
        memcpy(out.dgu, c->gu, 2 * bytes);
        memcpy(out.a_weighted, c->da, bytes);
    }
    SwigluBackward args = {.inner = c->inner,
                           .rows_max = c->rows_max,
                           .dtype = c->dtype,
                           .rows_total = &c->rows_total,
                           .row_map = c->row_map,
                           .weight = c->weight,
                           .gu = in_place ? out.dgu : c->gu,
                           .da = in_place ? out.a_weighted : c->da,
                           .dgu = out.dgu,
                           .a_weighted = out.a_weighted,
                           .dweight = out.dweight};
    swiglu_backward(&args, CPU);
    return out;
}

// Element i of a row. silu' is a difference near its root, so its bound is absolute: what 4 ulp of
// the sigmoid move it by, d silu' / ds = 1 + g (1 - 2 s), and 8 half-ulp roundings of terms of that
// size.
static void expect_gradients(const Case *c, const Gradients *out, int64_t row, int64_t i)
{
    int64_t at = row * 2 * c->inner + i;
    double g = value_of(c->gu, c->dtype, at), u = value_of(c->gu, c->dtype, at + c->inner);
    double da = value_of(c->da, c->dtype, row * c->inner + i);
    double w = c->weight ? (double)c->weight[row] : 1.0;
    double s = 1.0 / (1.0 + exp(-g)), slope = s * (1.0 + g * (1.0 - s));
    double last = rounding_of(c->dtype), tiny = 0x1p-120 * (1 + fabs(u)) * (1 + fabs(w));
    double slope_size = s * (1.0 + fabs(g) * (1.0 - s)) + fabs(g) * s * FLT_EPSILON;
    double slope_error = 4 * FLT_EPSILON * (s * (1.0 + fabs(g) * fabs(1.0 - 2.0 * s)) + slope_size);
    double dg = w * da * u * slope, du = w * da * g * s;
    // a is rounded to the storage type before the weight multiplies it.
    double a = w * g * s * u, a_bound = (9 * FLT_EPSILON + 2 * last + last * last) * fabs(a);
    expect_near(value_of(out->dgu, c->dtype, at), dg,
                fabs(w * da * u) * (slope_error + last * slope_size) + last * fabs(dg) + tiny, "dg",
                at);
    expect_near(value_of(out->dgu, c->dtype, at + c->inner), du,
                (8 * FLT_EPSILON + last) * fabs(du) + tiny, "du", at + c->inner);
    expect_near(value_of(out->a_weighted, c->dtype, row * c->inner + i), a, a_bound + tiny, "w a",
                row * c->inner + i);
}

static void backward_is_close(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 60; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        Gradients out = run_backward(&data, &c, false);
        for (int64_t row = 0; row < c.rows_max; row++) {
            for (int64_t i = 0; i < c.inner && is_real(&c, row); i++)
                expect_gradients(&c, &out, row, i);
            for (int64_t i = 0; i < 2 * c.inner && !is_real(&c, row); i++)
                expect_poison(out.dgu, c.dtype, row * 2 * c.inner + i, "dgu");
            for (int64_t i = 0; i < c.inner && !is_real(&c, row); i++)
                expect_poison(out.a_weighted, c.dtype, row * c.inner + i, "a_weighted");
            if (!is_real(&c, row))
                expect_poison(out.dweight, DTYPE_F32, row, "dweight");
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void in_place_changes_nothing(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        Gradients beside = run_backward(&data, &c, false), over = run_backward(&data, &c, true);
        for (int64_t row = 0; row < c.rows_max; row++) {
            if (!is_real(&c, row))
                continue;
            expect_same(over.dweight[row], beside.dweight[row], "dweight in place", row);
            for (int64_t i = row * 2 * c.inner; i < (row + 1) * 2 * c.inner; i++)
                expect_same(value_of(over.dgu, c.dtype, i), value_of(beside.dgu, c.dtype, i),
                            "dgu in place", i);
            for (int64_t i = row * c.inner; i < (row + 1) * c.inner; i++)
                expect_same(value_of(over.a_weighted, c.dtype, i),
                            value_of(beside.a_weighted, c.dtype, i), "a_weighted in place", i);
        }
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void dweight_is_the_dot_product_with_the_stored_activation(void **state)
{
    (void)state;
    Data data = data_create();
    for (int round = 0; round < 30; round++) {
        int mark = data.blocks;
        Case c = make_case(&data);
        const void *a = run_forward(&data, &c);
        Gradients out = run_backward(&data, &c, false);
        float *dot = data_poisoned(&data, c.rows_max, sizeof(float));
        RowDot args = {.hidden = c.inner,
                       .rows_max = c.rows_max,
                       .dtype_a = c.dtype,
                       .dtype_b = c.dtype,
                       .a = c.da,
                       .b = a,
                       .rows_total = &c.rows_total,
                       .out = dot};
        row_dot(&args, CPU);
        for (int64_t row = 0; row < c.rows_max; row++)
            if (is_real(&c, row))
                expect_same(out.dweight[row], dot[row], "dweight", row);
        data_release(&data, mark);
    }
    data_destroy(&data);
}

static void costs(void **state)
{
    (void)state;
    SwigluForward forward = {.inner = 5, .rows_max = 3, .dtype = DTYPE_BF16};
    expect_near(swiglu_forward_cost(&forward).bytes, 3 * 5 * 3 * 2, 0, "forward bytes", 0);
    float value = 0;
    SwigluBackward backward = {.inner = 5, .rows_max = 3, .dtype = DTYPE_F32, .dweight = &value};
    expect_near(swiglu_backward_cost(&backward).bytes, 3 * 5 * 6 * 4 + 3 * 4, 0, "bytes", 0);
    assert_true(swiglu_forward_cost(&forward).flops > 0 &&
                swiglu_backward_cost(&backward).flops > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_close),
        cmocka_unit_test(backward_is_close),
        cmocka_unit_test(in_place_changes_nothing),
        cmocka_unit_test(dweight_is_the_dot_product_with_the_stored_activation),
        cmocka_unit_test(costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
