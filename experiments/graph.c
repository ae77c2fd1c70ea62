// graph.c -- `meshwork graph`: the graphs and kernels that PyTorch printed, as tables, JSON, or one
// page that needs no network.
#include "harness/command.h"
#include "results/graph/torch_log_show.h"

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

static bool show_logs(const Params *params, const OptionPositionals *words, Error *error)
{
    TorchLog *log = torch_log_create();
    bool good = true;
    for (int i = 0; good && i < words->count; i++)
        good = torch_log_read(log, words->value[i], i, error);
    if (good) {
        torch_log_finish(log);
        torch_log_warn(log);
        if (params->json)
            print_json(torch_log_json(log));
        else
            torch_log_show(log);
    }
    torch_log_destroy(log);
    return good;
}

static int run(Run *job, const void *params, const OptionPositionals *positionals)
{
    Error error = {0};
    show_logs(params, positionals, &error);
    run_agree(job, &error);
    return EXIT_CODE_GOOD;
}

const Command command_graph = {
    .name = "graph",
    .summary = "the graphs and kernels in a PyTorch log as tables, JSON or a page",
    .usage = "LOG... [-o page.html]",
    .notes = "TORCH_LOGS=aot_joint_graph,aot_graphs,output_code python prog.py > log.txt 2>&1\n"
             "Several logs are several ranks. - is standard input; gzip files are read directly.\n",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = OPTION_POSITIONALS_MAX,
    .spmd = false,
    .run = run,
};
