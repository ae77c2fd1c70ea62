// trace_merge.c -- see trace_merge.h. What is added to an event is made once per call of the log;
// per event only the bandwidth and the way of the match are written behind it.
#include "results/graph/trace_merge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/graph/torch_log_show.h"
#include "results/graph/trace_ops.h"

enum { EXCERPT_LINES = 10, EXCERPT_BYTES = 480, CANDIDATES_MAX = 16, TAIL_BYTES = 160 };

typedef struct Merge {
    const TorchLog *log;
    TraceOps *ops;
    Sink *sink; // NULL: only counted
    TraceCounts *counts;
    char ***text_of_call;  // [modules][calls] made when first needed: an object without its '}'
    char **text_of_kernel; // [kernels] the same, for a kernel whose call is not known
    char **text_of_name;   // [kernels] of the first of several of that name: all of them
} Merge;

const char *match_way_name(MatchWay way)
{
    static const char *const names[] = {"kernel_hash", "launch order", "name", "ambiguous name"};
    return names[way];
}

// ---- what is added ----

// The beginning of the kernel's function: the decorators in front say little.
static Json *excerpt(const LogKernel *kernel)
{
    static const char *const starts[] = {"\ndef ", "\nextern \"C\""};
    Slice code = slice_of(kernel->code);
    for (size_t i = 0; i < COUNT_OF(starts); i++) {
        size_t at = slice_find(code, starts[i]);
        if (at < code.bytes) {
            code = slice_after(code, at + 1);
            break;
        }
    }
    size_t bytes = 0;
    for (int lines = 0; bytes < code.bytes && bytes < EXCERPT_BYTES && lines < EXCERPT_LINES;)
        lines += code.at[bytes++] == '\n';
    char text[EXCERPT_BYTES + 8];
    snprintf(text, sizeof(text), "%.*s%s", (int)bytes, code.at, bytes < code.bytes ? "..." : "");
    return json_text(text);
}

static void add_place(const TorchLog *log, int graph_index, const IntList *nodes, Json *object)
{
    if (graph_index < 0)
        return;
    const TracedGraph *graph = &log->graphs.items[graph_index];
    for (int64_t i = 0; i < nodes->count; i++) {
        int place = graph->nodes.items[nodes->items[i]].place;
        if (place < 0)
            continue;
        json_set(object, "source_file", json_text(graph->places.items[place].file));
        json_set(object, "source_line", json_integer(graph->places.items[place].line));
        json_set(object, "source_code", json_text(graph->places.items[place].code));
        return;
    }
}

static Json *describe(const TorchLog *log, int module_index, const LogCall *call, int kernel_index)
{
    const LogModule *module = &log->modules.items[module_index];
    const LogKernel *kernel = kernel_index < 0 ? NULL : &log->kernels.items[kernel_index];
    Json *object = json_set(json_object(), "graph", json_text(module->aot_id));
    json_set(object, "rank", json_integer(module->rank));
    if (module->compile_id[0])
        json_set(object, "compile_id", json_text(module->compile_id));
    json_set(object, "kernel", json_text(kernel ? kernel->name : call->name));
    json_set(object, "kind", json_text(kernel ? kernel->kind : "extern"));
    json_set(object, "source_nodes",
             names_json(kernel ? &kernel->source_nodes : &call->source_nodes));
    json_set(object, "original_aten",
             names_json(kernel ? &kernel->original_aten : &call->original_aten));
    if (kernel && kernel->user_file[0]) {
        json_set(object, "source_file", json_text(kernel->user_file));
        json_set(object, "source_line", json_integer(kernel->user_line));
    } else {
        add_place(log, module->graph, kernel ? &kernel->nodes : &call->nodes, object);
    }
    double read_bytes = call ? call->read_bytes : kernel->read_bytes;
    double written_bytes = call ? call->written_bytes : kernel->written_bytes;
    json_set(object, "read_bytes", json_of_bytes(read_bytes));
    json_set(object, "written_bytes", json_of_bytes(written_bytes));
    json_set(object, "estimated_bytes", json_of_bytes(read_bytes + written_bytes));
    if (kernel)
        return json_set(object, "code", excerpt(kernel));
    return json_set(object, "code", json_text(call->arguments));
}

