// trial.c -- quantise, multiply, check, time.
#include "experiments/ao/trial.h"

#include "experiments/model/product_check.h"
#include "harness/random.h"
#include "kernels/cast.h"

#include <math.h>
#include <stdio.h>

enum { CHECK_ROWS = 16 };

// What is timed: the input is cast (if the recipe casts it) and multiplied.
typedef struct Work {
    Cast input;
    QuantGemm product;
    const uint16_t *host_x, *host_w; // the values on the host; on the CPU the operands' own
} Work;

static void work_body(void *context, Stream stream)
{
    const Work *work = context;
    if (work->product.a.quantised)
        cast(&work->input, stream);
    quant_gemm(&work->product, stream);
}

static uint16_t *make_input(const AoBench *bench, int64_t columns)
{
    uint64_t row_bytes = dtype_bytes(DTYPE_BF16, (uint64_t)columns);
    char *values = arena_push(bench->arena, (uint64_t)bench->rows * row_bytes, MEMORY_ACTIVATIONS);
    for (int64_t row = 0; row < bench->rows; row++)
        random_fill(&(RandomFill){.seed = bench->seed,
                                  .first_row = row,
                                  .rows = 1,
                                  .columns = columns,
                                  .deviation = ldexpf(1.0f, (int)(row % 5) - 2),
                                  .dtype = DTYPE_BF16,
                                  .out = values + (uint64_t)row * row_bytes},
                    bench->stream);
    return (uint16_t *)(void *)values;
}

// Host memory for so many bf16 values that belong at `device`; there itself on the CPU.
static uint16_t *host_memory(const AoBench *bench, uint16_t *device, int64_t count)
{
    if (bench->stream.device == DEVICE_CPU)
        return device;
    return device_allocate(DEVICE_CPU, 2 * (uint64_t)count);
}

static const uint16_t *to_host(const AoBench *bench, uint16_t *values, int64_t count)
{
    uint16_t *host = host_memory(bench, values, count);
    if (host != values)
        device_copy(host, values, 2 * (uint64_t)count, bench->stream);
    stream_wait(bench->stream);
    return host;
}

static void host_free(const Work *work, const AoBench *bench)
{
    if (bench->stream.device == DEVICE_CPU)
        return;
    device_free(DEVICE_CPU, (void *)(uintptr_t)work->host_x);
    device_free(DEVICE_CPU, (void *)(uintptr_t)work->host_w);
}

static bool make_operand(const AoBench *bench, const QuantRule *rule, const int64_t *shape,
                         const void *values, QuantOperand *operand, Error *error)
{
    *operand = (QuantOperand){.values = values};
    if (rule->method == QUANT_NONE)
        return true;
    if (!qtensor_plan(rule, DTYPE_BF16, 2, shape, &operand->q, error))
        return false;
    operand->quantised = true;
    qtensor_push(&operand->q, bench->arena, MEMORY_ACTIVATIONS);
    cast(&(Cast){.values = values, .to = operand->q, .threads = bench->run->threads},
         bench->stream);
    return true;
}

static void time_work(const AoBench *bench, Work *work, const char *label, AoTrial *trial)
{
    bool cpu = bench->stream.device == DEVICE_CPU;
    trial->time = kernel_time(&(KernelTiming){.run = bench->run,
                                              .stream = bench->stream,
                                              .arena = bench->arena,
                                              .ceilings = bench->ceilings,
                                              .writer = bench->writer,
                                              .name = label,
                                              .body = work_body,
                                              .context = work,
                                              .cost = quant_gemm_cost(&work->product),
                                              .writes_little = bench->rows < 64,
                                              .flops_per_s = cpu ? bench->ceilings.f32_flops_per_s
                                                                 : bench->ceilings.bf16_flops_per_s,
                                              .rule = bench->rule});
}

// The product of input and weight; false if the recipe refuses either.
static bool set_up(const AoBench *bench, const AoModule *module, const Recipe *recipe, Work *work,
                   Error *error)
{
    int64_t n = module->rows, k = module->columns;
    uint16_t *x = make_input(bench, k);
    uint16_t *w = arena_push(bench->arena, 2 * (uint64_t)(n * k), MEMORY_PARAMETERS);
    uint16_t *host_w = host_memory(bench, w, n * k);
    ao_module_values(module, host_w);
    if (host_w != w)
        device_copy(w, host_w, 2 * (uint64_t)(n * k), bench->stream);
    *work = (Work){.product = {.product = recipe->form,
                               .dtype = DTYPE_BF16,
                               .out_dtype = DTYPE_BF16,
                               .groups = 1,
                               .rows_max = bench->rows,
                               .n = n,
                               .k = k,
                               .rows_expected = bench->rows,
                               .threads = bench->run->threads}};
    work->host_x = to_host(bench, x, bench->rows * k);
    work->host_w = host_w;
    QuantGemm *p = &work->product;
    if (!make_operand(bench, &recipe->activations, (int64_t[]){bench->rows, k}, x, &p->a, error) ||
        !make_operand(bench, &recipe->weights, (int64_t[]){n, k}, w, &p->b, error))
        return false;
    work->input = (Cast){.values = x, .to = p->a.q, .threads = bench->run->threads};
    p->c = arena_push(bench->arena, 2 * (uint64_t)(bench->rows * n), MEMORY_ACTIVATIONS);
    p->workspace = arena_push(bench->arena, quant_gemm_workspace_bytes(p, bench->stream.device),
                              MEMORY_SCRATCH);
    return true;
}

static double weight_db(const QTensor *q, const void *values, Stream stream)
{
    QTensor host = qtensor_on_host(q, stream);
    double db = cast_sqnr_db(&host, values);
    qtensor_host_free(q, &host);
    return db;
}

void ao_trial(const AoBench *bench, const AoModule *module, const Recipe *recipe, const char *label,
              AoTrial *trial)
{
    *trial = (AoTrial){.weight_db = INFINITY};
    ArenaMark mark = arena_mark(bench->arena);
    Error error = {0};
    Work work;
    if (!set_up(bench, module, recipe, &work, &error)) {
        snprintf(trial->refused, sizeof(trial->refused), "%.*s", AO_WHY_BYTES - 1, error.what);
    } else {
        const QuantGemm *p = &work.product;
        work_body(&work, bench->stream);
        ProductCheck check = product_check(p, work.host_x, work.host_w, CHECK_ROWS, bench->stream);
        trial->error = check.error;
        trial->output_db = check.sqnr_db;
        trial->bytes = p->b.quantised ? qtensor_bytes(&p->b.q).total : 2 * (uint64_t)(p->n * p->k);
        if (p->b.quantised)
            trial->weight_db = weight_db(&p->b.q, work.host_w, bench->stream);
        if (label && bench->rule.samples_max > 0)
            time_work(bench, &work, label, trial);
    }
    host_free(&work, bench);
    arena_release(bench->arena, mark);
}

int ao_compare(const Statistics *a, const Statistics *b, double drift)
{
    double noise = fmax(drift, hypot(a->noise, b->noise));
    if (fabs(a->median - b->median) <= noise * fmin(a->median, b->median))
        return 0;
    return a->median < b->median ? -1 : 1;
}
