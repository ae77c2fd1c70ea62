// The CUDA rows of swiglu, moe_sum, moe_scale_rows, row_dot, sum_parts and gate_rows against their
// CPU rows on fresh random data: bit for bit where the order of operations is prescribed, else
// within the bounds stated here (the exponentials differ). Rows of 0, odd and large lengths,
// padding, poisoned outputs, offsets beyond 2^31 elements.
// labels: gpu
#include "tests/twin.h"

#include "kernels/moe_combine.h"
#include "kernels/reduce.h"
#include "kernels/swiglu.h"

static const DType dtypes[] = {DTYPE_F32, DTYPE_BF16};
static const int64_t widths[] = {1, 7, 8, 96, 1408, 2048, 7168};
// f32 exponentials and reciprocals, and the products behind them, differ by a few roundings; a bf16
// result then falls on the other side of a rounding boundary with a chance of about 2^-16 per
// rounding.
static const Bound few_roundings = {.share = 2e-6, .rare = 500};

// Pointer into one side of a twin.
#define ON(cuda, twin) ((cuda) ? (twin).device : (twin).host)

typedef struct Swiglu {
    DType dtype;
    int64_t inner, rows_max;
    bool mapped, weighted, in_place;
    Twin rows_total, map, weight, gu, da, a, dgu, a_weighted, dweight;
} Swiglu;

static SwigluForward forward_args(const Swiglu *s, bool cuda)
{
    return (SwigluForward){.inner = s->inner,
                           .rows_max = s->rows_max,
                           .dtype = s->dtype,
                           .rows_total = ON(cuda, s->rows_total),
                           .row_map = s->mapped ? ON(cuda, s->map) : NULL,
                           .gu = ON(cuda, s->gu),
                           .a = ON(cuda, s->a)};
}

static SwigluBackward backward_args(const Swiglu *s, bool cuda)
{
    return (SwigluBackward){.inner = s->inner,
                            .rows_max = s->rows_max,
                            .dtype = s->dtype,
                            .rows_total = ON(cuda, s->rows_total),
                            .row_map = s->mapped ? ON(cuda, s->map) : NULL,
                            .weight = s->weighted ? ON(cuda, s->weight) : NULL,
                            .gu = ON(cuda, s->gu),
                            .da = ON(cuda, s->da),
                            .dgu = ON(cuda, s->in_place ? s->gu : s->dgu),
                            .a_weighted = ON(cuda, s->in_place ? s->da : s->a_weighted),
                            .dweight = ON(cuda, s->dweight)};
}

// dweight is prescribed to the bit: the row dot of da and the activation as the forward stored it
// on that device.
static void expect_dweight(Twins *twins, Swiglu *s, const void *da)
{
    Twin dots = twin_create(twins, s->rows_max, sizeof(float));
    const RowDot dot = {.hidden = s->inner,
                        .rows_max = s->rows_max,
                        .dtype_a = s->dtype,
                        .dtype_b = s->dtype,
                        .a = da,
                        .b = s->a.back,
                        .rows_total = s->rows_total.host,
                        .out = dots.host};
    row_dot(&dot, twins->cpu);
    twin_fetch(twins, &s->dweight);
    const float *expected = dots.host, *found = s->dweight.back;
    for (int64_t row = 0; row < *(const int32_t *)s->rows_total.host; row++)
        if (!(s->mapped && ((const int32_t *)s->map.host)[row] < 0) && expected[row] != found[row])
            fail_msg("%s: dweight[%lld] is %.9g, the dot product %.9g", twins->text, (long long)row,
                     (double)found[row], (double)expected[row]);
}

