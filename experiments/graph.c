// graph.c -- `meshwork graph`: the graphs and kernels that PyTorch printed, as tables, JSON, or one
// page that needs no network.
#include "harness/command.h"
#include "harness/file.h"
#include "results/graph/page.h"
#include "results/graph/torch_log_show.h"
#include "results/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Params {
    const char *out;
    bool force, json;
} Params;

static const Option options[] = {
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "one JSON object on stdout instead of the tables"},
    {.name = "out",
     .kind = OPTION_TEXT,
     .offset = offsetof(Params, out),
     .value = "FILE",
     .letter = 'o',
     .doc = "the page: one HTML file"},
    {.name = "force",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, force),
     .fallback = "no",
     .doc = "overwrite the file of -o"},
    {.name = NULL},
};

static void print_json(Json *report)
{
    char *text = json_print(report, true);
    printf("%s\n", text);
    free(text);
    json_destroy(report);
}

static bool write_page(Json *document, const Params *params, Error *error)
{
    bool good = !params->out || page_write(document, params->out, params->force, error);
    json_destroy(document);
    return good;
}

static bool show_logs(const Params *params, const OptionPositionals *words, Error *error)
{
    TorchLog *log = torch_log_create();
    log->brief = params->out == NULL;
    bool good = true;
    for (int i = 0; good && i < words->count; i++)
        good = torch_log_read(log, words->value[i], i, error);
    if (good) {
        torch_log_finish(log);
        torch_log_warn(log);
        good = !params->out || write_page(page_of_log(log), params, error);
    }
    if (good) {
        if (params->json)
            print_json(torch_log_json(log));
        else
            torch_log_show(log);
    }
    torch_log_destroy(log);
    return good;
}

// A run of ours: the page shows its phases; tables and JSON are those of `results show`.
static bool show_result(const char *path, const Params *params, Error *error)
{
    Result result;
    if (!store_read(path, &result, error))
        return false;
    bool good = !params->out || write_page(page_of_result(&result, path), params, error);
    if (good)
        result_show(&result, params->json);
    result_destroy(&result);
    return good;
}

static bool act(const Params *params, const OptionPositionals *words, Error *error)
{
    if (words->count == 0)
        return error_set(error, EXIT_CODE_USAGE, "meshwork graph log.txt -o page.html",
                         "graph needs a log, or a result file of ours");
    if (params->out && !file_check_creatable(params->out, params->force, error))
        return false;
    if (words->count == 1 && store_is_file(words->value[0]))
        return show_result(words->value[0], params, error);
    return show_logs(params, words, error);
}

static int run(Run *job, const void *params, const OptionPositionals *positionals)
{
    Error error = {0};
    act(params, positionals, &error);
    run_agree(job, &error);
    return EXIT_CODE_GOOD;
}

const Command command_graph = {
    .name = "graph",
    .summary =
        "the graphs and kernels of a PyTorch log, or the phases of a run, as tables or a page",
    .usage = "LOG... | r.h5 [-o page.html]",
    .notes = "TORCH_LOGS=aot_joint_graph,aot_graphs,output_code python prog.py > log.txt 2>&1\n"
             "Several logs are several ranks. - is standard input; gzip files are read directly.\n"
             "Of a result of ours (r.h5) the page shows the phases and collectives of each"
             " measurement.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = OPTION_POSITIONALS_MAX,
    .spmd = false,
    .run = run,
};
