// casts.c -- `meshwork casts`: values into the codes and scales of every recipe, each compared with
// the reference byte for byte and timed beside the speed of a copy.
//
// The values are random, one deviation per row, so that blocks differ. SQNR compares what the codes
// stand for with the values, in dB.
#include "experiments/model/growth.h"
#include "experiments/model/kernel_timing.h"
#include "experiments/model/product_check.h"
#include "harness/command.h"
#include "harness/random.h"
#include "harness/run_device.h"
#include "harness/tensor.h"
#include "kernels/cast.h"
#include "quant/recipe.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Params {
    const char *shape, *recipe, *output;
    int64_t seed, samples, grow;
    double max_noise, timeout;
    int device, operand, dtype, form;
    bool check, json, force;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"shape", OPTION_TEXT, FIELD(shape), "2048,2048", .value = "[E,]R,C",
     .doc = "of the values: rows and columns, or experts, rows and columns"},
    {"recipe", OPTION_TEXT, FIELD(recipe), "all", .value = "NAME[,NAME...]",
     .doc = "recipes, with options as in mxfp8:mode=floor; all = every one that takes the shape"},
    {"operand", OPTION_CHOICE, FIELD(operand), "weights", .choices = "weights|activations",
     .doc = "which of a recipe's two rules"},
    {"form", OPTION_CHOICE, FIELD(form), "forward", .choices = "forward|transposed|dual",
     .doc = "quantised along the rows, along the columns, or both"},
    {"grow", OPTION_INT, FIELD(grow), "0", 0, 30,
     .doc = "instead of --shape, 2^10 to 2^this elements, four times as many each time"},
    {"dtype", OPTION_CHOICE, FIELD(dtype), "bf16", .choices = "bf16|f32", .doc = "of the values"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where to run"},
    {"check", OPTION_SWITCH, FIELD(check), "yes",
     .doc = "compare with the reference, byte for byte"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of the values"},
    {"samples", OPTION_INT, FIELD(samples), "30", 0, 100000,
     .doc = "timed casts at most; 0 = no timing"},
    {"max_noise", OPTION_REAL, FIELD(max_noise), "0.02", 0, 10,
     .doc = "stop when the median is known this well (relative)"},
    {"timeout", OPTION_REAL, FIELD(timeout), "20", 0, 1e9,
     .doc = "seconds of sampling per recipe; 0 = no limit"},
    {"output", OPTION_TEXT, FIELD(output), NULL, .value = "FILE.h5", .letter = 'o',
     .doc = "result file (its journal stays beside it until it is complete)"},
    {"force", OPTION_SWITCH, FIELD(force), "no", .doc = "overwrite the result file"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

enum { CASTS_MAX = RECIPES_MAX };
typedef enum CastForm { FORM_FORWARD, FORM_TRANSPOSED, FORM_DUAL } CastForm;

// One row of the table: a recipe that takes the shape.
typedef struct CastRow {
    char name[RECIPE_NAME_BYTES];
    Recipe recipe;
    QTensor tensor;     // without memory
    QTensor transposed; // likewise
    bool equal;
    double sqnr_db;
    Statistics time; // count 0 = not timed
    KernelCost cost;
} CastRow;

typedef struct Job {
    Run *run;
    const Params *params;
    DeviceKind device;
    int device_index;
    Stream stream;
    Arena *arena; // of the device
    DeviceCeilings ceilings;
    ResultWriter *writer;
    int rank;
    int64_t shape[QTENSOR_RANK_MAX], rows, columns;
    DType dtype;
    void *values;      // on the device
    void *host_values; // the same, for the reference
    CastRow row[CASTS_MAX];
    int rows_count;
    int size; // of the growth's; 0 without --grow
    Growth *growth;
    bool good;
} Job;

// ---- request ----

static bool parse_shape(Job *job, Error *error)
{
    static const char *const fix = "write two or three sizes, such as --shape 16384,16384";
    const char *text = job->params->shape;
    for (const char *at = text; at; job->rank++) {
        char *end;
        bool digit = *at >= '0' && *at <= '9';
        long long size = digit ? strtoll(at, &end, 10) : 0;
        if (!digit || (*end != ',' && *end != '\0') || size > INT32_MAX ||
            job->rank == QTENSOR_RANK_MAX)
            return error_set(error, EXIT_CODE_USAGE, fix, "--shape '%.60s' is no shape", text);
        job->shape[job->rank] = size;
        at = *end == ',' ? end + 1 : NULL;
    }
    if (job->rank < 2)
        return error_set(error, EXIT_CODE_USAGE, fix, "--shape '%.60s' has one dimension", text);
    job->columns = job->shape[job->rank - 1];
    job->rows = job->shape[0] * (job->rank == 3 ? job->shape[1] : 1);
    return true;
}

static bool with_forward(const Job *job)
{
    return job->params->form != FORM_TRANSPOSED;
}

static bool with_transposed(const Job *job)
{
    return job->params->form != FORM_FORWARD;
}

// Takes the recipe in, unless it does not quantise this operand or refuses the shape; `asked`: then
// that is an error.
static bool add_recipe(Job *job, const Recipe *recipe, bool asked, Error *error)
{
    const QuantRule *rule = job->params->operand ? &recipe->activations : &recipe->weights;
    if (rule->method == QUANT_NONE)
        return !asked || error_set(error, EXIT_CODE_USAGE, "choose another recipe or --operand",
                                   "recipe %s leaves these values as they are", recipe->name);
    CastRow row = {.recipe = *recipe};
    Error refused = {0};
    recipe_format(recipe, row.name, sizeof(row.name));
    int64_t turned[QTENSOR_RANK_MAX];
    memcpy(turned, job->shape, sizeof(turned));
    turned[job->rank - 2] = job->shape[job->rank - 1];
    turned[job->rank - 1] = job->shape[job->rank - 2];
    if ((with_forward(job) &&
         !qtensor_plan(rule, job->dtype, job->rank, job->shape, &row.tensor, &refused)) ||
        (with_transposed(job) &&
         !qtensor_plan(rule, job->dtype, job->rank, turned, &row.transposed, &refused))) {
        if (asked)
            return error_set(error, refused.exit_code, refused.fix, "recipe %s: %.400s", row.name,
                             refused.what);
        if (!job->params->grow)
            fprintf(stderr, "%s left out: %s\n", row.name, refused.what);
        return true;
    }
    CHECK_RULE(job->rows_count < CASTS_MAX);
    job->row[job->rows_count++] = row;
    return true;
}

static bool add_recipes(Job *job, Error *error)
{
    const char *text = job->params->recipe;
    if (strcmp(text, "all") == 0) {
        for (const Recipe *recipe = recipe_table; recipe->name; recipe++)
            add_recipe(job, recipe, false, error);
        return true;
    }
    for (Recipe recipe; recipe_next(&text, &recipe, error);) {
        if (job->rows_count == CASTS_MAX)
            return error_set(error, EXIT_CODE_USAGE, "split the list", "--recipe lists over %d",
                             CASTS_MAX);
        if (!add_recipe(job, &recipe, true, error))
            return false;
    }
    return error->exit_code == 0;
}

// ---- values ----

// One deviation per row: 2^-4 .. 2^4.
static void make_values(Job *job)
{
    uint64_t bytes = dtype_bytes(job->dtype, (uint64_t)(job->rows * job->columns));
    job->values = arena_push(job->arena, bytes, MEMORY_ACTIVATIONS);
    uint64_t row_bytes = dtype_bytes(job->dtype, (uint64_t)job->columns);
    for (int64_t row = 0; row < job->rows; row++)
        random_fill(&(RandomFill){.seed = (uint64_t)job->params->seed,
                                  .first_row = row,
                                  .rows = 1,
                                  .columns = job->columns,
                                  .deviation = ldexpf(1.0f, (int)(row * 7 % 9) - 4),
                                  .dtype = job->dtype,
                                  .out = (char *)job->values + (uint64_t)row * row_bytes},
                    job->stream);
    stream_wait(job->stream);
    job->host_values = job->values;
    if (job->device == DEVICE_CPU)
        return;
    job->host_values = device_allocate(DEVICE_CPU, bytes);
    device_copy(job->host_values, job->values, bytes, job->stream);
    stream_wait(job->stream);
}

// ---- one recipe ----

static void cast_body(void *context, Stream stream)
{
    cast(context, stream);
}

// The first part and byte that differ from the reference; NULL if none.
static bool compare(const QTensor *ours, const QTensor *reference, char *text, size_t size)
{
    QTensorBytes bytes = qtensor_bytes(ours);
    const struct {
        const char *name;
        const void *a, *b;
        uint64_t bytes;
    } parts[] = {
        {"scales", ours->scales, reference->scales, bytes.scales},
        {"zero points", ours->zeros, reference->zeros, bytes.zeros},
        {"second scales", ours->tensor_scales, reference->tensor_scales, bytes.tensor_scales},
        {"codes", ours->codes, reference->codes, bytes.codes},
    };
    for (size_t part = 0; part < COUNT_OF(parts); part++) {
        const uint8_t *a = parts[part].a, *b = parts[part].b;
        if (parts[part].bytes == 0 || memcmp(a, b, parts[part].bytes) == 0)
            continue;
        uint64_t at = 0;
        while (a[at] == b[at])
            at++;
        snprintf(text, size, "byte %llu of %llu of the %s is %02X, the reference has %02X",
                 (unsigned long long)at, (unsigned long long)parts[part].bytes, parts[part].name,
                 a[at], b[at]);
        return false;
    }
    snprintf(text, size, "%llu bytes", (unsigned long long)bytes.total);
    return true;
}

// Whether the bytes are those of the reference.
static bool check_tensor(Job *job, const QTensor *q, bool transposed, ResultCheck *check,
                         double *sqnr_db)
{
    QTensor host = qtensor_on_host(q, job->stream), reference = *q;
    qtensor_allocate(&reference);
    (transposed ? quantise_transposed : quantise)(job->host_values, NULL, &reference);
    bool equal = compare(&host, &reference, check->detail, sizeof(check->detail));
    if (!transposed)
        *sqnr_db = cast_sqnr_db(&host, job->host_values);
    qtensor_free(&reference);
    qtensor_host_free(q, &host);
    return equal;
}

static void check_row(Job *job, CastRow *row, const Cast *args)
{
    ResultCheck check = {.error = NAN, .bound = NAN};
    row->sqnr_db = NAN;
    row->equal = true;
    if (with_forward(job))
        row->equal = check_tensor(job, &args->to, false, &check, &row->sqnr_db);
    if (row->equal && with_transposed(job))
        row->equal = check_tensor(job, &args->transposed, true, &check, &row->sqnr_db);
    check.good = row->equal;
    snprintf(check.name, sizeof(check.name), "%.40s, byte for byte", row->name);
    snprintf(check.verdict, sizeof(check.verdict), row->equal ? "equal" : "differs");
    result_add_check(job->writer, &check);
    job->good = job->good && row->equal;
}

static QTensor place(Job *job, const QTensor *plan)
{
    QTensor q = *plan;
    qtensor_push(&q, job->arena, MEMORY_ACTIVATIONS);
    device_fill(q.codes, 0xA5, qtensor_bytes(&q).codes, job->stream);
    return q;
}

static void run_row(Job *job, CastRow *row)
{
    const Params *p = job->params;
    ArenaMark mark = arena_mark(job->arena);
    Cast args = {.values = job->values, .threads = job->run->threads};
    if (with_forward(job))
        args.to = place(job, &row->tensor);
    if (with_transposed(job))
        args.transposed = place(job, &row->transposed);
    int64_t marks = with_transposed(job)
                        ? cast_marks(&args.transposed, args.transposed.matrices, job->stream.device)
                        : 0;
    if (marks > 0)
        args.marks = ARENA_PUSH(job->arena, uint32_t, marks, MEMORY_SCRATCH);
    cast(&args, job->stream);
    stream_wait(job->stream);
    row->cost = cast_cost(&args);
    if (p->check)
        check_row(job, row, &args);
    char name[RECIPE_NAME_BYTES + 16];
    snprintf(name, sizeof(name), p->grow ? "%s 2^%d" : "%s", row->name, growth_log2(job->size));
    if (p->samples > 0)
        row->time = kernel_time(
            &(KernelTiming){.run = job->run,
                            .stream = job->stream,
                            .arena = job->arena,
                            .ceilings = job->ceilings,
                            .writer = job->writer,
                            .name = name,
                            .body = cast_body,
                            .context = &args,
                            .cost = row->cost,
                            .rule = {.samples_min = p->samples < 5 ? (int)p->samples : 5,
                                     .samples_max = (int)p->samples,
                                     .noise_max = p->max_noise,
                                     .timeout_s = p->timeout}});
    arena_release(job->arena, mark);
}

// ---- report ----

static void print_time(Table *table, const Job *job, const CastRow *row)
{
    char text[64];
    double rate = row->cost.bytes / row->time.median;
    table_cell(table, "%s", table_bytes(row->cost.bytes, text, sizeof(text)));
    table_cell(table, "%s", table_seconds(row->time.median, text, sizeof(text)));
    table_cell(table, "%.1f%%", 100 * row->time.noise);
    table_cell(table, "%s", table_rate(rate, "B", text, sizeof(text)));
    table_cell(table, "%.0f%%", 100 * rate / job->ceilings.copy_bytes_per_s);
}

static void print_heading(const Job *job, const char *sizes)
{
    static const char *const forms[] = {"", ", transposed", ", both ways from one call"};
    char text[64];
    printf("%s of %s values %s on %s", job->params->operand ? "activations" : "weights",
           dtype_row(job->dtype)->name, sizes, device_kind_name(job->device));
    if (job->device == DEVICE_CPU)
        printf(" (%s, %d threads)", cast_loops_best()->name, job->run->threads);
    printf("%s; copy: %s\n\n", forms[job->params->form],
           table_rate(job->ceilings.copy_bytes_per_s, "B", text, sizeof(text)));
}

static void print_growth(const Job *job)
{
    char text[64];
    snprintf(text, sizeof(text), "of 2^%d to 2^%d elements", GROWTH_FIRST, growth_log2(job->size));
    print_heading(job, text);
    growth_print(job->growth, "B");
}

static void print_table(const Job *job)
{
    static const char *const columns[] = {"recipe", "reference", ">SQNR",    ">bytes", ">median",
                                          ">noise", ">rate",     ">of copy", NULL};
    Table *table = table_create(columns);
    for (const CastRow *row = job->row; row < job->row + job->rows_count; row++) {
        table_cell(table, "%s", row->name);
        table_cell(table, !job->params->check ? "-" : row->equal ? "equal" : "DIFFERS");
        table_cell(table, isnan(row->sqnr_db) || !job->params->check ? "-" : "%.1f dB",
                   row->sqnr_db);
        if (row->time.count > 0)
            print_time(table, job, row);
        for (int i = 0; row->time.count == 0 && i < 5; i++)
            table_cell(table, "-");
    }
    print_heading(job, job->params->shape);
    table_print(table, stdout);
    table_destroy(table);
}

static void start(Job *job)
{
    const Params *p = job->params;
    job->device = run_choose_device(job->run, (DeviceChoice)p->device, &job->device_index);
    job->stream = stream_create(job->device);
    job->arena = arena_create(MEMORY_DEVICE, job->device);
    if (p->samples > 0)
        job->ceilings = ceiling_measure(job->device, job->run->threads, job->arena);
    DeviceInfo info = device_info(job->device, job->device_index);
    Json *rates = json_object();
    json_set(rates, "copy_bytes_per_s", json_real(job->ceilings.copy_bytes_per_s));
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

static void run_rows(Job *job)
{
    ArenaMark mark = arena_mark(job->arena);
    make_values(job);
    for (int i = 0; i < job->rows_count && !run_stop_requested(job->run); i++)
        run_row(job, &job->row[i]);
    if (job->device != DEVICE_CPU)
        device_free(DEVICE_CPU, job->host_values);
    arena_release(job->arena, mark);
}

// A matrix of so many elements, not higher than wide.
static void take_size(Job *job, int size, Error *error)
{
    int log2 = growth_log2(size);
    job->size = size;
    job->rank = 2;
    job->shape[0] = job->rows = (int64_t)1 << (log2 / 2);
    job->shape[1] = job->columns = (int64_t)1 << (log2 - log2 / 2);
    job->rows_count = 0;
    add_recipes(job, error);
}

static void run_growth(Job *job)
{
    Error error = {0};
    job->growth = growth_create();
    for (int size = 0; size < growth_sizes(job->params->grow); size++) {
        if (run_stop_requested(job->run))
            break;
        take_size(job, size, &error);
        run_rows(job);
        for (const CastRow *row = job->row; row < job->row + job->rows_count; row++)
            growth_add(job->growth, row->name, size,
                       row->time.count > 0 ? row->cost.bytes / row->time.median : 0);
    }
}

static int run(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job *job = calloc(1, sizeof(*job));
    CHECK(job != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for the job");
    Error error = {0};
    *job = (Job){.run = run, .params = params, .good = true};
    job->dtype = job->params->dtype ? DTYPE_F32 : DTYPE_BF16;
    const bool grows = job->params->grow > 0;
    if (growth_check(job->params->grow, &error)) {
        if (grows) // names are checked with the largest, which most recipes take
            take_size(job, growth_sizes(job->params->grow) - 1, &error);
        else if (parse_shape(job, &error))
            add_recipes(job, &error);
    }
    run_agree(run, &error);
    start(job);
    if (grows)
        run_growth(job);
    else
        run_rows(job);
    result_writer_finish(job->writer);
    if (job->params->json)
        result_show(result_of(job->writer), true);
    else if (grows)
        print_growth(job);
    else
        print_table(job);
    bool good = job->good;
    if (!good)
        check_print(__FILE__, __LINE__, "report it with this command line",
                    "a cast differs from the reference");
    growth_destroy(job->growth);
    result_writer_destroy(job->writer);
    stream_destroy(job->stream);
    arena_destroy(job->arena);
    free(job);
    return good ? EXIT_CODE_GOOD : EXIT_CODE_CHECK;
}

const Command command_casts = {
    .name = "casts",
    .summary =
        "values into the codes and scales of every recipe: checked, and timed against a copy",
    .usage = "",
    .notes =
        "Examples:\n"
        "  meshwork casts --device cpu --shape 4096,4096 -o casts.h5\n"
        "  meshwork casts --shape 60,2816,2048 --recipe fp8_row,mxfp8:mode=floor\n"
        "  meshwork casts --device cuda --form dual --shape 16384,16384 --recipe mxfp8\n"
        "  meshwork casts --device cuda --grow 30 --recipe fp8_row,mxfp8\n"
        "Bytes are those that must move: values (twice where a scale needs the largest of all,\n"
        "or of whole columns), codes and scales once.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = false,
    .run = run,
};
