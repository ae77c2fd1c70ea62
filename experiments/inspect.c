// inspect.c -- `meshwork inspect`: what is in a checkpoint, weight by weight, and whether it is
// what its recipe makes of the model it came from.
#include "experiments/model/weight_report.h"
#include "experiments/rewrite/values.h"
#include "harness/command.h"
#include "quant/message.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Params {
    const char *tensor, *against;
    int device;
    bool json;
} Params;

#define FIELD(name) offsetof(Params, name)
static const Option options[] = {
    {"tensor", OPTION_TEXT, FIELD(tensor), NULL, .value = "NAME",
     .doc = "only this weight, or those that a pattern (re:...) names, with their parts"},
    {"against", OPTION_TEXT, FIELD(against), NULL, .value = "DIR",
     .doc = "the model it was made from: errors, and whether quantising it again gives this"},
    {"device", OPTION_CHOICE, FIELD(device), "cpu", .choices = "cpu|cuda|auto",
     .doc = "where --against quantises"},
    {"json", OPTION_SWITCH, FIELD(json), "no", .doc = "print the result as one JSON object"},
    {NULL},
};

typedef struct Job {
    Run *run;
    const Params *params;
    Checkpoint checkpoint;
    Pattern *pattern; // NULL: every weight
    RewriteRequest request;
    Rewrite source; // --against
    RewriteValues values;
    Table *table;
    Json *rows;
    int shown, wrong;
    Error error;
} Job;

// ---- rows ----

static void recipe_of(const Weight *weight, char text[RECIPE_NAME_BYTES])
{
    if (weight->quantised)
        recipe_format(&weight->stored.recipe, text, RECIPE_NAME_BYTES);
    else
        snprintf(text, RECIPE_NAME_BYTES, "-");
}

static Json *parts_json(const Weight *weight)
{
    Json *parts = json_array();
    for (int role = 0; weight->quantised && role < STORED_ROLES; role++) {
        const StoredPart *part = &weight->stored.part[role];
        char shape[96];
        if (!part->present)
            continue;
        Json *row = json_set(json_object(), "suffix", json_text(part->suffix));
        json_set(row, "dtype", json_text(dtype_row(part->tensor.dtype)->tag));
        json_set(row, "shape", json_text(tensor_describe(&part->tensor, shape, sizeof(shape))));
        json_append(parts, row);
    }
    return parts;
}

static void add_report(Job *job, const Weight *weight)
{
    WeightReport report = weight_report(&job->checkpoint, weight);
    char recipe[RECIPE_NAME_BYTES], text[96], shown[QUOTED_BYTES];
    recipe_of(weight, recipe);
    if (job->params->json) {
        Json *row = json_set(json_object(), "name", json_text(weight->name));
        json_set(row, "shape", json_text(tensor_describe(&weight->tensor, text, sizeof(text))));
        json_set(row, "recipe", weight->quantised ? json_text(recipe) : json_null());
        json_set(row, "bytes", json_integer((int64_t)report.bytes));
        json_set(row, "codes", json_integer(report.codes));
        json_set(row, "nan", json_integer(report.nan_codes));
        json_set(row, "zero", json_integer(report.zero_codes));
        json_set(row, "saturated", json_integer(report.saturated_codes));
        json_set(row, "scales", json_integer(report.scales));
        json_set(row, "scale_min", json_real((double)report.scale_min));
        json_set(row, "scale_max", json_real((double)report.scale_max));
        json_set(row, "nan_scales", json_integer(report.nan_scales));
        json_append(job->rows, json_set(row, "parts", parts_json(weight)));
        return;
    }
    table_cell(job->table, "%s", quoted_name(weight->name, shown));
    table_cell(job->table, "%s", tensor_describe(&weight->tensor, text, sizeof(text)));
    table_cell(job->table, "%s", recipe);
    table_cell(job->table, "%s", table_bytes((double)report.bytes, text, sizeof(text)));
    if (report.scales > 0)
        table_cell(job->table, "%.3g .. %.3g", (double)report.scale_min, (double)report.scale_max);
    else
        table_cell(job->table, "-");
    table_cell(job->table, "%lld",
               (long long)(report.nan_codes + report.nan_scales * weight->quantised));
    table_cell(job->table, "%lld", (long long)report.zero_codes);
    table_cell(job->table, "%lld", (long long)report.saturated_codes);
}