// The object as text without its closing bracket.
static char *open_text(Json *object)
{
    char *text = json_print(object, false);
    json_destroy(object);
    text[strlen(text) - 1] = '\0';
    return text;
}

static const char *text_of_match(Merge *merge, const LogMatch *match)
{
    const TorchLog *log = merge->log;
    if (match->call < 0) {
        char **text = &merge->text_of_kernel[match->kernel];
        if (!*text)
            *text = open_text(describe(log, match->module, NULL, match->kernel));
        return *text;
    }
    const LogModule *module = &log->modules.items[match->module];
    char ***calls = &merge->text_of_call[match->module];
    if (!*calls)
        *calls = calloc((size_t)module->calls.count + 1, sizeof(char *));
    CHECK(*calls, EXIT_CODE_HARDWARE, "free memory", "no memory to describe %lld calls",
          (long long)module->calls.count);
    char **text = &(*calls)[match->call];
    if (!*text)
        *text = open_text(
            describe(log, match->module, &module->calls.items[match->call], match->kernel));
    return *text;
}

// Several kernels of one name: all of them, so that none is taken for the right one.
static const char *text_of_candidates(Merge *merge, int first)
{
    char **text = &merge->text_of_name[first];
    if (*text)
        return *text;
    Json *object = json_object(), *candidates = json_array();
    int count = 0;
    for (int kernel = first; kernel >= 0; kernel = trace_ops_next_kernel(merge->ops, kernel))
        if (count++ < CANDIDATES_MAX)
            json_append(candidates, describe(merge->log, merge->log->kernels.items[kernel].module,
                                             NULL, kernel));
    json_set(object, "kernel", json_text(merge->log->kernels.items[first].name));
    json_set(object, "candidate_count", json_integer(count));
    json_set(object, "candidates", candidates);
    return *text = open_text(object);
}

// ---- one event ----

typedef struct Addition {
    const char *text; // NULL: nothing is known
    const char *why;  // then: why not
    double bytes;     // NaN: not known
    MatchWay way;
    bool sure;
} Addition;

static double bytes_of_match(const Merge *merge, const LogMatch *match)
{
    if (match->call < 0) {
        const LogKernel *kernel = &merge->log->kernels.items[match->kernel];
        return kernel->read_bytes + kernel->written_bytes;
    }
    const LogCall *call = &merge->log->modules.items[match->module].calls.items[match->call];
    return call->read_bytes + call->written_bytes;
}

static bool looks_generated(Slice name)
{
    name = trace_kernel_name(name);
    return slice_starts(name, "triton_") || slice_starts(name, "cpp_fused_");
}

static Addition by_name(Merge *merge, Slice name)
{
    int first = trace_ops_kernel_named(merge->ops, name);
    Addition addition = {.bytes = (double)NAN};
    if (first < 0) {
        addition.why = looks_generated(name) ? "no kernel of this name in the log"
                                             : "not launched by code that is in the log";
        return addition;
    }
    if (trace_ops_next_kernel(merge->ops, first) >= 0) {
        addition.text = text_of_candidates(merge, first);
        addition.way = MATCH_AMBIGUOUS;
        return addition;
    }
    LogMatch match = {merge->log->kernels.items[first].module, -1, first, true};
    addition.text = text_of_match(merge, &match);
    addition.bytes = bytes_of_match(merge, &match);
    addition.way = MATCH_NAME;
    addition.sure = true;
    return addition;
}

// A kernel event against the match of its op: a generated kernel must have the name of the call's,
// and an extern call runs none that the log generated.
static bool names_agree(const Merge *merge, const TraceEvent *event, const LogMatch *match)
{
    if (match->kernel < 0)
        return trace_ops_kernel_named(merge->ops, event->name) < 0 && !looks_generated(event->name);
    Slice name = trace_kernel_name(event->name); // the trace's may have a suffix
    return slice_starts(name, merge->log->kernels.items[match->kernel].device_name) ||
           slice_is(name, "triton_");
}

