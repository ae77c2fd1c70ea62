// show.c -- plans and summaries for people and for machines.
#include "experiments/rewrite/show.h"

#include "experiments/rewrite/estimate.h"
#include "results/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool rewrite_read_size(const char *text, uint64_t *bytes, Error *error)
{
    static const struct {
        const char *unit;
        double factor;
    } units[] = {{"", 1},         {"B", 1},           {"KB", 1e3},
                 {"MB", 1e6},     {"GB", 1e9},        {"TB", 1e12},
                 {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}};
    char *end;
    double number = strtod(text, &end);
    for (size_t i = 0; end != text && number > 0 && i < COUNT_OF(units); i++)
        if (strcmp(end, units[i].unit) == 0 && number * units[i].factor < 9e18) {
            *bytes = (uint64_t)(number * units[i].factor);
            return *bytes > 0;
        }
    return error_set(error, EXIT_CODE_USAGE, "write a size, such as 5GB or 500MB",
                     "--max_shard '%.60s' is no size", text);
}

static const char *action_name(const RewriteTensor *tensor)
{
    static const char *const names[] = {
        [REWRITE_COPY] = "copied",
        [REWRITE_ROUND] = "rounded",
        [REWRITE_DEQUANTISE] = "dequantised",
        [REWRITE_QUANTISE] = "quantised",
        [REWRITE_MOVE] = "moved",
    };
    return names[tensor->action];
}

static uint64_t bytes_of(const RewriteTensor *tensor)
{
    uint64_t bytes = 0;
    if (!rewrite_is_quantised(tensor))
        return tensor_bytes(&tensor->tensor);
    for (int role = 0; role < STORED_ROLES; role++)
        if (tensor->stored.part[role].present)
            bytes += tensor_bytes(&tensor->stored.part[role].tensor);
    return bytes;
}

static Json *tensor_json(const RewriteTensor *tensor)
{
    Json *row = json_set(json_object(), "name", json_text(tensor->name));
    char shape[96];
    json_set(row, "action", json_text(action_name(tensor)));
    json_set(row, "shape", json_text(tensor_describe(&tensor->tensor, shape, sizeof(shape))));
    json_set(row, "recipe",
             rewrite_is_quantised(tensor) ? json_text(tensor->stored.recipe.name) : json_null());
    json_set(row, "why", json_text(tensor->why));
    json_set(row, "lossless", json_boolean(tensor->lossless));
    return json_set(row, "bytes", json_integer((int64_t)bytes_of(tensor)));
}

static Json *summary_json(const Rewrite *rewrite)
{
    Json *json = json_set(json_object(), "out", json_text(rewrite->request->out));
    json_set(json, "layout", json_text(layout_name(rewrite->request->layout)));
    json_set(json, "tensors", json_integer(rewrite->count));
    json_set(json, "quantised", json_integer(rewrite->quantised));
    json_set(json, "files", json_integer(rewrite->shards));
    json_set(json, "bytes", json_integer((int64_t)rewrite->bytes));
    return json_set(json, "source_bytes", json_integer((int64_t)rewrite->source.bytes));
}

static void print_json(Json *json)
{
    char *text = json_print(json, false);
    puts(text);
    free(text);
    json_destroy(json);
}

static Json *estimate_json(const RewriteEstimate *estimate)
{
    Json *json = json_set(json_object(), "limit", json_text(estimate->limit));
    json_set(json, "disk_bytes_per_s_assumed", json_real(estimate->disk_bytes_per_s));
    json_set(json, "cast_bytes_per_s", json_real(estimate->cast_bytes_per_s));
    json_set(json, "digest_bytes_per_s", json_real(estimate->digest_bytes_per_s));
    return json_set(json, "device", json_text(device_kind_name(estimate->device)));
}

static void print_estimate(const RewriteEstimate *estimate, const Run *run)
{
    char text[96];
    const char *device = device_kind_name(estimate->device);
    printf("about %.0f s, which %s takes: reading and writing at %s is assumed",
           ceil(estimate->seconds), estimate->limit,
           table_rate(estimate->disk_bytes_per_s, "B", text, sizeof(text)));
    if (estimate->cast_bytes_per_s > 0)
        printf("; casts at %s, from one thread's measured here times %d on %s in each of %d ranks",
               table_rate(estimate->cast_bytes_per_s, "B", text, sizeof(text)), estimate->workers,
               device, run->ranks);
    if (estimate->digest_bytes_per_s > 0)
        printf("; SHA-256 at %s, measured here",
               table_rate(estimate->digest_bytes_per_s, "B", text, sizeof(text)));
    printf("\nat most %s of memory in each of %d ranks%s\n",
           table_bytes((double)estimate->memory_bytes, text, sizeof(text)), run->ranks,
           estimate->device == DEVICE_CPU ? "" : ", and what CUDA takes");
}

