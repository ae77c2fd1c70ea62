// ao.c -- `meshwork ao`: what a recipe does to the modules of a model, one line each, and which
// recipe is the cheapest for each shape of weight.
//
// The model is a small built-in one, or a model's folder. Nothing is written but the rules and the
// result: `ao` tells, `quantize` does.
#include "experiments/ao/trial.h"
#include "harness/command.h"
#include "harness/run_device.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Params {
    const char *recipe, *model, *match, *skip, *rules_out, *output;
    int64_t rows, seed, samples;
    double min_sqnr, max_noise, timeout;
    int device;
    bool autoquant, json, force;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"recipe", OPTION_TEXT, FIELD(recipe), NULL, .value = "NAME", .doc = "what is applied"},
    {"autoquant", OPTION_SWITCH, FIELD(autoquant), "no",
     .doc = "for every shape of weight, the fastest recipe of all that is good enough"},
    {"min_sqnr", OPTION_REAL, FIELD(min_sqnr), "30", 0, 200,
     .doc = "autoquant: of every output, in dB"},
    {"rules_out", OPTION_TEXT, FIELD(rules_out), NULL, .value = "FILE.json",
     .doc = "autoquant: the choice as a rules file, as `quantize` takes it"},
    {"model", OPTION_TEXT, FIELD(model), NULL, .value = "DIR",
     .doc = "a model's folder; without it a small built-in model"},
    {"match", OPTION_TEXT, FIELD(match), NULL, .value = "PATTERN",
     .doc = "only modules of this name; re:EXPRESSION fits whole names"},
    {"skip", OPTION_TEXT, FIELD(skip), NULL, .value = "PATTERN", .doc = "not modules of this name"},
    {"rows", OPTION_INT, FIELD(rows), "16", 1, 1 << 20, .doc = "of the random input"},
    {"device", OPTION_CHOICE, FIELD(device), "auto", .choices = "cpu|cuda|auto",
     .doc = "where to run"},
    {"seed", OPTION_INT, FIELD(seed), "6", 0, 9e18, .doc = "seed of the values"},
    {"samples", OPTION_INT, FIELD(samples), "10", 0, 100000,
     .doc = "timed products at most; 0 = no timing (not with --autoquant)"},
    {"max_noise", OPTION_REAL, FIELD(max_noise), "0.02", 0, 10,
     .doc = "stop when the median is known this well (relative)"},
    {"timeout", OPTION_REAL, FIELD(timeout), "2", 0, 1e9,
     .doc = "seconds of sampling per product; 0 = no limit"},
    {"output", OPTION_TEXT, FIELD(output), NULL, .value = "FILE.h5", .letter = 'o',
     .doc = "result file (its journal stays beside it until it is complete)"},
    {"force", OPTION_SWITCH, FIELD(force), "no", .doc = "overwrite files that exist"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

typedef struct Job {
    const Params *params;
    AoBench bench;
    AoModules modules;
    Recipe recipe;
    bool good;
} Job;

static void report(Job *job, const char *name, const AoTrial *trial)
{
    ResultCheck check = {.error = trial->error, .bound = 1, .good = trial->error <= 1};
    snprintf(check.name, sizeof(check.name), "%.63s", name);
    snprintf(check.verdict, sizeof(check.verdict), check.good ? "within bound" : "differs");
    snprintf(check.detail, sizeof(check.detail), "SQNR: weight %.1f dB, output %.1f dB",
             trial->weight_db, trial->output_db);
    result_add_check(job->bench.writer, &check);
    job->good = job->good && check.good;
}

// A name for results: short, and no two alike.
static void label_of(int index, const char *name, const char *what, char *text)
{
    size_t length = strlen(name);
    snprintf(text, RESULT_NAME_BYTES, "%d %.28s %.20s", index,
             length > 28 ? name + length - 28 : name, what);
}

// ---- one recipe, module by module ----

static void time_cell(Table *table, const Statistics *time)
{
    char text[64];
    if (time->count == 0)
        table_cell(table, "-");
    else
        table_cell(table, "%s +-%.0f%%", table_seconds(time->median, text, sizeof(text)),
                   100 * time->noise);
}

static void print_module(Table *table, const AoModule *module, const char *what,
                         const AoTrial *before, const AoTrial *after)
{
    char text[64];
    bool applied = after != NULL;
    uint64_t bytes = 2 * (uint64_t)(module->rows * module->columns);
    table_cell(table, "%s", module->name);
    table_cell(table, "%lld x %lld", (long long)module->rows, (long long)module->columns);
    table_cell(table, "%s", what);
    table_cell(table, "%s", table_bytes((double)bytes, text, sizeof(text)));
    table_cell(table, applied ? "%s" : "-",
               table_bytes(applied ? (double)after->bytes : 0, text, sizeof(text)));
    table_cell(table, applied ? "%.1f dB" : "-", applied ? after->weight_db : 0.0);
    table_cell(table, applied ? "%.1f dB" : "-", applied ? after->output_db : 0.0);
    if (!applied) {
        table_cell(table, "-");
        table_cell(table, "-");
        return;
    }
    time_cell(table, &before->time);
    time_cell(table, &after->time);
}

// Returns whether the recipe was applied.
static bool apply(Job *job, Table *table, int index)
{
    const AoModule *module = &job->modules.module[index];
    char name[RECIPE_NAME_BYTES], label[RESULT_NAME_BYTES], what[AO_WHY_BYTES + 16];
    recipe_format(&job->recipe, name, sizeof(name));
    AoTrial before = {0}, after = {0};
    if (module->chosen) {
        label_of(index, module->name, name, label);
        ao_trial(&job->bench, module, &job->recipe, label, &after);
    }
    if (!module->chosen || after.refused[0]) {
        snprintf(what, sizeof(what), "left: %s", module->chosen ? after.refused : module->why);
        print_module(table, module, what, NULL, NULL);
        return false;
    }
    report(job, label, &after);
    label_of(index, module->name, "before", label);
    ao_trial(&job->bench, module, &recipe_table[0], label, &before);
    print_module(table, module, name, &before, &after);
    return true;
}

static void apply_all(Job *job)
{
    static const char *const columns[] = {"module",      ">shape",  "recipe",  ">before",
                                          ">after",      ">weight", ">output", ">time before",
                                          ">time after", NULL};
    Table *table = table_create(columns);
    int applied = 0;
    for (int i = 0; i < job->modules.count && !run_stop_requested(job->bench.run); i++)
        applied += apply(job, table, i);
    if (!job->params->json) {
        table_print(table, stdout);
        printf("\n%d of %d modules quantised\n", applied, job->modules.count);
    }
    table_destroy(table);
}

// ---- the cheapest recipe for every shape ----

enum { CANDIDATES_MAX = RECIPES_MAX };

typedef struct Candidate {
    const Recipe *recipe;
    AoTrial trial; // of the first module of the shape; output_db: the least of all of them
} Candidate;

typedef struct Shape {
    int64_t rows, columns;
    int modules, first; // how many, and the first of them
    double drift;       // two measurements of the unquantised product, relative
    Candidate candidate[CANDIDATES_MAX];
    int candidates, chosen;
} Shape;

static bool same_shape(const AoModule *a, const AoModule *b)
{
    return a->chosen && b->chosen && a->rows == b->rows && a->columns == b->columns;
}

static bool is_first(const AoModules *modules, int index)
{
    for (int i = 0; i < index; i++)
        if (same_shape(&modules->module[i], &modules->module[index]))
            return false;
    return modules->module[index].chosen;
}

// The least SQNR over all modules of the shape.
static void judge_others(Job *job, const Shape *shape, Candidate *candidate)
{
    const AoModules *modules = &job->modules;
    for (int i = shape->first + 1; i < modules->count; i++) {
        AoTrial trial;
        if (!same_shape(&modules->module[i], &modules->module[shape->first]))
            continue;
        ao_trial(&job->bench, &modules->module[i], candidate->recipe, NULL, &trial);
        candidate->trial.output_db = fmin(candidate->trial.output_db, trial.output_db);
        candidate->trial.error = fmax(candidate->trial.error, trial.error);
    }
}

static void try_all(Job *job, Shape *shape)
{
    const AoModule *module = &job->modules.module[shape->first];
    char label[RESULT_NAME_BYTES], size[48];
    snprintf(size, sizeof(size), "%lld x %lld", (long long)shape->rows, (long long)shape->columns);
    for (const Recipe *recipe = recipe_table; recipe->name; recipe++) {
        Candidate *candidate = &shape->candidate[shape->candidates];
        if (run_stop_requested(job->bench.run))
            return;
        candidate->recipe = recipe;
        label_of(shape->first, size, recipe->name, label);
        ao_trial(&job->bench, module, recipe, label, &candidate->trial);
        if (candidate->trial.refused[0])
            continue;
        judge_others(job, shape, candidate);
        report(job, label, &candidate->trial);
        shape->candidates++;
    }
    AoTrial again; // after all of the others, so that what drifted in between shows
    label_of(shape->first, size, "none again", label);
    ao_trial(&job->bench, module, &recipe_table[0], label, &again);
    double first = shape->candidate[0].trial.time.median;
    shape->drift = fabs(again.time.median - first) / fmin(again.time.median, first);
}

static bool good_enough(const Job *job, const Candidate *c)
{
    return c->recipe->weights.method == QUANT_NONE || c->trial.output_db >= job->params->min_sqnr;
}

// The fastest that is good enough; of those that cannot be told from it, the smallest.
static void choose(const Job *job, Shape *shape)
{
    int fastest = 0;
    for (int i = 1; i < shape->candidates; i++)
        if (good_enough(job, &shape->candidate[i]) &&
            shape->candidate[i].trial.time.median < shape->candidate[fastest].trial.time.median)
            fastest = i;
    shape->chosen = fastest;
    for (int i = 0; i < shape->candidates; i++) {
        const AoTrial *t = &shape->candidate[i].trial;
        const AoTrial *best = &shape->candidate[shape->chosen].trial;
        bool tied = ao_compare(&t->time, &shape->candidate[fastest].trial.time, shape->drift) == 0;
        bool better =
            t->bytes < best->bytes || (t->bytes == best->bytes && t->output_db > best->output_db);
        if (good_enough(job, &shape->candidate[i]) && tied && better)
            shape->chosen = i;
    }
}

static void print_shape(const Job *job, const Shape *shape)
{
    static const char *const columns[] = {"recipe", ">bytes", ">output", ">time", "verdict", NULL};
    const Candidate *chosen = &shape->candidate[shape->chosen];
    Table *table = table_create(columns);
    for (int i = 0; i < shape->candidates; i++) {
        const Candidate *c = &shape->candidate[i];
        char text[64];
        int than = ao_compare(&c->trial.time, &chosen->trial.time, shape->drift);
        table_cell(table, "%s", c->recipe->name);
        table_cell(table, "%s", table_bytes((double)c->trial.bytes, text, sizeof(text)));
        table_cell(table, "%.1f dB", c->trial.output_db);
        time_cell(table, &c->trial.time);
        if (c == chosen)
            table_cell(table, "chosen");
        else if (!good_enough(job, c))
            table_cell(table, "below %.4g dB", job->params->min_sqnr);
        else
            table_cell(table, than == 0  ? "no faster or slower than it"
                              : than > 0 ? "slower"
                                         : "faster");
    }
    printf("%lld x %lld, %d modules such as %s; two runs of none lie %.1f%% apart\n\n",
           (long long)shape->rows, (long long)shape->columns, shape->modules,
           job->modules.module[shape->first].name, 100 * shape->drift);
    table_print(table, stdout);
    table_destroy(table);
    printf("\n");
}

static bool write_rules(const Job *job, const int *recipe_of_module, Error *error)
{
    Json *rules = json_object();
    for (int i = 0; i < job->modules.count; i++) {
        char name[AO_NAME_BYTES + 8];
        if (recipe_of_module[i] <= 0)
            continue;
        snprintf(name, sizeof(name), "%s.weight", job->modules.module[i].name);
        json_set(rules, name, json_text(recipe_table[recipe_of_module[i]].name));
    }
    json_set(rules, "_default", json_null());
    char *text = json_print(rules, true);
    FileWriter writer;
    bool good = file_writer_open(&writer, job->params->rules_out, job->params->force, error) &&
                file_writer_write(&writer, text, strlen(text), error) &&
                file_writer_write(&writer, "\n", 1, error) && file_writer_commit(&writer, error);
    free(text);
    json_destroy(rules);
    return good;
}

static void autoquant(Job *job, Error *error)
{
    const AoModules *modules = &job->modules;
    int *recipe_of_module = calloc((size_t)modules->count + 1, sizeof(int));
    Shape *shape = malloc(sizeof(*shape));
    CHECK(recipe_of_module && shape, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for %d modules", modules->count);
    for (int i = 0; i < modules->count && !run_stop_requested(job->bench.run); i++) {
        const AoModule *module = &modules->module[i];
        if (!is_first(modules, i))
            continue;
        *shape = (Shape){.rows = module->rows, .columns = module->columns, .first = i};
        for (int other = i; other < modules->count; other++)
            shape->modules += same_shape(module, &modules->module[other]);
        try_all(job, shape);
        if (run_stop_requested(job->bench.run))
            break;
        choose(job, shape);
        if (!job->params->json)
            print_shape(job, shape);
        for (int other = i; other < modules->count; other++)
            if (same_shape(module, &modules->module[other]))
                recipe_of_module[other] =
                    (int)(shape->candidate[shape->chosen].recipe - recipe_table);
    }
    if (job->params->rules_out && !run_stop_requested(job->bench.run))
        write_rules(job, recipe_of_module, error);
    free(shape);
    free(recipe_of_module);
}

// ---- set-up ----

static bool read_request(Job *job, Error *error)
{
    const Params *p = job->params;
    if (p->autoquant == (p->recipe != NULL))
        return error_set(error, EXIT_CODE_USAGE, "add --recipe NAME or --autoquant",
                         "ao needs one of --recipe and --autoquant");
    if (p->autoquant && p->samples == 0)
        return error_set(error, EXIT_CODE_USAGE, "raise --samples", "--autoquant times products");
    if (p->rules_out && !p->autoquant)
        return error_set(error, EXIT_CODE_USAGE, "add --autoquant, or drop --rules_out",
                         "--rules_out is autoquant's");
    if (p->recipe && !recipe_parse(p->recipe, &job->recipe, error))
        return false;
    if (p->rules_out && !file_check_creatable(p->rules_out, p->force, error))
        return false;
    if (!p->model)
        job->modules = ao_modules_built_in((uint64_t)p->seed);
    else if (!ao_modules_read(p->model, &job->modules, error))
        return false;
    return ao_modules_choose(&job->modules, p->match, p->skip, error);
}

static void start(Job *job, Run *run)
{
    const Params *p = job->params;
    int index = 0;
    DeviceKind device = run_choose_device(run, (DeviceChoice)p->device, &index);
    AoBench *b = &job->bench;
    *b = (AoBench){.run = run,
                   .stream = stream_create(device),
                   .arena = arena_create(MEMORY_DEVICE, device),
                   .rows = p->rows,
                   .seed = (uint64_t)p->seed + 1000,
                   .rule = {.samples_min = p->samples < 5 ? (int)p->samples : 5,
                            .samples_max = (int)p->samples,
                            .noise_max = p->max_noise,
                            .timeout_s = p->timeout}};
    if (p->samples > 0)
        b->ceilings = ceiling_measure(device, run->threads, b->arena);
    DeviceInfo info = device_info(device, index);
    b->writer = result_writer_create(&(ResultStart){.run = run,
                                                    .options = options,
                                                    .params = p,
                                                    .device = &info,
                                                    .path = p->output,
                                                    .force = p->force,
                                                    .seed = (uint64_t)p->seed});
}

static int run(Run *run, const void *params, const OptionPositionals *positionals)
{
    (void)positionals;
    Job job = {.params = params, .good = true};
    Error error = {0};
    read_request(&job, &error);
    run_agree(run, &error);
    start(&job, run);
    if (job.params->autoquant)
        autoquant(&job, &error);
    else
        apply_all(&job);
    run_agree(run, &error);
    result_writer_finish(job.bench.writer);
    if (job.params->json)
        result_show(result_of(job.bench.writer), true);
    if (!job.good)
        check_print(__FILE__, __LINE__, "report it with this command line",
                    "a product is beyond its bound");
    result_writer_destroy(job.bench.writer);
    stream_destroy(job.bench.stream);
    arena_destroy(job.bench.arena);
    ao_modules_destroy(&job.modules);
    return job.good ? EXIT_CODE_GOOD : EXIT_CODE_CHECK;
}

const Command command_ao = {
    .name = "ao",
    .summary = "what a recipe does to every module of a model; or the cheapest recipe for each",
    .usage = "",
    .notes = "Examples:\n"
             "  meshwork ao --recipe int8_weight_only --match 're:.*experts.*'\n"
             "  meshwork ao --autoquant --min_sqnr 30 --rules_out rules.json\n"
             "Without --match, routers, norms and embeddings stay as `quantize` leaves them.\n"
             "weight, output: signal over noise against unquantised values, random input.\n"
             "autoquant: every recipe that takes the shape is timed; of those that keep\n"
             "--min_sqnr for all modules of the shape the fastest is chosen, and of those that\n"
             "noise does not tell from it the smallest.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = false,
    .run = run,
};