static Addition addition_of_kernel(Merge *merge, const TraceEvent *event)
{
    LogMatch match;
    bool by_hash;
    bool found = trace_ops_of_kernel(merge->ops, event, &match, &by_hash) &&
                 names_agree(merge, event, &match);
    if (!found)
        return by_name(merge, event->name);
    return (Addition){.text = text_of_match(merge, &match),
                      .bytes = bytes_of_match(merge, &match),
                      .way = by_hash ? MATCH_HASH : MATCH_ORDER,
                      .sure = match.sure};
}

static void count_unmatched(TraceCounts *counts, Slice name, const char *why)
{
    counts->unmatched++;
    if (counts->listed.count < TRACE_UNMATCHED_LISTED_MAX)
        *GROW(counts->listed) = (TraceUnmatched){pool_keep(counts->pool, name), why};
}

// What stands at the end of the object: what depends on the event itself.
static void write_tail(const Addition *addition, const TraceEvent *event, char *tail, size_t bytes)
{
    double gbps = addition->bytes / trace_number(event->duration) / 1e3;
    size_t length = 0;
    tail[0] = '\0';
    if (isfinite(gbps))
        length = (size_t)snprintf(tail, bytes, ", \"estimated_gbps\": %.6g", gbps);
    snprintf(tail + length, bytes - length, ", \"matched_by\": \"%s\", \"sure\": %s}",
             match_way_name(addition->way), addition->sure ? "true" : "false");
}

static bool write_event(Merge *merge, const TraceEvent *event, const Addition *addition,
                        Error *error)
{
    if (!merge->sink)
        return true;
    size_t before = (size_t)(event->insert_at - event->whole.at);
    if (!sink_write(merge->sink, event->whole.at, before, error))
        return false;
    if (addition) {
        char tail[TAIL_BYTES];
        const char *head = !event->has_args    ? ", \"args\": {\"inductor\": "
                           : event->args_empty ? "\"inductor\": "
                                               : ", \"inductor\": ";
        write_tail(addition, event, tail, sizeof(tail));
        if (!sink_write(merge->sink, head, strlen(head), error) ||
            !sink_write(merge->sink, addition->text, strlen(addition->text), error) ||
            !sink_write(merge->sink, tail, strlen(tail), error) ||
            (!event->has_args && !sink_write(merge->sink, "}", 1, error)))
            return false;
    }
    return sink_write(merge->sink, event->insert_at, event->whole.bytes - before, error);
}

static bool merge_kernel(Merge *merge, const TraceEvent *event, bool generated, Error *error)
{
    TraceCounts *counts = merge->counts;
    Addition addition = addition_of_kernel(merge, event);
    counts->kernel_events++;
    counts->generated_kernel_events += generated;
    if (addition.text && event->has_inductor) {
        addition.text = NULL;
        addition.why = "args.inductor is there already";
    }
    if (!addition.text) {
        count_unmatched(counts, event->name, addition.why);
        return write_event(merge, event, NULL, error);
    }
    counts->merged++;
    counts->merged_generated += generated;
    counts->merged_by[addition.way]++;
    return write_event(merge, event, &addition, error);
}

// An op on the CPU is a kernel when it is a generated C++ kernel; an op that a library runs on the
// CPU is described too, but only where the log's module runs on the CPU.
static bool merge_op(Merge *merge, const TraceEvent *event, Error *error)
{
    int kernel = trace_ops_kernel_named(merge->ops, event->name);
    bool cpp = kernel < 0 ? slice_starts(trace_kernel_name(event->name), "cpp_")
                          : strcmp(merge->log->kernels.items[kernel].language, "cpp") == 0;
    LogMatch match;
    if (cpp)
        return merge_kernel(merge, event, true, error);
    if (event->has_inductor || !trace_ops_of_op(merge->ops, event, &match) || match.kernel >= 0)
        return write_event(merge, event, NULL, error);
    const LogModule *module = &merge->log->modules.items[match.module];
    bool on_cpu = module->kernels.count > 0 &&
                  strcmp(merge->log->kernels.items[module->kernels.items[0]].language, "cpp") == 0;
    if (!on_cpu)
        return write_event(merge, event, NULL, error);
    Addition addition = {.text = text_of_match(merge, &match),
                         .bytes = bytes_of_match(merge, &match),
                         .way = MATCH_ORDER,
                         .sure = match.sure};
    merge->counts->cpu_ops_merged++;
    return write_event(merge, event, &addition, error);
}

