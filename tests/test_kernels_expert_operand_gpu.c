// The CUDA rows of expert_operand against the CPU rows, bit for bit; sums over groups with
// bits_of_cpu likewise, and on the tensor cores within the bound of quant_gemm.h: empty groups, one
// row, odd sizes, gaps, memory that must not be written, sums added to what is there.
// labels: gpu
#include "kernels/cast.h"
#include "kernels/expert_operand.h"
#include "kernels/quant_gemm.h"
#include "kernels/swiglu.h"
#include "quant/recipe.h"
#include "quant/units.h"
#include "tests/twin.h"

#include <float.h>

enum { GROUPS = 6, SOURCES = 150 };

// Expert rows, and where the groups lie.
typedef struct Rows {
    int64_t rows_max, terms;
    Twin first, count, map, total;
} Rows;

static Rows rows_make(Twins *twins)
{
    static const int32_t counts[GROUPS] = {0, 5, 130, 1, 300, 0};
    Rows rows = {.first = twin_create(twins, GROUPS, sizeof(int32_t)),
                 .count = twin_create(twins, GROUPS, sizeof(int32_t))};
    int32_t *first = rows.first.host, end = 0;
    memcpy(rows.count.host, counts, sizeof(counts));
    for (int g = 0; g < GROUPS; g++) {
        first[g] = end;
        end += (counts[g] + EXPERT_TERMS_ALIGN - 1) / EXPERT_TERMS_ALIGN * EXPERT_TERMS_ALIGN;
    }
    rows.rows_max = end + 77;
    rows.terms = end + 2 * EXPERT_TERMS_ALIGN;
    rows.map = twin_create(twins, rows.rows_max, sizeof(int32_t));
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < counts[g]; i++)
            ((int32_t *)rows.map.host)[first[g] + i] = (int32_t)twins_below(twins, SOURCES);
    rows.total = twin_integer(twins, end);
    twin_upload(twins, &rows.first);
    twin_upload(twins, &rows.count);
    twin_upload(twins, &rows.map);
    return rows;
}

static void amax_of_rows(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (int pass = 0; pass < 6; pass++) {
        DType dtype = pass % 2 ? DTYPE_BF16 : DTYPE_F32;
        int64_t columns = (int64_t[]){64, 37, 200}[pass / 2];
        snprintf(twins.text, sizeof(twins.text), "%s, %lld columns", dtype_row(dtype)->name,
                 (long long)columns);
        Rows rows = rows_make(&twins);
        Twin amax = twin_integer(&twins, 0);
        Twin expert_rows = twin_normals(&twins, rows.rows_max * columns, dtype, 1.0f);
        for (int cuda = 0; cuda < 2; cuda++)
            rows_amax(&(RowsAmax){.rows = rows.rows_max,
                                  .columns = columns,
                                  .dtype = dtype,
                                  .values = cuda ? expert_rows.device : expert_rows.host,
                                  .row_map = cuda ? rows.map.device : rows.map.host,
                                  .rows_total = cuda ? rows.total.device : rows.total.host,
                                  .amax = cuda ? amax.device : amax.host},
                      cuda ? twins.cuda : twins.cpu);
        twin_expect_same(&twins, &amax, DTYPE_F32, "amax");
    }
    twins_destroy(&twins);
}

// ---- the gated activation with its cast ----

// What a run on the GPU left in t, and t as before.
static void *taken(Twins *twins, Twin *t)
{
    void *copy = arena_push(twins->host, t->bytes + 16, MEMORY_SCRATCH);
    twin_fetch(twins, t);
    memcpy(copy, t->back, t->bytes);
    twin_upload(twins, t);
    return copy;
}

static void expect_taken(Twins *twins, Twin *t, const void *expected, const char *what)
{
    memcpy(t->host, expected, t->bytes);
    twin_expect_same(twins, t, DTYPE_U8, what);
}

