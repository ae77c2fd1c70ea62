// The CUDA row of quant_gemm: with bits_of_cpu the bits of the plain loops, and without, the
// product in double of what the codes stand for, within the bound of the header; every recipe,
// dense and grouped, empty groups, odd sizes, few and many rows; memory that must not be written.
// labels: gpu
#include "tests/quant_product.h"
#include "tests/select_gpu.h"

enum { GUARD = 64, UPLOADS_MAX = 32, COLUMNS_CHECKED = 48 };

// The product's memory on the GPU.
typedef struct OnGpu {
    Stream stream;
    void *memory[UPLOADS_MAX];
    int count;
    QuantGemm args;
    char *c; // GUARD elements before args.c
} OnGpu;

static void *upload(OnGpu *gpu, const void *host, uint64_t bytes)
{
    assert_true(gpu->count < UPLOADS_MAX);
    void *memory = gpu->memory[gpu->count++] = device_allocate(DEVICE_CUDA, bytes + 16);
    if (host)
        device_copy(memory, host, bytes, gpu->stream);
    else
        device_fill(memory, 0xFF, bytes, gpu->stream);
    stream_wait(gpu->stream);
    return memory;
}

static void upload_operand(OnGpu *gpu, const QuantGemm *args, QuantOperand *o, int64_t rows)
{
    QTensorBytes bytes = o->quantised ? qtensor_bytes(&o->q) : (QTensorBytes){0};
    if (!o->quantised) {
        o->values = upload(gpu, o->values, dtype_bytes(args->dtype, (uint64_t)(rows * args->k)));
        return;
    }
    o->values = NULL;
    o->q.codes = upload(gpu, o->q.codes, bytes.codes);
    o->q.scales = upload(gpu, o->q.scales, bytes.scales);
    if (o->q.zeros)
        o->q.zeros = upload(gpu, o->q.zeros, bytes.zeros);
    if (o->q.tensor_scales)
        o->q.tensor_scales = upload(gpu, o->q.tensor_scales, bytes.tensor_scales);
}

// c_before [rows_max * n + 2 GUARD] on the host.
static OnGpu to_gpu(const QuantGemm *host, const void *c_before)
{
    OnGpu gpu = {.stream = stream_create(DEVICE_CUDA), .args = *host};
    QuantGemm *args = &gpu.args;
    uint64_t list = (uint64_t)host->groups * sizeof(int32_t);
    if (host->group_rows) {
        args->group_first = upload(&gpu, host->group_first, list);
        args->group_rows = upload(&gpu, host->group_rows, list);
    }
    upload_operand(&gpu, host, &args->a, host->rows_max);
    upload_operand(&gpu, host, &args->b, host->groups * host->n);
    uint64_t elements = (uint64_t)(host->rows_max * host->n + 2 * GUARD);
    gpu.c = upload(&gpu, c_before, dtype_bytes(host->out_dtype, elements));
    args->c = gpu.c + dtype_bytes(host->out_dtype, GUARD);
    args->workspace = upload(&gpu, NULL, quant_gemm_workspace_bytes(args, DEVICE_CUDA));
    return gpu;
}

static void gpu_free(OnGpu *gpu)
{
    for (int i = 0; i < gpu->count; i++)
        device_free(DEVICE_CUDA, gpu->memory[i]);
    stream_destroy(gpu->stream);
}

typedef struct Run {
    Data *data;
    const Recipe *recipe;
    const QuantCase *c;
    QuantTypes types;
    QuantGemm host;
    void *before, *ours; // c with guards
    char what[160];
} Run;

static bool run_make(Run *r)
{
    if (!quant_product_make(r->data, r->recipe, r->c, &r->types, &r->host))
        return false;
    DType out = r->types.out_dtype;
    int64_t elements = r->host.rows_max * r->host.n + 2 * GUARD;
    r->before = r->types.accumulate ? data_normals(r->data, elements, out, 5.0f)
                                    : data_poisoned(r->data, elements, dtype_bytes(out, 1));
    r->ours = data_poisoned(r->data, elements, dtype_bytes(out, 1));
    snprintf(r->what, sizeof(r->what), "%s, %s to %s%s, %s of %lld x %lld, first rows %lld, c",
             r->recipe->name, dtype_row(r->types.dtype)->name, dtype_row(out)->name,
             r->types.accumulate ? " added" : "", r->c->groups ? "groups" : "dense",
             (long long)r->host.n, (long long)r->host.k, (long long)r->c->rows[0]);
    return true;
}

static void run_on_gpu(Run *r, bool bits_of_cpu)
{
    QuantGemm args = r->host;
    args.bits_of_cpu = bits_of_cpu;
    OnGpu gpu = to_gpu(&args, r->before);
    quant_gemm(&gpu.args, gpu.stream);
    uint64_t elements = (uint64_t)(r->host.rows_max * r->host.n + 2 * GUARD);
    device_copy(r->ours, gpu.c, dtype_bytes(r->types.out_dtype, elements), gpu.stream);
    stream_wait(gpu.stream);
    gpu_free(&gpu);
}