// ---- the two passes ----

static bool first_pass(Slice piece, const TraceEvent *event, void *context, Error *error)
{
    (void)piece;
    (void)error;
    if (event)
        trace_ops_add(((Merge *)context)->ops, event);
    return true;
}

static bool second_pass(Slice piece, const TraceEvent *event, void *context, Error *error)
{
    Merge *merge = context;
    merge->counts->events += event != NULL;
    if (event && slice_is(event->category, "kernel")) {
        bool generated =
            looks_generated(event->name) || trace_ops_kernel_named(merge->ops, event->name) >= 0;
        return merge_kernel(merge, event, generated, error);
    }
    if (event && trace_is_op(event))
        return merge_op(merge, event, error);
    return !merge->sink || sink_write(merge->sink, piece.at, piece.bytes, error);
}

static void destroy_texts(Merge *merge)
{
    for (int64_t m = 0; m < merge->log->modules.count; m++) {
        for (int64_t c = 0; merge->text_of_call[m] && c < merge->log->modules.items[m].calls.count;
             c++)
            free(merge->text_of_call[m][c]);
        free(merge->text_of_call[m]);
    }
    for (int64_t k = 0; k < merge->log->kernels.count; k++) {
        free(merge->text_of_kernel[k]);
        free(merge->text_of_name[k]);
    }
    free(merge->text_of_call);
    free(merge->text_of_kernel);
    free(merge->text_of_name);
}

bool trace_merge(const TraceMerge *request, TraceCounts *counts, Error *error)
{
    size_t modules = (size_t)request->log->modules.count + 1;
    size_t kernels = (size_t)request->log->kernels.count + 1;
    Merge merge = {.log = request->log,
                   .counts = counts,
                   .text_of_call = calloc(modules, sizeof(char **)),
                   .text_of_kernel = calloc(kernels, sizeof(char *)),
                   .text_of_name = calloc(kernels, sizeof(char *))};
    CHECK(merge.text_of_call && merge.text_of_kernel && merge.text_of_name, EXIT_CODE_HARDWARE,
          "free memory", "no memory to merge a trace");
    *counts = (TraceCounts){.pool = pool_create()};
    merge.ops = trace_ops_create(request->log);
    bool good = trace_walk(request->trace, &(TraceVisitor){first_pass, &merge}, error);
    if (good) {
        trace_ops_finish(merge.ops);
        if (request->out)
            merge.sink = sink_open(request->out, request->force, error);
        good = !request->out || merge.sink;
    }
    good = good && trace_walk(request->trace, &(TraceVisitor){second_pass, &merge}, error);
    if (merge.sink && good)
        good = sink_commit(merge.sink, error);
    else
        sink_abandon(merge.sink);
    trace_ops_destroy(merge.ops);
    destroy_texts(&merge);
    return good;
}

void trace_counts_destroy(TraceCounts *counts)
{
    free(counts->listed.items);
    pool_destroy(counts->pool);
    *counts = (TraceCounts){.events = 0};
}

Json *trace_counts_json(const TraceCounts *counts)
{
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork trace_merge"));
    Json *unmatched = json_array(), *ways = json_object();
    json_set(report, "schema_version", json_text("1.0.0"));
    json_set(report, "events", json_integer(counts->events));
    json_set(report, "kernel_events", json_integer(counts->kernel_events));
    json_set(report, "generated_kernel_events", json_integer(counts->generated_kernel_events));
    json_set(report, "merged", json_integer(counts->merged));
    json_set(report, "merged_generated", json_integer(counts->merged_generated));
    for (int way = 0; way < MATCH_WAYS; way++)
        json_set(ways, match_way_name((MatchWay)way), json_integer(counts->merged_by[way]));
    json_set(report, "merged_by", ways);
    json_set(report, "cpu_ops_merged", json_integer(counts->cpu_ops_merged));
    for (int64_t i = 0; i < counts->listed.count; i++) {
        Json *row = json_set(json_object(), "name", json_text(counts->listed.items[i].name));
        json_append(unmatched, json_set(row, "why", json_text(counts->listed.items[i].why)));
    }
    json_set(report, "unmatched", unmatched);
    return json_set(report, "unmatched_count", json_integer(counts->unmatched));
}
