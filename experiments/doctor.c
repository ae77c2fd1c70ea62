// doctor.c -- `meshwork doctor`: the harness's probes, and those of the folders that wall in HDF5,
// NCCL and Graphviz.
#include "harness/doctor.h"
#include "harness/command.h"
#include "parallel/comm.h"
#include "results/graph/layout.h"
#include "results/store.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef struct Params {
    bool json;
} Params;

static const Option options[] = {
    {.name = "json",
     .kind = OPTION_SWITCH,
     .offset = offsetof(Params, json),
     .fallback = "no",
     .doc = "one JSON object instead of the table"},
    {.name = NULL},
};

static void look_hdf5(DoctorLine *line)
{
    char version[64];
    store_version(version, sizeof(version));
    snprintf(line->found, sizeof(line->found), "HDF5 %s", version);
}

// comm_versions names NCCL with its number where the build has it.
static void look_nccl(DoctorLine *line)
{
    comm_versions(line->found, sizeof(line->found));
    const char *nccl = strstr(line->found, "NCCL ");
    if (nccl && isdigit((unsigned char)nccl[strlen("NCCL ")]))
        return;
    line->verdict = DOCTOR_ABSENT;
    snprintf(line->cost, sizeof(line->cost),
             "GPUs of several ranks cannot exchange rows: install libnccl-dev beside the CUDA "
             "toolkit and build again");
}

// A library without its plug-in for dot is as good as none.
static void look_graphviz(DoctorLine *line)
{
    const LayoutEdge edge = {0, 1};
    const double width[] = {50, 50};
    double x[2], y[2];
    Layout layout = {.x = x, .y = y};
    char version[64] = "";
    if (layout_graphviz_version)
        layout_graphviz_version(version, sizeof(version));
    bool works =
        layout_by_graphviz &&
        layout_by_graphviz(&(LayoutGraph){.nodes = 2, .edges = 1, .width = width, .edge = &edge},
                           &layout);
    snprintf(line->found, sizeof(line->found), "%s%s",
             version[0] ? "Graphviz " : "this build has no Graphviz", version);
    if (works)
        return;
    line->verdict = version[0] ? DOCTOR_WARNING : DOCTOR_ABSENT;
    snprintf(line->cost, sizeof(line->cost), "graph pages are laid out in ranks by depth: %s",
             version[0] ? "its layout plug-in does not load: apt install --reinstall libgvc6"
                        : "apt install libgraphviz-dev and build again");
}

static const DoctorProbe probes[] = {
    {"graphviz", look_graphviz},
    {"hdf5", look_hdf5},
    {"nccl", look_nccl},
    {NULL, NULL},
};

static int run(Run *job, const void *params, const OptionPositionals *positionals)
{
    (void)job;
    (void)positionals;
    const DoctorProbe *const tables[] = {doctor_harness_probes, probes};
    return doctor_report(tables, COUNT_OF(tables), ((const Params *)params)->json);
}

const Command command_doctor = {
    .name = "doctor",
    .summary = "what this machine and this build can do, what is missing, and what that costs",
    .usage = "",
    .notes = "Exit code 0, or 69 when something that is needed does not work. MPI is not started.",
    .options = options,
    .params_bytes = sizeof(Params),
    .positionals_max = 0,
    .spmd = false,
    .run = run,
};