// forward: of a [rows, inner]; else of dgu [rows, 2 inner], in place.
static void swiglu_cast_case(Twins *twins, const Recipe *recipe, bool forward, int64_t inner)
{
    const TwinsMark mark = twins_mark(twins);
    snprintf(twins->text, sizeof(twins->text), "%s, inner %lld", forward ? "forward" : "backward",
             (long long)inner);
    Rows rows = rows_make(twins);
    const int64_t columns = forward ? inner : 2 * inner, count = rows.rows_max * inner;
    Twin gu = twin_normals(twins, 2 * count, DTYPE_BF16, 2.0f);
    Twin da = twin_normals(twins, count, DTYPE_BF16, 1.0f);
    Twin weight = twin_normals(twins, rows.rows_max, DTYPE_F32, 1.0f);
    for (int odd = 0; odd < 12; odd++) // no numbers, and what only the slow arithmetic has
        twin_put(gu.host, DTYPE_BF16, twins_below(twins, 2 * count),
                 odd % 3 == 0   ? NAN
                 : odd % 3 == 1 ? INFINITY
                                : 0x1p120f);
    twin_upload(twins, &gu);
    QTensor q;
    Error error = {0};
    assert_true(qtensor_plan(&recipe->activations, DTYPE_BF16, 2,
                             (int64_t[]){rows.rows_max, columns}, &q, &error));
    q.scale_layout = SCALES_PLAIN;
    assert_true(swiglu_casts(&q, inner, DEVICE_CUDA));
    Twin codes = twin_create(twins, (int64_t)qtensor_bytes(&q).codes, 1);
    Twin scales = twin_create(twins, (int64_t)qtensor_bytes(&q).scales, 1);
    Twin *twin[] = {&gu, &da, &codes, &scales};
    q.codes = codes.device;
    q.scales = scales.device;
    void *expected[COUNT_OF(twin)];
    for (int fused = 0; fused < 2; fused++) {
        if (forward)
            swiglu_forward(&(SwigluForward){.inner = inner,
                                            .rows_max = rows.rows_max,
                                            .dtype = DTYPE_BF16,
                                            .rows_total = rows.total.device,
                                            .row_map = rows.map.device,
                                            .gu = gu.device,
                                            .a = da.device,
                                            .cast = fused ? &q : NULL},
                           twins->cuda);
        else
            swiglu_backward(&(SwigluBackward){.inner = inner,
                                              .rows_max = rows.rows_max,
                                              .dtype = DTYPE_BF16,
                                              .rows_total = rows.total.device,
                                              .row_map = rows.map.device,
                                              .weight = weight.device,
                                              .gu = gu.device,
                                              .da = da.device,
                                              .dgu = gu.device,
                                              .a_weighted = da.device,
                                              .cast = fused ? &q : NULL},
                            twins->cuda);
        if (!fused)
            rows_cast(&(RowsCast){.values = forward ? da.device : gu.device,
                                  .row_map = rows.map.device,
                                  .rows_total = rows.total.device,
                                  .to = q},
                      twins->cuda);
        for (size_t i = 0; i < COUNT_OF(twin); i++) {
            static const char *const names[] = {"gu", "a", "codes", "scales"};
            if (fused)
                expect_taken(twins, twin[i], expected[i], names[i]);
            else
                expected[i] = taken(twins, twin[i]);
        }
    }
    twins_release(twins, mark);
}

static void swiglu_with_cast(void **state)
{
    (void)state;
    Twins twins = twins_create();
    Recipe recipe;
    Error error = {0};
    assert_true(recipe_parse("fp8_row", &recipe, &error));
    for (int forward = 0; forward < 2; forward++)
        for (int i = 0; i < 5; i++)
            swiglu_cast_case(&twins, &recipe, forward, (int64_t[]){8, 40, 768, 1408, 2048}[i]);
    twins_destroy(&twins);
}

// ---- sums over groups ----

typedef struct Operand {
    Twin values, codes, scales;
    QTensor q[2]; // host, device
} Operand;