static int find_source(const Rewrite *source, const char *name)
{
    int low = 0, high = source->count - 1;
    while (low <= high) {
        int middle = (low + high) / 2;
        int order = checkpoint_compare_names(name, source->tensor[middle].name);
        if (order == 0)
            return middle;
        if (order < 0)
            high = middle - 1;
        else
            low = middle + 1;
    }
    return -1;
}

static void add_comparison(Job *job, const Weight *weight)
{
    int index = find_source(&job->source, weight->name);
    WeightComparison c = weight_compare(weight, &job->values, &job->source, index);
    const char *verdict = weight_verdict_names[c.verdict];
    char shown[QUOTED_BYTES];
    job->wrong += c.verdict == WEIGHT_WRONG || c.verdict == WEIGHT_ELSEWHERE;
    if (job->params->json) {
        Json *row = json_set(json_object(), "name", json_text(weight->name));
        json_set(row, "recipe", json_text(c.recipe));
        json_set(row, "verdict", json_text(verdict));
        json_set(row, "max_error", json_real(c.max_error));
        json_set(row, "sqnr_db", json_real(c.sqnr_db));
        json_set(row, "promised_db", json_real(c.promised_db));
        json_set(row, "nan", json_integer(c.nans));
        json_set(row, "promised_nan", json_integer(c.promised_nans));
        json_append(job->rows, json_set(row, "changed", json_text(c.changed)));
        return;
    }
    table_cell(job->table, "%s", quoted_name(weight->name, shown));
    table_cell(job->table, "%s", c.recipe);
    table_cell(job->table, "%s", verdict);
    table_cell(job->table, "%.3g", c.max_error);
    table_cell(job->table, "%.1f dB", c.sqnr_db);
    table_cell(job->table, "%.1f dB", c.promised_db);
    table_cell(job->table, "%lld", (long long)c.nans);
    table_cell(job->table, "%lld", (long long)c.promised_nans);
    table_cell(job->table, "%s", c.changed[0] ? c.changed : "-");
}

// ---- all of them ----

static bool is_wanted(Job *job, const Weight *weight)
{
    bool matches = true;
    if (job->pattern &&
        !pattern_match(job->pattern, weight->name, PATTERN_FULL, &matches, &job->error))
        return false;
    return matches;
}

static bool open_source(Job *job)
{
    ExpertName name;
    job->request = (RewriteRequest){.model = job->params->against,
                                    .layout = LAYOUT_PLAIN,
                                    .device = (DeviceChoice)job->params->device};
    for (int64_t i = 0; i < job->checkpoint.count; i++) {
        const Weight *weight = &job->checkpoint.weights[i];
        if (expert_name_read(weight->name, weight->tensor.rank, &name)) {
            job->request.experts = name.expert < 0 ? EXPERTS_FUSED : EXPERTS_SEPARATE;
            break;
        }
    }
    if (!rewrite_list(&job->request, &job->source, &job->error))
        return false;
    rewrite_values_create(job->run, &job->source, &job->values);
    return true;
}

// What shares a second scale in the file shares it when it is made again.
static void group_source(Job *job)
{
    for (int64_t i = 0; i < job->checkpoint.count; i++) {
        const Weight *weight = &job->checkpoint.weights[i];
        int index = weight->quantised ? find_source(&job->source, weight->name) : -1;
        if (index < 0)
            continue;
        job->source.tensor[index].action = REWRITE_QUANTISE;
        job->source.tensor[index].stored = weight->stored;
    }
    rewrite_group_amaxes(&job->source, false);
}

static void find_missing(Job *job)
{
    for (int i = 0; i < job->source.count && !job->pattern; i++) {
        const char *name = job->source.tensor[i].name;
        char shown[QUOTED_BYTES];
        if (checkpoint_find(&job->checkpoint, name))
            continue;
        job->wrong++;
        fprintf(stderr, "meshwork: note: %s is in %s only\n", quoted_name(name, shown),
                job->params->against);
    }
}