static void swiglu_case(Twins *twins, Swiglu s, int32_t rows)
{
    snprintf(twins->text, sizeof(twins->text), "swiglu %s inner=%lld rows=%d of %lld%s%s%s",
             dtype_row(s.dtype)->name, (long long)s.inner, rows, (long long)s.rows_max,
             s.mapped ? " mapped" : "", s.weighted ? " weighted" : "",
             s.in_place ? " in place" : "");
    const TwinsMark mark = twins_mark(twins);
    s.rows_total = twin_integer(twins, rows);
    s.map = twin_map(twins, s.rows_max, 1000, 0.3);
    s.weight = twin_normals(twins, s.rows_max, DTYPE_F32, 1);
    s.gu = twin_normals(twins, s.rows_max * 2 * s.inner, s.dtype, 3);
    s.da = twin_normals(twins, s.rows_max * s.inner, s.dtype, 1);
    s.a = twin_create(twins, s.rows_max * s.inner, dtype_bytes(s.dtype, 1));
    s.dgu = twin_create(twins, s.rows_max * 2 * s.inner, dtype_bytes(s.dtype, 1));
    s.a_weighted = twin_create(twins, s.rows_max * s.inner, dtype_bytes(s.dtype, 1));
    s.dweight = twin_create(twins, s.rows_max, sizeof(float));
    void *da = arena_push(twins->host, s.da.bytes + 16, MEMORY_SCRATCH);
    memcpy(da, s.da.host, s.da.bytes);
    for (int cuda = 0; cuda < 2; cuda++) {
        const SwigluForward forward = forward_args(&s, cuda);
        const SwigluBackward backward = backward_args(&s, cuda);
        swiglu_forward(&forward, cuda ? twins->cuda : twins->cpu);
        swiglu_backward(&backward, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_near(twins, &s.a, s.dtype, few_roundings, "a");
    twin_expect_near(twins, s.in_place ? &s.gu : &s.dgu, s.dtype, few_roundings, "dgu");
    twin_expect_near(twins, s.in_place ? &s.da : &s.a_weighted, s.dtype, few_roundings,
                     "a_weighted");
    expect_dweight(twins, &s, da);
    twins_release(twins, mark);
}

static void test_swiglu(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
        for (size_t w = 0; w < COUNT_OF(widths); w++) {
            const Swiglu s = {.dtype = dtypes[d], .inner = widths[w], .rows_max = 41};
            Swiglu full = s;
            full.mapped = full.weighted = true;
            Swiglu in_place = full;
            in_place.in_place = true;
            swiglu_case(&twins, s, 0);
            swiglu_case(&twins, s, 1);
            swiglu_case(&twins, s, 41);
            swiglu_case(&twins, full, 37);
            swiglu_case(&twins, in_place, 37);
        }
    }
    const Swiglu many = {
        .dtype = DTYPE_BF16, .inner = 88, .rows_max = 20011, .mapped = true, .weighted = true};
    swiglu_case(&twins, many, 20003); // more rows than warps of a grid
    twins_destroy(&twins);
}

static void test_swiglu_extremes(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const float extremes[] = {0,  -0.0f, 1e-30f, -1e-30f, 20,  -20,
                                     80, -80,   88.8f,  -88.8f,  200, -200};
    const int64_t inner = COUNT_OF(extremes);
    snprintf(twins.text, sizeof(twins.text), "swiglu of extremes");
    Swiglu s = {.dtype = DTYPE_F32, .inner = inner, .rows_max = 1};
    s.rows_total = twin_integer(&twins, 1);
    s.gu = twin_create(&twins, 2 * inner, sizeof(float));
    s.da = twin_normals(&twins, inner, DTYPE_F32, 1);
    s.a = twin_create(&twins, inner, sizeof(float));
    s.dgu = twin_create(&twins, 2 * inner, sizeof(float));
    s.a_weighted = twin_create(&twins, inner, sizeof(float));
    s.dweight = twin_create(&twins, 1, sizeof(float));
    for (int64_t i = 0; i < inner; i++) {
        ((float *)s.gu.host)[i] = extremes[i];
        ((float *)s.gu.host)[inner + i] = 1;
    }
    twin_upload(&twins, &s.gu);
    for (int cuda = 0; cuda < 2; cuda++) {
        const SwigluForward forward = forward_args(&s, cuda);
        const SwigluBackward backward = backward_args(&s, cuda);
        swiglu_forward(&forward, cuda ? twins.cuda : twins.cpu);
        swiglu_backward(&backward, cuda ? twins.cuda : twins.cpu);
    }
    twin_expect_near(&twins, &s.a, DTYPE_F32, few_roundings, "a");
    twin_expect_near(&twins, &s.dgu, DTYPE_F32, few_roundings, "dgu");
    const float *a = s.a.back, *dgu = s.dgu.back;
    for (int64_t i = 0; i < inner; i++)
        if (!isfinite(a[i]) || !isfinite(dgu[i]))
            fail_msg("silu(%g): a is %g, dg is %g", (double)extremes[i], (double)a[i],
                     (double)dgu[i]);
    twins_destroy(&twins);
}

typedef struct SumCase {
    DType dtype;
    int64_t tokens, hidden;
    int width, group_size;
    bool weighted, added, added_weighted;
} SumCase;

static void sum_case(Twins *twins, SumCase c)
{
    snprintf(twins->text, sizeof(twins->text),
             "moe_sum %s tokens=%lld hidden=%lld width=%d groups of %d%s%s%s",
             dtype_row(c.dtype)->name, (long long)c.tokens, (long long)c.hidden, c.width,
             c.group_size, c.weighted ? " weighted" : "", c.added ? " with addend" : "",
             c.added_weighted ? " weighted too" : "");
    const TwinsMark mark = twins_mark(twins);
    const int64_t places = c.tokens * c.width, returned_rows = places + 3;
    Twin returned = twin_normals(twins, returned_rows * c.hidden, c.dtype, 1);
    Twin index = twin_map(twins, places, returned_rows, 0.2);
    Twin weight = twin_normals(twins, places, DTYPE_F32, 1);
    Twin expert = twin_create(twins, places, sizeof(int32_t));
    Twin addend = twin_normals(twins, c.tokens * c.hidden, DTYPE_F32, 1);
    Twin addend_weight = twin_normals(twins, c.tokens, DTYPE_F32, 1);
    Twin out = twin_create(twins, c.tokens * c.hidden, dtype_bytes(c.dtype, 1));
    for (int64_t i = 0; i < places; i++)
        ((int32_t *)expert.host)[i] =
            (int32_t)(i % c.width ? ((int32_t *)expert.host)[i - 1] + 1 + twins_below(twins, 3)
                                  : twins_below(twins, 3));
    twin_upload(twins, &expert);
    for (int cuda = 0; cuda < 2; cuda++) {
        const MoeSum sum = {.tokens = c.tokens,
                            .hidden = c.hidden,
                            .width = c.width,
                            .dtype = c.dtype,
                            .returned = ON(cuda, returned),
                            .index = ON(cuda, index),
                            .weight = c.weighted ? ON(cuda, weight) : NULL,
                            .group_size = c.group_size,
                            .expert_of_slot = ON(cuda, expert),
                            .addend = c.added ? ON(cuda, addend) : NULL,
                            .addend_weight = c.added_weighted ? ON(cuda, addend_weight) : NULL,
                            .out = ON(cuda, out)};
        moe_sum(&sum, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &out, c.dtype, "out");
    twins_release(twins, mark);
}

static void test_moe_sum(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const int sums[] = {1, 2, 4, 6, 8, 40};
    for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
        for (size_t w = 0; w < COUNT_OF(widths); w++) {
            for (size_t k = 0; k < COUNT_OF(sums); k++) {
                SumCase c = {
                    .dtype = dtypes[d], .tokens = 19, .hidden = widths[w], .width = sums[k]};
                sum_case(&twins, c);
                c.weighted = c.added = true;
                sum_case(&twins, c);
                c.added_weighted = true;
                c.group_size = 4;
                sum_case(&twins, c);
            }
        }
    }
    sum_case(&twins, (SumCase){.dtype = DTYPE_BF16, .tokens = 0, .hidden = 64, .width = 4});
    sum_case(&twins, (SumCase){.dtype = DTYPE_BF16, .tokens = 1, .hidden = 64, .width = 4});
    sum_case(&twins, (SumCase){.dtype = DTYPE_BF16, .tokens = 20001, .hidden = 40, .width = 2});
    twins_destroy(&twins);
}

static void dot_case(Twins *twins, DType dtype_a, DType dtype_b, int64_t hidden, bool indexed)
{
    enum { ROWS_MAX = 43, ROWS = 38, B_ROWS = 50 };
    snprintf(twins->text, sizeof(twins->text), "row_dot %s x %s hidden=%lld%s",
             dtype_row(dtype_a)->name, dtype_row(dtype_b)->name, (long long)hidden,
             indexed ? " indexed" : "");
    const TwinsMark mark = twins_mark(twins);
    Twin a = twin_normals(twins, ROWS_MAX * hidden, dtype_a, 1);
    Twin b = twin_normals(twins, B_ROWS * hidden, dtype_b, 1);
    Twin index = twin_map(twins, ROWS_MAX, B_ROWS, 0.2);
    Twin rows_total = twin_integer(twins, ROWS);
    Twin out = twin_create(twins, ROWS_MAX, sizeof(float));
    for (int cuda = 0; cuda < 2; cuda++) {
        const RowDot dot = {.hidden = hidden,
                            .rows_max = ROWS_MAX,
                            .dtype_a = dtype_a,
                            .dtype_b = dtype_b,
                            .a = ON(cuda, a),
                            .b = ON(cuda, b),
                            .b_index = indexed ? ON(cuda, index) : NULL,
                            .rows_total = ON(cuda, rows_total),
                            .out = ON(cuda, out)};
        row_dot(&dot, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &out, DTYPE_F32, "out");
    twins_release(twins, mark);
}

static void scale_case(Twins *twins, DType dtype, int64_t hidden)
{
    enum { ROWS_MAX = 43, ROWS = 38, X_ROWS = 50 };
    snprintf(twins->text, sizeof(twins->text), "moe_scale_rows %s hidden=%lld",
             dtype_row(dtype)->name, (long long)hidden);
    const TwinsMark mark = twins_mark(twins);
    Twin x = twin_normals(twins, X_ROWS * hidden, dtype, 1);
    Twin map = twin_map(twins, ROWS_MAX, X_ROWS, 0.2);
    Twin weight = twin_normals(twins, ROWS_MAX, DTYPE_F32, 1);
    Twin rows_total = twin_integer(twins, ROWS);
    Twin out = twin_create(twins, ROWS_MAX * hidden, dtype_bytes(dtype, 1));
    for (int cuda = 0; cuda < 2; cuda++) {
        const MoeScaleRows scale = {.hidden = hidden,
                                    .rows_max = ROWS_MAX,
                                    .dtype = dtype,
                                    .x = ON(cuda, x),
                                    .row_of_expert_row = ON(cuda, map),
                                    .rows_total = ON(cuda, rows_total),
                                    .weight_of_expert_row = ON(cuda, weight),
                                    .out = ON(cuda, out)};
        moe_scale_rows(&scale, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &out, dtype, "out");
    twins_release(twins, mark);
}

static void test_row_dot_and_scale(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t w = 0; w < COUNT_OF(widths); w++) {
        for (size_t d = 0; d < COUNT_OF(dtypes); d++) {
            scale_case(&twins, dtypes[d], widths[w]);
            for (size_t e = 0; e < COUNT_OF(dtypes); e++) {
                dot_case(&twins, dtypes[d], dtypes[e], widths[w], false);
                dot_case(&twins, dtypes[d], dtypes[e], widths[w], true);
            }
        }
    }
    twins_destroy(&twins);
}

static void parts_case(Twins *twins, int parts, int64_t count, DType out_dtype, bool in_place)
{
    snprintf(twins->text, sizeof(twins->text), "sum_parts %d of %lld to %s%s", parts,
             (long long)count, dtype_row(out_dtype)->name, in_place ? " in place" : "");
    const TwinsMark mark = twins_mark(twins);
    const int64_t stride = parts % 2 ? count + 5 : (count + 8) / 8 * 8; // odd, and aligned
    Twin part = twin_normals(twins, parts * stride, DTYPE_F32, 1);
    Twin out = twin_create(twins, count, dtype_bytes(out_dtype, 1));
    for (int cuda = 0; cuda < 2; cuda++) {
        const SumParts sum = {.parts = parts,
                              .count = count,
                              .part_stride = stride,
                              .part = ON(cuda, part),
                              .out_dtype = out_dtype,
                              .out = ON(cuda, in_place ? part : out)};
        sum_parts(&sum, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &part, DTYPE_F32, "part");
    twin_expect_same(twins, &out, out_dtype, "out");
    twins_release(twins, mark);
}

static void test_sum_parts(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const int parts[] = {1, 2, 3, 8};
    static const int64_t counts[] = {0, 1, 7, 8, 11, 4099, 262147};
    for (size_t p = 0; p < COUNT_OF(parts); p++)
        for (size_t n = 0; n < COUNT_OF(counts); n++) {
            parts_case(&twins, parts[p], counts[n], DTYPE_F32, false);
            parts_case(&twins, parts[p], counts[n], DTYPE_F32, true);
            parts_case(&twins, parts[p], counts[n], DTYPE_BF16, false);
        }
    twins_destroy(&twins);
}

static void gate_case(Twins *twins, DType dtype, int64_t tokens, int64_t hidden, bool gated)
{
    snprintf(twins->text, sizeof(twins->text), "gate_rows %s tokens=%lld hidden=%lld%s",
             dtype_row(dtype)->name, (long long)tokens, (long long)hidden, gated ? " gated" : "");
    const TwinsMark mark = twins_mark(twins);
    const int64_t stride = 8;
    Twin x = twin_normals(twins, tokens * hidden, dtype, 1);
    Twin logits = twin_normals(twins, tokens * stride, DTYPE_F32, 4);
    Twin out = twin_create(twins, tokens * hidden, dtype_bytes(dtype, 1));
    Twin gate = twin_create(twins, tokens, sizeof(float));
    Twin gate_alone = twin_create(twins, tokens, sizeof(float));
    for (int cuda = 0; cuda < 2; cuda++) {
        GateRows rows = {.tokens = tokens,
                         .hidden = hidden,
                         .dtype = dtype,
                         .x = ON(cuda, x),
                         .logits = gated ? (const float *)ON(cuda, logits) + 3 : NULL,
                         .logits_stride = stride,
                         .out = ON(cuda, out),
                         .gate_out = ON(cuda, gate)};
        gate_rows(&rows, cuda ? twins->cuda : twins->cpu);
        rows.x = NULL;
        rows.out = NULL;
        rows.gate_out = ON(cuda, gate_alone);
        gate_rows(&rows, cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_near(twins, &out, dtype, few_roundings, "out");
    twin_expect_near(twins, &gate, DTYPE_F32, few_roundings, "gate");
    twin_expect_near(twins, &gate_alone, DTYPE_F32, few_roundings, "gate alone");
    twins_release(twins, mark);
}

static void test_gate_rows(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (size_t d = 0; d < COUNT_OF(dtypes); d++)
        for (size_t w = 0; w < COUNT_OF(widths); w++)
            for (int tokens = 0; tokens < 40; tokens = 2 * tokens + 1) {
                gate_case(&twins, dtypes[d], tokens, widths[w], true);
                gate_case(&twins, dtypes[d], tokens, widths[w], false);
            }
    twins_destroy(&twins);
}

// Rows so far into a matrix that their elements have no 32-bit index. Only the device holds the
// matrix.
static void test_offsets_beyond_31_bits(void **state)
{
    (void)state;
    enum { HIDDEN = 7168, ROWS = 300001 }; // 2.15e9 elements, 4.3 GB
    Twins twins = twins_create();
    snprintf(twins.text, sizeof(twins.text), "moe_scale_rows of row %d", ROWS - 1);
    Twin map = twin_create(&twins, ROWS, sizeof(int32_t)); // -1 but for the last row
    ((int32_t *)map.host)[ROWS - 1] = 0;
    twin_upload(&twins, &map);
    Twin weight = twin_normals(&twins, ROWS, DTYPE_F32, 1);
    Twin x = twin_normals(&twins, HIDDEN, DTYPE_BF16, 1);
    Twin rows_total = twin_integer(&twins, ROWS);
    Twin last = twin_create(&twins, HIDDEN, sizeof(uint16_t));
    uint16_t *out = ARENA_PUSH(twins.device, uint16_t, (uint64_t)ROWS * HIDDEN, MEMORY_SCRATCH);
    const MoeScaleRows scale = {.hidden = HIDDEN,
                                .rows_max = ROWS,
                                .dtype = DTYPE_BF16,
                                .x = x.device,
                                .row_of_expert_row = map.device,
                                .rows_total = rows_total.device,
                                .weight_of_expert_row = weight.device,
                                .out = out};
    moe_scale_rows(&scale, twins.cuda);
    const uint16_t *row = out + (int64_t)(ROWS - 1) * HIDDEN;
    device_copy(last.device, row, last.bytes, twins.cuda);
    for (int64_t i = 0; i < HIDDEN; i++)
        ((uint16_t *)last.host)[i] = bf16_from_f32(((const float *)weight.host)[ROWS - 1] *
                                                   twin_value(x.host, DTYPE_BF16, i));
    twin_expect_same(&twins, &last, DTYPE_BF16, "last row");

    // And reading there: the dot product of the last row with itself.
    Twin dots = twin_create(&twins, ROWS, sizeof(float));
    Twin one = twin_integer(&twins, 1), dot_of_last = twin_create(&twins, 1, sizeof(float));
    const RowDot on_host = {.hidden = HIDDEN,
                            .rows_max = 1,
                            .dtype_a = DTYPE_BF16,
                            .dtype_b = DTYPE_BF16,
                            .a = last.host,
                            .b = last.host,
                            .rows_total = one.host,
                            .out = dot_of_last.host};
    row_dot(&on_host, twins.cpu);
    RowDot on_device = on_host;
    on_device.rows_max = ROWS;
    on_device.a = on_device.b = out;
    on_device.b_index = NULL;
    on_device.rows_total = rows_total.device;
    on_device.out = dots.device;
    row_dot(&on_device, twins.cuda);
    device_copy(dot_of_last.device, (const float *)dots.device + ROWS - 1, sizeof(float),
                twins.cuda);
    twin_expect_same(&twins, &dot_of_last, DTYPE_F32, "dot of the last row");
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_swiglu_extremes),
        cmocka_unit_test(test_moe_sum),
        cmocka_unit_test(test_row_dot_and_scale),
        cmocka_unit_test(test_sum_parts),
        cmocka_unit_test(test_gate_rows),
        cmocka_unit_test(test_offsets_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