static void show_plan(const Rewrite *rewrite, const Run *run, const RewriteEstimate *estimate,
                      bool json)
{
    if (json) {
        Json *object = summary_json(rewrite), *rows = json_array();
        for (int i = 0; i < rewrite->count; i++)
            json_append(rows, tensor_json(&rewrite->tensor[i]));
        json_set(object, "seconds", json_real(estimate->seconds));
        json_set(object, "estimate", estimate_json(estimate));
        json_set(object, "memory_bytes_per_rank", json_integer((int64_t)estimate->memory_bytes));
        print_json(json_set(object, "plan", rows));
        return;
    }
    static const char *const columns[] = {"tensor", "shape", "action", ">bytes", "why", NULL};
    char text[96];
    Table *table = table_create(columns);
    for (int i = 0; i < rewrite->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[i];
        table_cell(table, "%s", tensor->name);
        table_cell(table, "%s", tensor_describe(&tensor->tensor, text, sizeof(text)));
        table_cell(table, "%s", action_name(tensor));
        table_cell(table, "%s", table_bytes((double)bytes_of(tensor), text, sizeof(text)));
        table_cell(table, "%s", tensor->why);
    }
    table_print(table, stdout);
    table_destroy(table);
    printf("\n%d tensors, %d quantised, in %d files: %s", rewrite->count, rewrite->quantised,
           rewrite->shards, table_bytes((double)rewrite->bytes, text, sizeof(text)));
    printf(" from %s\n", table_bytes((double)rewrite->source.bytes, text, sizeof(text)));
    print_estimate(estimate, run);
}

static void show_report(const Rewrite *rewrite, const RewriteReport *report, bool json)
{
    char text[96];
    double moved = (double)(rewrite->source.bytes + rewrite->bytes);
    if (json) {
        Json *object = summary_json(rewrite);
        print_json(json_set(object, "seconds", json_real(report->seconds)));
        return;
    }
    printf("%s: %d tensors, %d quantised, %d files, %s", rewrite->request->out, rewrite->count,
           rewrite->quantised, rewrite->shards,
           table_bytes((double)rewrite->bytes, text, sizeof(text)));
    printf(" from %s; %.2f s,", table_bytes((double)rewrite->source.bytes, text, sizeof(text)),
           report->seconds);
    printf(" %s read and written\n", table_rate(moved / report->seconds, "B", text, sizeof(text)));
}

static void show_notes(const Rewrite *rewrite)
{
    for (const char *line = rewrite->notes; *line;) {
        size_t length = strcspn(line, "\n");
        fprintf(stderr, "meshwork: note: %.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
}

typedef struct InputScales {
    Rewrite *rewrite;
    const char *path;
    Error *error;
} InputScales;

static bool visit_scale(const char *key, const Json *value, void *context)
{
    InputScales *scales = context;
    char name[4096];
    double scale = json_real_of(value);
    if (!(scale > 0) || !(scale < 3e38))
        return error_set(scales->error, EXIT_CODE_DATA, "write {\"module\": 123.5}",
                         "%.200s: the scale of \"%.100s\" is no positive number", scales->path,
                         key);
    snprintf(name, sizeof(name), "%.4000s.weight", key);
    for (int i = 0; i < scales->rewrite->count; i++) {
        RewriteTensor *tensor = &scales->rewrite->tensor[i];
        if (strcmp(tensor->name, name) != 0 || !rewrite_is_quantised(tensor))
            continue;
        tensor->stored.input_scale = (float)scale;
        return true;
    }
    return error_set(scales->error, EXIT_CODE_DATA, "see --dry_run for the names",
                     "%.200s names \"%.100s\", which is no quantised module", scales->path, key);
}

static bool read_input_scales(Rewrite *rewrite, Error *error)
{
    const char *path = rewrite->request->input_scales;
    int wanting = 0;
    for (int i = 0; i < rewrite->count; i++)
        wanting += rewrite_is_quantised(&rewrite->tensor[i]) &&
                   rewrite->tensor[i].stored.part[STORED_INPUT_SCALE].present &&
                   rewrite->tensor[i].stored.input_scale == 1.0f;
    if (!path && wanting > 0)
        rewrite_note(rewrite,
                     "input_global_scale is 1 for %d modules: --input_scales FILE gives "
                     "the calibrated ones",
                     wanting);
    if (!path)
        return true;
    uint64_t bytes;
    Error first = {0};
    char *text = file_read(path, 64 << 20, &bytes, error);
    Json *json = text ? json_parse(text, bytes, &first) : NULL;
    if (json && json_is_object(json))
        json_each(json, visit_scale, &(InputScales){rewrite, path, &first});
    else if (text)
        error_set(&first, EXIT_CODE_DATA, "write {\"module\": 123.5}", "%.200s is no JSON object",
                  path);
    if (json)
        json_destroy(json);
    free(text);
    if (first.exit_code && error->exit_code == 0)
        *error = first;
    return text && first.exit_code == 0;
}

int rewrite_command(const Run *run, const RewriteRequest *request, bool dry_run, bool json)
{
    Error error = {0};
    Rewrite rewrite = {0};
    bool good = rewrite_plan(request, &rewrite, &error) && read_input_scales(&rewrite, &error);
    CHECK_RULE(good == (error.exit_code == 0));
    run_agree(run, &error);
    if (run->rank == 0)
        show_notes(&rewrite);
    if (dry_run) {
        RewriteEstimate estimate = rewrite_estimate(run, &rewrite);
        if (run->rank == 0)
            show_plan(&rewrite, run, &estimate, json);
    } else {
        RewriteReport report = rewrite_run(run, &rewrite);
        if (run->rank == 0)
            show_report(&rewrite, &report, json);
    }
    rewrite_release(&rewrite);
    return EXIT_CODE_GOOD;
}