static void print_head(const Job *job)
{
    char text[64];
    int64_t quantised = 0;
    for (int64_t i = 0; i < job->checkpoint.count; i++)
        quantised += job->checkpoint.weights[i].quantised;
    printf("%s: layout %s, %lld weights, %lld quantised, %d files, %s\n\n", job->checkpoint.folder,
           layout_name(job->checkpoint.layout), (long long)job->checkpoint.count,
           (long long)quantised, job->checkpoint.files,
           table_bytes((double)job->checkpoint.bytes, text, sizeof(text)));
}

static void show(Job *job)
{
    if (!job->params->json) {
        print_head(job);
        table_print(job->table, stdout);
        table_destroy(job->table);
        if (job->params->against)
            printf("\n%s\n",
                   job->wrong ? "NOT what the recipes promise" : "what the recipes promise");
        return;
    }
    Json *json = json_set(json_object(), "folder", json_text(job->checkpoint.folder));
    json_set(json, "layout", json_text(layout_name(job->checkpoint.layout)));
    json_set(json, "files", json_integer(job->checkpoint.files));
    json_set(json, "bytes", json_integer((int64_t)job->checkpoint.bytes));
    if (job->params->against)
        json_set(json, "good", json_boolean(job->wrong == 0));
    json_set(json, "weights", job->rows);
    char *text = json_print(json, false);
    puts(text);
    free(text);
    json_destroy(json);
}

static void begin(Job *job, const char *folder)
{
    static const char *const columns[] = {"weight", "shape",  "recipe",     ">bytes", ">scales",
                                          ">NaN",   ">zeros", ">saturated", NULL};
    static const char *const against[] = {"weight",    "recipe", "verdict",   ">max error", ">SQNR",
                                          ">promised", ">NaN",   ">promised", "changed",    NULL};
    const Params *p = job->params;
    bool good = checkpoint_open(folder, &job->checkpoint, &job->error);
    if (good && p->tensor)
        good = (job->pattern = pattern_create(p->tensor, EXIT_CODE_USAGE, &job->error)) != NULL;
    if (good && p->against)
        good = open_source(job);
    CHECK_RULE(good == (job->error.exit_code == 0));
    run_agree(job->run, &job->error);
    if (job->checkpoint.note[0])
        fprintf(stderr, "meshwork: note: %s\n", job->checkpoint.note);
    if (p->against)
        group_source(job);
    if (p->json)
        job->rows = json_array();
    else
        job->table = table_create(p->against ? against : columns);
}

static int run_inspect(Run *run, const void *params, const OptionPositionals *positionals)
{
    Job job = {.run = run, .params = params};
    if (positionals->count != 1)
        error_set(&job.error, EXIT_CODE_USAGE, "meshwork inspect DIR", "no folder is given");
    run_agree(run, &job.error);
    begin(&job, positionals->value[0]);
    for (int64_t i = 0; i < job.checkpoint.count && job.error.exit_code == 0; i++) {
        const Weight *weight = &job.checkpoint.weights[i];
        if (!is_wanted(&job, weight))
            continue;
        job.shown++;
        if (job.params->against)
            add_comparison(&job, weight);
        else
            add_report(&job, weight);
    }
    if (job.shown == 0 && job.pattern)
        error_set(&job.error, EXIT_CODE_NO_INPUT, "leave --tensor out to see all names",
                  "no weight is called %.200s", job.params->tensor);
    run_agree(run, &job.error);
    if (job.params->against)
        find_missing(&job);
    show(&job);
    if (job.params->against) {
        rewrite_values_destroy(&job.values);
        rewrite_release(&job.source);
    }
    pattern_destroy(job.pattern);
    checkpoint_close(&job.checkpoint);
    return job.wrong ? EXIT_CODE_CHECK : EXIT_CODE_GOOD;
}

const Command command_inspect = {
    .name = "inspect",
    .summary = "what is in a checkpoint: recipes, scales, NaN; and whether it is what it claims",
    .usage = "DIR [--tensor NAME] [--against DIR]",
    .notes = "  meshwork inspect DIR2\n"
             "  meshwork inspect DIR2 --against DIR\n"
             "--against quantises DIR again with each weight's recipe. The exit code is 1 when a "
             "weight is\nneither what that gives nor as near to its source.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 1,
    .spmd = false,
    .run = run_inspect,
};