// mapped: the rows of what experts got; else rows of their own. odd: now and then no number, an
// infinity, a column of zeros.
static Operand operand_make(Twins *twins, const Rows *rows, const QuantRule *rule, DType dtype,
                            int64_t columns, bool mapped, bool odd)
{
    const int64_t sources = mapped ? SOURCES : rows->rows_max;
    Operand o = {.values = twin_normals(twins, sources * columns, dtype, 1.5f)};
    for (int64_t i = 0; odd && i < sources * columns; i++) {
        int kind = i % columns == 3 ? 0 : (int)twins_below(twins, 4000);
        if (kind < 3)
            twin_put(o.values.host, dtype, i, kind == 0 ? 0.0f : kind == 1 ? NAN : -INFINITY);
    }
    twin_upload(twins, &o.values);
    QTensor q;
    Error error = {0};
    assert_true(qtensor_plan(rule, dtype, 2, (int64_t[]){columns, rows->terms}, &q, &error));
    q.scale_layout = SCALES_PLAIN;
    QTensorBytes bytes = qtensor_bytes(&q);
    o.codes = twin_create(twins, (int64_t)bytes.codes, 1);
    o.scales = twin_create(twins, GROUPS * (int64_t)bytes.scales, 1);
    for (int cuda = 0; cuda < 2; cuda++) {
        q.codes = cuda ? o.codes.device : o.codes.host;
        q.scales = cuda ? o.scales.device : o.scales.host;
        o.q[cuda] = q;
        // Now by strips, now by two readings.
        int64_t marks = cuda && odd == mapped ? cast_marks(&q, GROUPS, DEVICE_CUDA) : 0;
        Twin room = twin_create(twins, marks > 0 ? marks : 1, sizeof(uint32_t));
        group_cast(&(GroupCast){.marks = marks > 0 ? room.device : NULL,
                                .values = cuda ? o.values.device : o.values.host,
                                .row_map = cuda ? rows->map.device : rows->map.host,
                                .mapped = mapped,
                                .rows_total = cuda ? rows->total.device : rows->total.host,
                                .groups = GROUPS,
                                .group_first = cuda ? rows->first.device : rows->first.host,
                                .group_rows = cuda ? rows->count.device : rows->count.host,
                                .to = q},
                   cuda ? twins->cuda : twins->cpu);
    }
    twin_expect_same(twins, &o.scales, DTYPE_U8, "scales");
    twin_expect_same(twins, &o.codes, DTYPE_U8, "codes");
    return o;
}

static void casts_of_rows(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_block", "mxfp8", "mxfp8:mode=floor",
                                        "int8_dynamic"};
    Twins twins = twins_create();
    for (size_t i = 0; i < COUNT_OF(names); i++)
        for (int pass = 0; pass < 8; pass++) {
            const TwinsMark mark = twins_mark(&twins);
            const int64_t columns = (int64_t[]){128, 2048, 1408, 8192}[pass % 4];
            const DType dtype = pass % 2 ? DTYPE_BF16 : DTYPE_F32;
            const bool mapped = pass % 3 > 0;
            Recipe recipe;
            Error error = {0};
            assert_true(recipe_parse(names[i], &recipe, &error));
            snprintf(twins.text, sizeof(twins.text), "%s of %s, %lld columns, pass %d", names[i],
                     dtype_row(dtype)->name, (long long)columns, pass);
            Rows rows = rows_make(&twins);
            const int64_t sources = mapped ? SOURCES : rows.rows_max;
            Twin values = twin_normals(&twins, sources * columns, dtype, 1.5f);
            for (int odd = 0; odd < 20; odd++)
                twin_put(values.host, dtype, twins_below(&twins, sources * columns),
                         odd % 2 ? NAN : INFINITY);
            twin_upload(&twins, &values);
            QTensor q;
            assert_true(qtensor_plan(&recipe.activations, dtype, 2,
                                     (int64_t[]){rows.rows_max, columns}, &q, &error));
            q.scale_layout = SCALES_PLAIN;
            QTensorBytes bytes = qtensor_bytes(&q);
            Twin codes = twin_create(&twins, (int64_t)bytes.codes, 1);
            Twin scales = twin_create(&twins, (int64_t)bytes.scales, 1);
            Twin zeros = twin_create(&twins, (int64_t)bytes.zeros + 1, 1);
            for (int cuda = 0; cuda < 2; cuda++) {
                q.codes = cuda ? codes.device : codes.host;
                q.scales = cuda ? scales.device : scales.host;
                if (q.rule.has_zeros)
                    q.zeros = cuda ? zeros.device : zeros.host;
                RowsCast args = {.values = cuda ? values.device : values.host,
                                 .row_map = cuda ? rows.map.device : rows.map.host,
                                 .mapped = mapped,
                                 .rows_total = cuda ? rows.total.device : rows.total.host,
                                 .to = q};
                assert_true(rows_cast_suits(&args, cuda ? DEVICE_CUDA : DEVICE_CPU));
                rows_cast(&args, cuda ? twins.cuda : twins.cpu);
            }
            twin_expect_same(&twins, &scales, DTYPE_U8, "scales");
            twin_expect_same(&twins, &zeros, DTYPE_U8, "zeros");
            twin_expect_same(&twins, &codes, DTYPE_U8, "codes");
            twins_release(&twins, mark);
        }
    twins_destroy(&twins);
}

