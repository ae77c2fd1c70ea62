// torch_log_show.c -- see torch_log_show.h.
#include "results/graph/torch_log_show.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "results/table.h"

enum { CELL_BYTES = 64 };

Json *names_json(const NameList *names)
{
    Json *array = json_array();
    for (int64_t i = 0; i < names->count; i++)
        json_append(array, json_text(names->items[i]));
    return array;
}

Json *json_of_bytes(double bytes)
{
    return isfinite(bytes) && bytes < 0x1p62 ? json_integer((int64_t)bytes) : json_null();
}

static Json *graph_json(const TracedGraph *graph)
{
    Json *row = json_set(json_object(), "kind", json_text(graph_kind_name(graph->kind)));
    json_set(row, "id", json_integer(graph->id));
    json_set(row, "rank", json_integer(graph->rank));
    json_set(row, "placeholders", json_integer(graph->placeholders));
    json_set(row, "operations", json_integer(graph->operations));
    json_set(row, "outputs", json_integer(graph->outputs));
    json_set(row, "complete", json_boolean(graph->has_outputs));
    return row;
}

static Json *kernel_json(const TorchLog *log, int index)
{
    const LogKernel *kernel = &log->kernels.items[index];
    const LogModule *module = &log->modules.items[kernel->module];
    Json *row = json_set(json_object(), "name", json_text(kernel->name));
    json_set(row, "kind", json_text(kernel->kind));
    json_set(row, "graph", json_text(module->aot_id));
    json_set(row, "source_nodes", names_json(&kernel->source_nodes));
    json_set(row, "original_aten", names_json(&kernel->original_aten));
    json_set(row, "calls", json_integer(kernel->calls));
    json_set(row, "rank", json_integer(module->rank));
    json_set(row, "language", json_text(kernel->language));
    json_set(row, "hash", json_text(kernel->hash));
    json_set(row, "read_bytes", json_of_bytes(kernel->read_bytes));
    json_set(row, "written_bytes", json_of_bytes(kernel->written_bytes));
    return row;
}

Json *torch_log_json(const TorchLog *log)
{
    Json *report = json_set(json_object(), "schema_name", json_text("meshwork graph"));
    Json *graphs = json_array(), *kernels = json_array(), *lines = json_object();
    Json *unknown = json_array();
    json_set(report, "schema_version", json_text("1.0.0"));
    for (int64_t g = 0; g < log->graphs.count; g++)
        if (log->graphs.items[g].parent < 0)
            json_append(graphs, graph_json(&log->graphs.items[g]));
    for (int64_t k = 0; k < log->kernels.count; k++)
        json_append(kernels, kernel_json(log, (int)k));
    for (int i = 0; i < log->unknown_count; i++) {
        const UnknownLine *line = &log->unknown[i];
        Json *row = json_set(json_object(), "file", json_text(log->files.items[line->file].name));
        json_set(row, "line", json_integer(line->line));
        json_append(unknown, json_set(row, "text", json_text(line->text)));
    }
    json_set(lines, "read", json_integer(log->lines.read));
    json_set(lines, "understood", json_integer(log->lines.understood));
    json_set(lines, "noise", json_integer(log->lines.noise));
    json_set(lines, "unknown", json_integer(log->lines.unknown));
    json_set(report, "graphs", graphs);
    json_set(report, "kernels", kernels);
    json_set(report, "extern_calls", json_integer(torch_log_extern_calls(log)));
    json_set(report, "lines", lines);
    return json_set(report, "first_unknown_lines", unknown);
}

static void show_graphs(const TorchLog *log)
{
    static const char *const columns[] = {
        ">rank", "graph", ">placeholders", ">operations", ">outputs", "code", NULL};
    Table *table = table_create(columns);
    for (int64_t g = 0; g < log->graphs.count; g++) {
        const TracedGraph *graph = &log->graphs.items[g];
        if (graph->parent >= 0)
            continue;
        table_cell(table, "%d", graph->rank);
        table_cell(table, "%s %lld%s%s", graph_kind_name(graph->kind), (long long)graph->id,
                   graph->compile_id[0] ? " of " : "", graph->compile_id);
        table_cell(table, "%lld", (long long)graph->placeholders);
        table_cell(table, "%lld", (long long)graph->operations);
        if (graph->has_outputs)
            table_cell(table, "%lld", (long long)graph->outputs);
        else
            table_cell(table, "cut off");
        if (graph->module >= 0)
            table_cell(table, "%s", log->modules.items[graph->module].aot_id);
        else
            table_cell(table, "-");
    }
    table_print(table, stdout);
    table_destroy(table);
}

static void show_kernels(const TorchLog *log)
{
    static const char *const columns[] = {">rank",  "code",    "kernel", "kind", ">calls",
                                          ">reads", ">writes", "from",   NULL};
    Table *table = table_create(columns);
    for (int64_t k = 0; k < log->kernels.count; k++) {
        const LogKernel *kernel = &log->kernels.items[k];
        const LogModule *module = &log->modules.items[kernel->module];
        char read[CELL_BYTES], written[CELL_BYTES], from[CELL_BYTES] = "";
        for (int64_t i = 0; i < kernel->original_aten.count; i++) {
            size_t length = strlen(from);
            snprintf(from + length, sizeof(from) - length, "%s%s", i ? " " : "",
                     kernel->original_aten.items[i]);
        }
        table_cell(table, "%d", module->rank);
        table_cell(table, "%s", module->aot_id);
        table_cell(table, "%s", kernel->name);
        table_cell(table, "%s", kernel->kind);
        table_cell(table, "%lld", (long long)kernel->calls);
        table_cell(table, "%s", table_bytes(kernel->read_bytes, read, sizeof(read)));
        table_cell(table, "%s", table_bytes(kernel->written_bytes, written, sizeof(written)));
        table_cell(table, "%s", from);
    }
    table_print(table, stdout);
    table_destroy(table);
}

void torch_log_show(const TorchLog *log)
{
    if (log->graphs.count) {
        show_graphs(log);
        printf("\n");
    }
    if (log->kernels.count) {
        show_kernels(log);
        printf("\n");
    }
    printf("extern calls: %lld\n", (long long)torch_log_extern_calls(log));
}

void torch_log_warn(const TorchLog *log)
{
    char text[256];
    bool joint = false, other = false;
    torch_log_coverage(log, text, sizeof(text));
    fprintf(stderr, "%s\n", text);
    for (int i = 0; i < log->unknown_count; i++)
        fprintf(stderr, "  %s:%lld: %s\n", log->files.items[log->unknown[i].file].name,
                (long long)log->unknown[i].line, log->unknown[i].text);
    for (int64_t i = 0; i < log->files.count; i++)
        if (log->files.items[i].gzip_truncated)
            check_warn("%s: its gzip data end too early; what came before is shown",
                       log->files.items[i].name);
    for (int64_t g = 0; g < log->graphs.count; g++) {
        joint |= log->graphs.items[g].kind == GRAPH_JOINT;
        other |= log->graphs.items[g].kind == GRAPH_BACKWARD;
    }
    if (other && !joint)
        fprintf(stderr, "no joint graph: TORCH_LOGS=aot_joint_graph,aot_graphs,output_code prints "
                        "it too\n");
    if (log->graphs.count == 0)
        fprintf(stderr, "no traced graph, only kernels: TORCH_LOGS=aot_joint_graph,aot_graphs,"
                        "output_code prints the graphs too\n");
}