// Every element of c, and what lies around it.
static void expect_bits_of_cpu(Run *r)
{
    DType out = r->types.out_dtype;
    int64_t elements = r->host.rows_max * r->host.n + 2 * GUARD;
    QuantGemm args = r->host;
    args.c = (char *)r->before + dtype_bytes(out, GUARD);
    quant_gemm_reference(&args);
    for (int64_t i = 0; i < elements; i++)
        expect_same(value_of(r->ours, out, i), value_of(r->before, out, i), r->what, i - GUARD);
}

static double before_of(const Run *r, int64_t at)
{
    return r->types.accumulate ? value_of(r->before, r->types.out_dtype, at) : 0;
}

static void check_row(const Run *r, int64_t row, const float *a, const float *b, bool near_all)
{
    const QuantGemm *g = &r->host;
    for (int64_t i = 0; i < g->n; i++) {
        int64_t n = near_all || i < 2 ? i : i == 2 ? g->n - 1 : data_below(r->data, g->n);
        int64_t at = GUARD + row * g->n + n;
        double sum = 0, size = 0;
        for (int64_t k = 0; k < g->k; k++) {
            double term = (double)a[k] * (double)b[n * g->k + k];
            sum += term;
            size += fabs(term);
        }
        double all = sum + before_of(r, at);
        double bound = quant_bound(g, true, sum, size) + FLT_EPSILON * fabs(all);
        expect_near(value_of(r->ours, r->types.out_dtype, at), all, bound, r->what, at - GUARD);
        if (!near_all && i == COLUMNS_CHECKED)
            return;
    }
}

static void expect_near_exact(Run *r)
{
    const QuantGemm *g = &r->host;
    DType out = r->types.out_dtype;
    float *a = quant_decoded(r->data, g, &g->a, 1, g->rows_max);
    float *b = quant_decoded(r->data, g, &g->b, g->groups, g->n);
    char *owned = calloc((size_t)(g->rows_max + 1), 1);
    assert_non_null(owned);
    for (int group = 0; group < g->groups; group++)
        for (int64_t i = 0; i < quant_rows_of(g, group); i++) {
            int64_t row = quant_first(g, group) + i;
            owned[row] = 1;
            check_row(r, row, a + row * g->k, b + group * g->n * g->k, i == 0 && g->n < 600);
        }
    uint64_t size = dtype_bytes(out, 1);
    for (int64_t i = -GUARD; i < g->rows_max * g->n + GUARD; i++) {
        bool written = i >= 0 && i < g->rows_max * g->n && owned[i / g->n];
        uint64_t at = (uint64_t)(i + GUARD) * size;
        if (written && !isfinite(value_of(r->ours, out, i + GUARD)))
            fail_msg("%s[%lld] is %g", r->what, (long long)i,
                     (double)value_of(r->ours, out, i + GUARD));
        if (!written && memcmp((char *)r->ours + at, (char *)r->before + at, size) != 0)
            fail_msg("%s[%lld] belongs to no group, but was written", r->what, (long long)i);
    }
    free(owned);
}

static const QuantTypes f32 = {DTYPE_F32, DTYPE_F32, false};
static const QuantTypes bf16 = {DTYPE_BF16, DTYPE_BF16, false};
static const QuantTypes bf16_to_f32 = {DTYPE_BF16, DTYPE_F32, false};
static const QuantTypes bf16_added = {DTYPE_BF16, DTYPE_F32, true};

// false: the recipe refuses the shape.
static bool run_case(Data *data, const Recipe *recipe, const QuantCase *c, const QuantTypes *types,
                     bool bits_of_cpu)
{
    int mark = data->blocks;
    Run r = {.data = data, .recipe = recipe, .c = c, .types = *types};
    bool made = run_make(&r);
    if (made) {
        run_on_gpu(&r, bits_of_cpu);
        bool whole = recipe->form != PRODUCT_VALUES && r.host.a.quantised &&
                     r.host.a.q.rule.code >= CODE_INT8 && r.host.b.q.rule.code >= CODE_INT8;
        if (bits_of_cpu || whole)
            expect_bits_of_cpu(&r);
        else
            expect_near_exact(&r);
    }
    data_release(data, mark);
    return made;
}

typedef struct Sweep {
    const QuantCase *cases;
    int count;
    const QuantTypes *types[4]; // taken in turn
    int type_count;
    bool bits_of_cpu;
} Sweep;

// Every recipe must take one of the shapes.
static void sweep(const Sweep *s)
{
    Data data = data_create();
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++) {
        int made = 0;
        for (int i = 0; i < s->count; i++)
            made +=
                run_case(&data, recipe, &s->cases[i], s->types[i % s->type_count], s->bits_of_cpu);
        if (made == 0)
            fail_msg("%s was not tested", recipe->name);
    }
    data_destroy(&data);
}