static void casts_of_groups(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_row:lower_bound=0", "fp8_block", "mxfp8",
                                        "mxfp8:mode=floor"};
    Twins twins = twins_create();
    for (size_t i = 0; i < COUNT_OF(names); i++)
        for (int pass = 0; pass < 12; pass++) {
            const TwinsMark mark = twins_mark(&twins);
            const int64_t columns = (int64_t[]){8, 128, 264, 17}[pass % 4];
            Recipe recipe;
            Error error = {0};
            assert_true(recipe_parse(names[i], &recipe, &error));
            DType dtype = pass % 2 ? DTYPE_BF16 : DTYPE_F32;
            snprintf(twins.text, sizeof(twins.text), "%s of %s, %lld columns, pass %d", names[i],
                     dtype_row(dtype)->name, (long long)columns, pass);
            Rows rows = rows_make(&twins);
            operand_make(&twins, &rows, &recipe.activations, dtype, columns, pass % 3 > 0,
                         pass >= 4);
            twins_release(&twins, mark);
        }
    twins_destroy(&twins);
}

// [rows, terms] of one group's sums: what the codes stand for.
static float *decoded(Twins *twins, const Rows *rows, const Operand *o, int group)
{
    QTensor q = o->q[0];
    const int32_t first = ((int32_t *)rows->first.host)[group];
    const int32_t count = ((int32_t *)rows->count.host)[group];
    float *out = arena_push(twins->host, (uint64_t)(q.rows * count + 1) * 4, MEMORY_SCRATCH);
    float *line = arena_push(twins->host, (uint64_t)q.columns * 4, MEMORY_SCRATCH);
    if (q.rule.block_columns == 0)
        q.scales = (float *)q.scales + group * q.rows;
    for (int64_t r = 0; r < q.rows; r++) {
        units_of_values(&q, DTYPE_F32, (UnitRow){0, r}, line, 1);
        memcpy(out + r * count, line + first, (size_t)count * sizeof(float));
    }
    return out;
}

