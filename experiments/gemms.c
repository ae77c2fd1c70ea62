// gemms.c -- `meshwork gemms`: products of quantised activations and weights, dense or of many
// experts, under every recipe; each checked against a product in double, and timed.
//
// Values are random, one deviation per row of the activations. SQNR compares the product with that
// of the values before quantising, in dB. Rows are divided evenly over experts. On a GPU dense fp8
// products are also asked of cuBLASLt directly, right after ours.
#include "experiments/model/growth.h"
#include "experiments/model/kernel_timing.h"
#include "experiments/model/product_bare.h"
#include "experiments/model/product_check.h"
#include "harness/command.h"
#include "harness/file.h"
#include "harness/random.h"
#include "harness/run_device.h"
#include "kernels/cast.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Params {
    const char *shape, *shapes, *recipe, *output;
    int64_t seed, samples, check_rows, grow;
    double max_noise, timeout;
    int device, dtype;
    bool check, json, force;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"shape", OPTION_TEXT, FIELD(shape), "64,256,512", .value = "[E,]M,N,K",
     .doc = "rows of activations, rows of weights, columns; E experts share the M rows"},
    {"shapes", OPTION_TEXT, FIELD(shapes), NULL, .value = "FILE",
     .doc = "a shape on every line instead; # starts a comment"},
    {"grow", OPTION_INT, FIELD(grow), "0", 0, 30,
     .doc = "instead, squares of 2^10 to 2^this elements times each other, four times as many "
            "each time"},
    {"recipe", OPTION_TEXT, FIELD(recipe), "all", .value = "NAME[,NAME...]",
     .doc = "recipes, with options as in mxfp8:mode=floor; all = every one that takes the shape"},
    {"dtype", OPTION_CHOICE, FIELD(dtype), "bf16", .choices = "bf16|f32",
     .doc = "of values and products"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where to run"},
    {"check", OPTION_SWITCH, FIELD(check), "yes",
     .doc = "compare with the product of the dequantised operands, in double"},
    {"check_rows", OPTION_INT, FIELD(check_rows), "32", 1, 1 << 20,
     .doc = "rows compared, spread over all; each with all its columns"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of the values"},
    {"samples", OPTION_INT, FIELD(samples), "20", 0, 100000,
     .doc = "timed products at most; 0 = no timing"},
    {"max_noise", OPTION_REAL, FIELD(max_noise), "0.02", 0, 10,
     .doc = "stop when the median is known this well (relative)"},
    {"timeout", OPTION_REAL, FIELD(timeout), "10", 0, 1e9,
     .doc = "seconds of sampling per product; 0 = no limit"},
    {"output", OPTION_TEXT, FIELD(output), NULL, .value = "FILE.h5", .letter = 'o',
     .doc = "result file (its journal stays beside it until it is complete)"},
    {"force", OPTION_SWITCH, FIELD(force), "no", .doc = "overwrite the result file"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

enum { SHAPES_MAX = 64, LIST_BYTES_MAX = 1 << 20 };

typedef struct Shape {
    bool dense; // M,N,K: no groups
    int64_t experts, m, n, k;
    char name[64];
} Shape;

enum { ROW_NAME_BYTES = RECIPE_NAME_BYTES + 32, ROWS_MAX = 2 * RECIPES_MAX };

// One line of the table: a shape under a recipe.
typedef struct Row {
    char recipe[ROW_NAME_BYTES];
    bool good;
    ProductCheck check;
    Statistics time; // count 0 = not timed
    KernelCost cost;
    double read_floor_s; // only the weights are quantised: those used, read once; else 0
    Statistics bare;     // the same of cuBLASLt, called directly; count 0 = not timed
} Row;

typedef struct Job {
    Run *run;
    const Params *params;
    DeviceKind device;
    Stream stream;
    Arena *arena;
    DeviceCeilings ceilings;
    ResultWriter *writer;
    DType dtype;
    Shape shape[SHAPES_MAX];
    int shapes;
    Recipe recipe[RECIPES_MAX];
    int recipes;
    Growth *growth; // NULL without --grow
    bool good;
} Job;

// ---- request ----

static bool read_shape(const char *text, Job *job, Error *error)
{
    int64_t size[4];
    int count = 0;
    for (const char *at = text; at; count++) {
        char *end;
        bool digit = *at >= '0' && *at <= '9' && count < 4;
        size[count < 4 ? count : 3] = digit ? strtoll(at, &end, 10) : 0;
        if (!digit || (*end != ',' && *end != '\0') || size[count] > INT32_MAX)
            return error_set(error, EXIT_CODE_USAGE, "write M,N,K or E,M,N,K",
                             "'%.60s' is no shape", text);
        at = *end == ',' ? end + 1 : NULL;
    }
    if (count < 3 || (count == 4 && (size[0] < 1 || size[0] > 4096)))
        return error_set(error, EXIT_CODE_USAGE, "write M,N,K or E,M,N,K with 1 <= E <= 4096",
                         "'%.60s' is no shape of a product", text);
    if (job->shapes == SHAPES_MAX)
        return error_set(error, EXIT_CODE_USAGE, "split the file", "more than %d shapes",
                         SHAPES_MAX);
    int64_t *s = size + count - 3;
    Shape *shape = &job->shape[job->shapes++];
    *shape = (Shape){
        .dense = count == 3, .experts = count == 4 ? size[0] : 1, .m = s[0], .n = s[1], .k = s[2]};
    snprintf(shape->name, sizeof(shape->name), "%s", text);
    return true;
}

static bool square_shapes(Job *job, Error *error)
{
    for (int size = 0; size < growth_sizes(job->params->grow); size++) {
        long long side = 1ll << growth_log2(size) / 2;
        char text[64];
        snprintf(text, sizeof(text), "%lld,%lld,%lld", side, side, side);
        if (!read_shape(text, job, error))
            return false;
    }
    job->growth = growth_create();
    return true;
}

static bool read_shapes(Job *job, Error *error)
{
    const Params *p = job->params;
    if (!growth_check(p->grow, error))
        return false;
    if (p->grow > 0)
        return square_shapes(job, error);
    if (!p->shapes)
        return read_shape(p->shape, job, error);
    char *text = file_read(p->shapes, LIST_BYTES_MAX, NULL, error), *rest = text;
    bool good = text != NULL;
    for (char *line; good && (line = strsep(&rest, "\n"));) {
        line[strcspn(line, "# \t\r")] = '\0';
        good = *line == '\0' || read_shape(line, job, error);
    }
    if (good && job->shapes == 0)
        good = error_set(error, EXIT_CODE_DATA, "one E,M,N,K or M,N,K on a line",
                         "%.200s has no shapes", p->shapes);
    free(text);
    return good;
}

static bool read_recipes(Job *job, Error *error)
{
    const char *list = job->params->recipe;
    if (strcmp(list, "all") == 0) {
        while (recipe_table[job->recipes].name) {
            job->recipe[job->recipes] = recipe_table[job->recipes];
            job->recipes++;
        }
        return true;
    }
    for (Recipe recipe; recipe_next(&list, &recipe, error);) {
        if (job->recipes == RECIPES_MAX)
            return error_set(error, EXIT_CODE_USAGE, "split the list", "--recipe lists over %d",
                             RECIPES_MAX);
        job->recipe[job->recipes++] = recipe;
    }
    return error->exit_code == 0;
}

// ---- operands ----

static void *make_values(Job *job, int64_t rows, int64_t columns, uint64_t stream, bool by_row)
{
    uint64_t row_bytes = dtype_bytes(job->dtype, (uint64_t)columns);
    char *values = arena_push(job->arena, row_bytes * (uint64_t)rows, MEMORY_ACTIVATIONS);
    int64_t step = by_row ? 1 : rows;
    for (int64_t row = 0; row < rows; row += step)
        random_fill(&(RandomFill){.seed = (uint64_t)job->params->seed + stream,
                                  .first_row = row,
                                  .rows = step,
                                  .columns = columns,
                                  .deviation = by_row ? ldexpf(1.0f, (int)(row * 7 % 9) - 4) : 1.0f,
                                  .dtype = job->dtype,
                                  .out = values + (uint64_t)row * row_bytes},
                    job->stream);
    stream_wait(job->stream);
    return values;
}

// false: the recipe refuses the shape.
static bool make_operand(Job *job, const QuantRule *rule, int rank, const int64_t *shape,
                         const void *values, QuantOperand *operand, Error *refused)
{
    *operand = (QuantOperand){.values = values};
    if (rule->method == QUANT_NONE)
        return true;
    operand->quantised = true;
    if (!qtensor_plan(rule, job->dtype, rank, shape, &operand->q, refused))
        return false;
    qtensor_push(&operand->q, job->arena, MEMORY_ACTIVATIONS);
    cast(&(Cast){.values = values, .to = operand->q, .threads = job->run->threads}, job->stream);
    stream_wait(job->stream);
    return true;
}

// The values on the host: themselves, or a copy.
static const void *to_host(const Job *job, const void *values, int64_t elements)
{
    uint64_t bytes = dtype_bytes(job->dtype, (uint64_t)elements);
    if (job->device == DEVICE_CPU)
        return values;
    void *host = device_allocate(DEVICE_CPU, bytes);
    device_copy(host, values, bytes, job->stream);
    stream_wait(job->stream);
    return host;
}

// ---- one product ----

typedef struct Values {
    const void *a, *b;                 // on the device
    const void *host_a, *host_b;       // the same on the host
    int32_t *group_first, *group_rows; // NULL: dense
} Values;

static void gemm_body(void *context, Stream stream)
{
    quant_gemm(context, stream);
}

static void check_row(Job *job, const Shape *shape, const QuantGemm *product, const Values *values,
                      Row *row)
{
    row->check = product_check(product, values->host_a, values->host_b, job->params->check_rows,
                               job->stream);
    row->good = row->check.error <= 1;
    ResultCheck check = {.error = row->check.error, .bound = 1, .good = row->good};
    snprintf(check.name, sizeof(check.name), "%.24s %.36s", shape->name, row->recipe);
    snprintf(check.verdict, sizeof(check.verdict), row->good ? "within bound" : "differs");
    snprintf(check.detail, sizeof(check.detail),
             "%lld values; nearest to its bound: row %lld, column %lld is %.9g, exactly %.9g; "
             "SQNR %.1f dB",
             (long long)row->check.values, (long long)row->check.row, (long long)row->check.n,
             row->check.ours, row->check.exact, row->check.sqnr_db);
    result_add_check(job->writer, &check);
    job->good = job->good && row->good;
}

// Operations per second of what multiplies these operands. Hopper's tensor cores multiply codes of
// one byte twice as fast as bf16; powers of two as scales make codes bf16 there.
static double operations_per_s(const Job *job, const QuantGemm *p)
{
    if (job->device == DEVICE_CPU || job->dtype == DTYPE_F32)
        return job->ceilings.f32_flops_per_s;
    bool bytes = p->product != PRODUCT_VALUES && p->a.quantised && p->b.quantised &&
                 p->a.q.rule.code != CODE_E2M1 && p->a.q.rule.method != QUANT_MX;
    return (bytes ? 2 : 1) * job->ceilings.bf16_flops_per_s;
}

// What is timed: ours, or the bare one.
typedef struct Body {
    void (*run)(void *context, Stream stream);
    void *context;
} Body;

static Statistics time_row(Job *job, const Shape *shape, const QuantGemm *product, const Row *row,
                           Body body)
{
    const Params *p = job->params;
    char name[RESULT_NAME_BYTES];
    snprintf(name, sizeof(name), "%.24s %.36s", shape->name, row->recipe);
    double out_bytes = (double)(shape->m * shape->n) * (double)dtype_bytes(product->out_dtype, 1);
    return kernel_time(&(KernelTiming){.run = job->run,
                                       .stream = job->stream,
                                       .arena = job->arena,
                                       .ceilings = job->ceilings,
                                       .writer = job->writer,
                                       .name = name,
                                       .body = body.run,
                                       .context = body.context,
                                       .cost = row->cost,
                                       .writes_little = 8 * out_bytes < row->cost.bytes,
                                       .flops_per_s = operations_per_s(job, product),
                                       .rule = {.samples_min = p->samples < 5 ? (int)p->samples : 5,
                                                .samples_max = (int)p->samples,
                                                .noise_max = p->max_noise,
                                                .timeout_s = p->timeout}});
}

// The same codes through cuBLASLt; false: it has no such product.
static bool run_bare(Job *job, const Shape *shape, const QuantGemm *product, const Values *values,
                     const Row *ours, Row *row)
{
    ProductBare *bare = job->device == DEVICE_CUDA && product_bare_create
                            ? product_bare_create(product, job->arena, job->stream)
                            : NULL;
    if (!bare)
        return false;
    QuantGemm result = *product;
    result.c = product_bare_c(bare);
    snprintf(row->recipe, sizeof(row->recipe), "%.60s, cuBLASLt bare", ours->recipe);
    row->cost = ours->cost;
    if (job->params->check)
        check_row(job, shape, &result, values, row);
    if (job->params->samples > 0)
        row->time = time_row(job, shape, product, row, (Body){product_bare_run, bare});
    product_bare_destroy(bare);
    return true;
}

// Codes and scales of the experts that have rows, at the speed of a copy.
static double read_floor_s(const Job *job, const Shape *shape, const QuantGemm *p)
{
    if (p->a.quantised || !p->b.quantised || shape->m == 0)
        return 0;
    double used = shape->m < shape->experts ? (double)shape->m / (double)shape->experts : 1;
    return used * (double)qtensor_bytes(&p->b.q).total / job->ceilings.copy_bytes_per_s;
}

// Returns the rows made: 0 = left out.
static int run_recipe(Job *job, const Shape *shape, const Recipe *recipe, const Values *values,
                      Row *row)
{
    const Params *p = job->params;
    int64_t a_shape[] = {shape->m, shape->k}, b_shape[] = {shape->experts, shape->n, shape->k};
    QuantGemm product = {.product = recipe->form,
                         .dtype = job->dtype,
                         .out_dtype = job->dtype,
                         .groups = (int)shape->experts,
                         .group_first = values->group_first,
                         .group_rows = values->group_rows,
                         .rows_max = shape->m,
                         .n = shape->n,
                         .k = shape->k,
                         .rows_expected = shape->m,
                         .threads = job->run->threads};
    Error refused = {0};
    recipe_format(recipe, row->recipe, sizeof(row->recipe));
    if (!make_operand(job, &recipe->activations, 2, a_shape, values->a, &product.a, &refused) ||
        !make_operand(job, &recipe->weights, 3, b_shape, values->b, &product.b, &refused)) {
        fprintf(stderr, "%s: %s left out: %s\n", shape->name, row->recipe, refused.what);
        return 0;
    }
    uint64_t elements = (uint64_t)(shape->m * shape->n);
    product.c = arena_push(job->arena, dtype_bytes(job->dtype, elements), MEMORY_ACTIVATIONS);
    product.workspace =
        arena_push(job->arena, quant_gemm_workspace_bytes(&product, job->device), MEMORY_SCRATCH);
    device_fill(product.c, 0xFF, dtype_bytes(job->dtype, elements), job->stream);
    quant_gemm(&product, job->stream);
    stream_wait(job->stream);
    row->cost = quant_gemm_cost(&product);
    if (p->check)
        check_row(job, shape, &product, values, row);
    row->read_floor_s = read_floor_s(job, shape, &product);
    if (p->samples > 0)
        row->time = time_row(job, shape, &product, row, (Body){gemm_body, &product});
    bool bare = run_bare(job, shape, &product, values, row, row + 1);
    if (bare)
        row->bare = row[1].time;
    return bare ? 2 : 1;
}

// ---- report ----

static void print_row(Table *table, const Job *job, const Row *row, const Row *none)
{
    char text[64];
    bool timed = row->time.count > 0;
    table_cell(table, "%s", row->recipe);
    table_cell(table, !job->params->check ? "-" : row->good ? "within bound" : "DIFFERS");
    table_cell(table, job->params->check ? "%.2f" : "-", row->check.error);
    table_cell(table, job->params->check ? "%.1f dB" : "-", row->check.sqnr_db);
    table_cell(table, timed ? "%s" : "-", table_seconds(row->time.median, text, sizeof(text)));
    table_cell(table, timed ? "%.1f%%" : "-", 100 * row->time.noise);
    table_cell(table, timed ? "%s" : "-",
               table_rate(row->cost.flops / row->time.median, "flop", text, sizeof(text)));
    table_cell(table, timed && none ? "%.2fx" : "-",
               none ? none->time.median / row->time.median : 0.0);
    table_cell(table, timed && row->read_floor_s > 0 ? "%.0f%%" : "-",
               100 * row->read_floor_s / row->time.median);
    if (job->device != DEVICE_CPU)
        table_cell(table, timed && row->bare.count > 0 ? "%.1f%%" : "-",
                   100 * row->bare.median / row->time.median);
}

static void print_table(const Job *job, const Shape *shape, const Row *rows, int count)
{
    static const char *const columns[] = {
        "recipe", "against double", ">of bound",   ">SQNR", ">median", ">noise",
        ">rate",  ">over none",     ">of reading", NULL,    NULL};
    const char *shown[COUNT_OF(columns)];
    memcpy(shown, columns, sizeof(columns));
    if (job->device != DEVICE_CPU)
        shown[COUNT_OF(columns) - 2] = ">of bare";
    const Row *none = NULL;
    for (int i = 0; i < count; i++)
        if (strcmp(rows[i].recipe, "none") == 0 && rows[i].time.count > 0)
            none = &rows[i];
    Table *table = table_create(shown);
    for (int i = 0; i < count; i++)
        print_row(table, job, &rows[i], none);
    printf("%lld x %lld times %lld x %lld x %lld, %s on %s\n\n", (long long)shape->m,
           (long long)shape->k, (long long)shape->experts, (long long)shape->n, (long long)shape->k,
           dtype_row(job->dtype)->name, device_kind_name(job->device));
    table_print(table, stdout);
    printf("\n");
    table_destroy(table);
}

static void make_groups(Job *job, const Shape *shape, Values *values)
{
    size_t experts = (size_t)shape->experts;
    int32_t *host = malloc(2 * experts * sizeof(int32_t));
    CHECK(host != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %zu groups",
          experts);
    for (int64_t e = 0; e < shape->experts; e++) {
        host[e] = (int32_t)(shape->m * e / shape->experts);
        host[shape->experts + e] = (int32_t)(shape->m * (e + 1) / shape->experts) - host[e];
    }
    int32_t *groups = ARENA_PUSH(job->arena, int32_t, 2 * experts, MEMORY_ACTIVATIONS);
    device_copy(groups, host, 2 * experts * sizeof(int32_t), job->stream);
    stream_wait(job->stream);
    free(host);
    values->group_first = groups;
    values->group_rows = groups + shape->experts;
}

static void run_shape(Job *job, const Shape *shape)
{
    ArenaMark mark = arena_mark(job->arena);
    Row *rows = calloc(ROWS_MAX, sizeof(Row));
    CHECK(rows != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a table");
    int64_t b_rows = shape->experts * shape->n;
    Values values = {.a = make_values(job, shape->m, shape->k, 0, true),
                     .b = make_values(job, b_rows, shape->k, 1, false)};
    values.host_a = to_host(job, values.a, shape->m * shape->k);
    values.host_b = to_host(job, values.b, b_rows * shape->k);
    if (!shape->dense)
        make_groups(job, shape, &values);
    int count = 0;
    for (int i = 0; i < job->recipes && !run_stop_requested(job->run); i++) {
        ArenaMark inner = arena_mark(job->arena);
        count += run_recipe(job, shape, &job->recipe[i], &values, &rows[count]);
        arena_release(job->arena, inner);
    }
    for (int i = 0; job->growth && i < count; i++)
        growth_add(job->growth, rows[i].recipe, (int)(shape - job->shape),
                   rows[i].time.count > 0 ? rows[i].cost.flops / rows[i].time.median : 0);
    if (!job->params->json && !job->growth)
        print_table(job, shape, rows, count);
    free(rows);
    if (job->device != DEVICE_CPU) {
        device_free(DEVICE_CPU, (void *)(uintptr_t)values.host_a);
        device_free(DEVICE_CPU, (void *)(uintptr_t)values.host_b);
    }
    arena_release(job->arena, mark);
}

static void start(Job *job)
{
    const Params *p = job->params;
    int index = 0;
    job->device = run_choose_device(job->run, (DeviceChoice)p->device, &index);
    job->stream = stream_create(job->device);
    job->arena = arena_create(MEMORY_DEVICE, job->device);
    if (p->samples > 0)
        job->ceilings = ceiling_measure(job->device, job->run->threads, job->arena);
    DeviceInfo info = device_info(job->device, index);
    Json *rates = json_object();
    json_set(rates, "copy_bytes_per_s", json_real(job->ceilings.copy_bytes_per_s));
    json_set(rates, "f32_flops_per_s", json_real(job->ceilings.f32_flops_per_s));
    json_set(rates, "bf16_flops_per_s", json_real(job->ceilings.bf16_flops_per_s));
    job->writer =
        result_writer_create(&(ResultStart){.run = job->run,
                                            .options = options,
                                            .params = p,
                                            .device = &info,
                                            .path = p->output,
                                            .force = p->force,
                                            .seed = (uint64_t)p->seed,
                                            .extra = json_set(json_object(), "ceilings", rates)});
}

static int run(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job *job = calloc(1, sizeof(*job));
    CHECK(job != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for the job");
    Error error = {0};
    *job = (Job){.run = run, .params = params, .good = true};
    job->dtype = job->params->dtype ? DTYPE_F32 : DTYPE_BF16;
    if (read_shapes(job, &error))
        read_recipes(job, &error);
    run_agree(run, &error);
    start(job);
    for (int i = 0; i < job->shapes && !run_stop_requested(run); i++)
        run_shape(job, &job->shape[i]);
    result_writer_finish(job->writer);
    if (job->params->json) {
        result_show(result_of(job->writer), true);
    } else if (job->growth) {
        printf("squares of 2^%d to 2^%d elements times each other, %s on %s\n\n", GROWTH_FIRST,
               growth_log2(job->shapes - 1), dtype_row(job->dtype)->name,
               device_kind_name(job->device));
        growth_print(job->growth, "flop");
    }
    bool good = job->good;
    if (!good)
        check_print(__FILE__, __LINE__, "report it with this command line",
                    "a product is beyond its bound");
    growth_destroy(job->growth);
    result_writer_destroy(job->writer);
    stream_destroy(job->stream);
    arena_destroy(job->arena);
    free(job);
    return good ? EXIT_CODE_GOOD : EXIT_CODE_CHECK;
}

const Command command_gemms = {
    .name = "gemms",
    .summary = "products under every recipe: checked against double precision, and timed",
    .usage = "",
    .notes = "Examples:\n"
             "  meshwork gemms --device cpu --shape 8,256,1408,2048 --recipe fp8_row,mxfp8\n"
             "  meshwork gemms --device cpu --shapes moe.txt -o gemms.h5\n"
             "of bound: the largest error found over what rounding allows; over none: how many\n"
             "times as fast as the product of unquantised values in the same run; of reading: the\n"
             "time of reading the weights alone, at the speed of a copy, over ours; of bare: the\n"
             "time of cuBLASLt called with codes and scales ready, over ours.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = false,
    .run = run,
};