static void the_bits_of_the_cpu(void **state)
{
    (void)state;
    static const QuantCase cases[] = {
        {3, {0, 1, 17}, 48, 128}, {3, {3, 0, 70}, 128, 256}, {3, {1, 2, 0}, 16, 1408},
        {0, {67}, 144, 128},      {2, {5, 9}, 37, 54},       {4, {0, 0, 0, 0}, 128, 128},
        {0, {3}, 128, 384},
    };
    sweep(&(Sweep){cases, COUNT_OF(cases), {&f32, &bf16, &bf16_to_f32, &bf16_added}, 4, true});
}

// Sizes on both sides of tiles and stages; the first few suit everything.
static void groups_on_tensor_cores(void **state)
{
    (void)state;
    static const QuantCase cases[] = {
        {9, {0, 1, 64, 63, 65, 127, 0, 129, 200}, 384, 512},
        {3, {130, 0, 300}, 128, 1408},
        {2, {70, 260}, 400, 720},
        {2, {1, 333}, 640, 256},
        {2, {90, 37}, 37, 54},
        {1, {200}, 264, 144},
    };
    sweep(&(Sweep){cases, COUNT_OF(cases), {&bf16, &bf16_to_f32, &bf16_added}, 3, false});
}

static void few_rows(void **state)
{
    (void)state;
    static const QuantCase cases[] = {
        {7, {1, 0, 3, 8, 2, 16, 17}, 256, 512},
        {3, {1, 1, 0}, 128, 2048},
        {4, {9, 5, 0, 33}, 384, 256},
        {2, {7, 2}, 208, 1408},
        {2, {4, 12}, 80, 96},
        {1, {1}, 128, 128},
        {3, {2, 0, 5}, 131, 160},
        {3, {1, 9, 2}, 117, 1152},
    };
    sweep(&(Sweep){cases, COUNT_OF(cases), {&bf16, &bf16_to_f32, &bf16_added}, 3, false});
}

// So many rows of b that every warp has its own.
static void few_rows_of_many_weights(void **state)
{
    (void)state;
    static const char *const names[] = {
        "int4_weight_only", "int4_weight_only:group=32", "int4_tile", "nvfp4_weight_only", "mxfp4",
        "fp8_weight_only",  "int8_weight_only",          "W4A16_ASYM"};
    static const QuantCase cases[] = {{8, {1, 0, 16, 3, 2, 8, 20, 1}, 4848, 256},
                                      {3, {1, 2, 9}, 3087, 1152}};
    Data data = data_create();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[i], &recipe, &error));
        int made = 0;
        for (size_t j = 0; j < COUNT_OF(cases); j++)
            made += run_case(&data, &recipe, &cases[j], &bf16, false);
        assert_true(made > 0);
    }
    data_destroy(&data);
}

static void dense(void **state)
{
    (void)state;
    static const QuantCase cases[] = {
        {0, {200}, 512, 1024}, {0, {5}, 384, 512},   {0, {33}, 128, 256}, {0, {16}, 640, 2048},
        {0, {48}, 144, 720},   {0, {61}, 130, 1040}, {0, {0}, 128, 128},
    };
    sweep(&(Sweep){cases, COUNT_OF(cases), {&bf16, &bf16_to_f32, &bf16_added}, 3, false});
}

// Two calls, one captured graph: group sizes are read when it runs.
static void graph_follows_the_groups(void **state)
{
    (void)state;
    static const char *const names[] = {"fp8_row", "fp8_block", "mxfp8", "int8_dynamic",
                                        "int4_weight_only"};
    Data data = data_create();
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        static const QuantCase c = {3, {100, 60, 140}, 256, 512};
        Recipe recipe;
        Error error = {0};
        assert_true(recipe_parse(names[i], &recipe, &error));
        Run r = {.data = &data, .recipe = &recipe, .c = &c, .types = bf16};
        assert_true(run_make(&r));
        OnGpu gpu = to_gpu(&r.host, r.before);
        graph_begin(gpu.stream);
        quant_gemm(&gpu.args, gpu.stream);
        Graph graph = graph_end(gpu.stream);
        int32_t rows[3] = {7, 0, 131};
        memcpy((void *)(uintptr_t)r.host.group_rows, rows, sizeof(rows));
        device_copy((void *)(uintptr_t)gpu.args.group_rows, rows, sizeof(rows), gpu.stream);
        graph_launch(&graph, gpu.stream);
        uint64_t elements = (uint64_t)(r.host.rows_max * r.host.n + 2 * GUARD);
        device_copy(r.ours, gpu.c, dtype_bytes(DTYPE_BF16, elements), gpu.stream);
        stream_wait(gpu.stream);
        graph_destroy(&graph);
        gpu_free(&gpu);
        expect_near_exact(&r);
    }
    data_destroy(&data);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bits_of_the_cpu),
        cmocka_unit_test(groups_on_tensor_cores),
        cmocka_unit_test(few_rows),
        cmocka_unit_test(few_rows_of_many_weights),
        cmocka_unit_test(dense),
        cmocka_unit_test(graph_follows_the_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