static void expect_near_sums(Twins *twins, const Rows *rows, const QuantGemm *g, const Operand *a,
                             const Operand *b, Twin *c, const void *before)
{
    twin_fetch(twins, c);
    const double unit = g->out_dtype == DTYPE_BF16 ? 1.0 / 256 : FLT_EPSILON / 2.0;
    for (int group = 0; group < GROUPS; group++) {
        const int32_t count = ((int32_t *)rows->count.host)[group];
        float *x = decoded(twins, rows, a, group), *y = decoded(twins, rows, b, group);
        for (int64_t i = 0; i < g->rows_max * g->n; i++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < count; k++) {
                double term = (double)x[i / g->n * count + k] * (double)y[i % g->n * count + k];
                sum += term;
                size += fabs(term);
            }
            int64_t at = group * g->rows_max * g->n + i;
            double all = sum + (g->accumulate ? twin_value(before, g->out_dtype, at) : 0);
            bool mx = g->a.q.rule.method == QUANT_MX;
            double bound = 2 * (count + 4.0 * (count / 32 + 1)) * FLT_EPSILON * size +
                           1.02 * unit * fabs(all) + (mx ? 0 : size / 1024) + 1e-38;
            double ours = twin_value(c->back, g->out_dtype, at);
            if (!(fabs(ours - all) <= bound))
                fail_msg("%s: group %d, c[%lld, %lld] is %.9g, exactly %.9g, bound %.3g",
                         twins->text, group, (long long)(i / g->n), (long long)(i % g->n), ours,
                         all, bound);
        }
    }
}

static void run_sums(Twins *twins, const Recipe *recipe, DType dtype, bool bits_of_cpu, int pass)
{
    const TwinsMark mark = twins_mark(twins);
    const int64_t m = (int64_t[]){136, 40, 24}[pass % 3], n = (int64_t[]){264, 128, 17}[pass % 3];
    const DType out = pass % 2 && dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    Rows rows = rows_make(twins);
    Operand a = operand_make(twins, &rows, &recipe->activations, dtype, m, true, false);
    Operand b = operand_make(twins, &rows, &recipe->activations, dtype, n, false, false);
    Twin c = twin_normals(twins, GROUPS * m * n, out, 1.0f);
    void *before = arena_push(twins->host, c.bytes, MEMORY_SCRATCH);
    memcpy(before, c.host, c.bytes);
    QuantGemm args = {.product = recipe->form,
                      .dtype = dtype,
                      .out_dtype = out,
                      .accumulate = pass == 2 && out == DTYPE_F32,
                      .bits_of_cpu = bits_of_cpu,
                      .sums_over_groups = true,
                      .groups = GROUPS,
                      .group_first = rows.first.host,
                      .group_rows = rows.count.host,
                      .rows_max = m,
                      .n = n,
                      .k = rows.terms,
                      .a = {.quantised = true, .q = a.q[0]},
                      .b = {.quantised = true, .q = b.q[0]},
                      .c = c.host,
                      .threads = 1};
    snprintf(twins->text, sizeof(twins->text), "%s of %s, %lld x %lld%s", recipe->name,
             dtype_row(dtype)->name, (long long)m, (long long)n, bits_of_cpu ? ", exact" : "");
    quant_gemm(&args, twins->cpu);
    QuantGemm gpu = args;
    gpu.group_first = rows.first.device;
    gpu.group_rows = rows.count.device;
    gpu.a.q = a.q[1];
    gpu.b.q = b.q[1];
    gpu.c = c.device;
    gpu.workspace =
        arena_push(twins->device, quant_gemm_workspace_bytes(&gpu, DEVICE_CUDA), MEMORY_SCRATCH);
    quant_gemm(&gpu, twins->cuda);
    if (bits_of_cpu)
        twin_expect_same(twins, &c, out, "c");
    else
        expect_near_sums(twins, &rows, &args, &a, &b, &c, before);
    twins_release(twins, mark);
}

static void sums_over_groups(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_block", "mxfp8"};
    Twins twins = twins_create();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[i], &recipe, &error));
        for (int pass = 0; pass < 3; pass++) {
            run_sums(&twins, &recipe, DTYPE_BF16, true, pass);
            run_sums(&twins, &recipe, DTYPE_F32, true, pass);
            run_sums(&twins, &recipe, DTYPE_BF16, false, pass);
        }
    }
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(amax_of_rows),     cmocka_unit_test(casts_of_rows),
        cmocka_unit_test(swiglu_with_cast), cmocka_unit_test(casts_of_groups),
        cmocka_unit_test(sums_over_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
